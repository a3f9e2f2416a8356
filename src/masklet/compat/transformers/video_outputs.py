"""Results of the tracker as the outputs that a session shows, and outputs that were stored by hand as results."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from masklet.compat.live_mapping import LiveMapping
from masklet.compat.transformers.outputs import ModelOutput
from masklet.config import STRIDE, STRIDES
from masklet.errors import SessionError
from masklet.masks import upscale_logits
from masklet.video.object_frame import ObjectFrame
from masklet.video.track import Track
from masklet.video.tracker import CERTAIN_LOGIT
from masklet.video.tracks import Tracks

RESULT_KEYS = ("pred_masks", "object_pointer", "object_score_logits")
"""Values of an output that the tracker needs."""


@dataclass(eq=False)
class Sam2VideoSegmentationOutput(ModelOutput):
    """All objects in one frame."""

    object_ids: list[Any] | None = None
    """Their ids, in the order of the rows of the tensors."""
    pred_masks: Tensor | None = None
    """(objects, 1, height / 4, width / 4) logits; -1024 for objects that are not in the frame."""
    object_score_logits: Tensor | None = None
    """(objects, 1): above 0 the object is in the frame."""
    frame_idx: int | None = None
    """The frame's number."""


def output_of(tracks: Tracks, track: Track, frame: int, mask: Tensor | None, device: torch.device) -> LiveMapping:
    """The output of one object in one frame. Each value is made when it is read.

    Args:
        tracks: Tracks of the session.
        track: The object.
        frame: A frame with a result.
        mask: (1, 1, side, side): the mask that was the prompt in this frame, if it was one.
        device: Device of the values.
    """

    def high_res_masks() -> Tensor:
        if mask is not None:
            return ((2 * mask - 1) * CERTAIN_LOGIT).to(tracks.engine.dtype)
        return upscale_logits(track.bank[frame].logits[None, None], tracks.input_hw).to(tracks.engine.dtype)

    def maskmem_pos_enc() -> Tensor:
        map_hw = (tracks.input_hw[0] // STRIDE, tracks.input_hw[1] // STRIDE)
        return laid_out(tracks.engine.model.spatial_positions(map_hw, device)).to(tracks.engine.dtype)

    def laid_out(tokens: Tensor) -> Tensor:
        # As in transformers, where maps are (h*w, 1, dim), and the tokens of an EdgeTAM (1, tokens, dim).
        return tokens[None] if tracks.engine.config.is_edgetam else tokens[:, None]

    values: dict[str, Callable[[], Tensor]] = {
        "pred_masks": lambda: track.bank[frame].logits[None, None],
        "object_pointer": lambda: track.bank[frame].pointer[None, None],
        "high_res_masks": high_res_masks,
        "object_score_logits": lambda: track.bank[frame].object_score.reshape(1, 1, 1),
    }
    if frame in track.bank.maps:  # those that no frame nearby reads are dropped
        values["maskmem_features"] = lambda: laid_out(track.bank.maps[frame])
        values["maskmem_pos_enc"] = maskmem_pos_enc
    return LiveMapping(lambda: [*values], lambda name: values[name]().to(device))


def result_of(output: Mapping[str, Any], tracks: Tracks, frame: int) -> ObjectFrame:
    """The result of an output that was stored by hand.

    Raises:
        SessionError: A value is missing, or has another shape.
    """
    if missing := [name for name in RESULT_KEYS if not isinstance(output.get(name), Tensor)]:
        raise SessionError(
            f"the output stored for frame {frame} has no {missing[0]}: expected tensors {', '.join(RESULT_KEYS)}"
        )
    engine = tracks.engine
    mask, pointer, score = (output[name].to(engine.device, engine.dtype) for name in RESULT_KEYS)
    expected_hw = tuple(side // STRIDES[0] for side in tracks.input_hw)
    if tuple(mask.shape[-2:]) != expected_hw or pointer.shape[-1] != engine.config.hidden_size:
        raise SessionError(
            f"the output stored for frame {frame} has pred_masks of {tuple(mask.shape)} and object_pointer of "
            f"{tuple(pointer.shape)}: expected (1, 1, {expected_hw[0]}, {expected_hw[1]}) and "
            f"(1, 1, {engine.config.hidden_size})"
        )
    return ObjectFrame(
        mask.reshape(expected_hw), torch.ones_like(score.reshape(())), score.reshape(()), pointer.reshape(-1)
    )
