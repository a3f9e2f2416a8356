"""Objects of a video for code that numbers them, and the dictionaries of state that such code reads."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from torch import Tensor

from masklet.compat.live_mapping import LiveMapping
from masklet.compat.sam2.prompts import check_labels, read_corners, read_numbers
from masklet.compat.sam2.utils.transforms import clean_logits
from masklet.config import STRIDE, SizeHW
from masklet.engine.base import ABSENT_LOGIT
from masklet.errors import PromptError
from masklet.masks import upscale_logits
from masklet.model.prompt_encoder import BOX_BOTTOM_RIGHT, BOX_TOP_LEFT
from masklet.video.frame_result import check_object_id
from masklet.video.frame_step import FeaturesOf
from masklet.video.object_frame import ObjectFrame
from masklet.video.track import Track
from masklet.video.tracker import FramePrompt
from masklet.video.tracks import Tracks

HOLE_MARGIN = 0.1
"""Logit that filled holes get."""
OVERLAP_LOGIT = -10.0
"""Where objects overlap, all but the best are lowered to this."""


def prompt_of(
    points: Any,
    labels: Any,
    box: Any,
    tracks: Tracks,
    *,
    normalize_coords: bool,
) -> FramePrompt:
    """A prompt in pixels of the network's input, the corners of the box first.

    Args:
        points: (points, 2), x and y; None with a box alone.
        labels: (points,): 1 on the object, 0 beside it.
        box: (4,), x0 y0 x1 y1, or None.
        tracks: The objects of the video.
        normalize_coords: Whether coordinates are pixels of the video; otherwise they are from 0 to 1.

    Raises:
        ValueError: Neither points nor a box; points without labels, or the other way round.
    """
    if (points is None) != (labels is None):
        raise ValueError("points and labels go together: expected both, or none of them with a box")
    if points is None and box is None:
        raise ValueError("neither points nor box: expected at least one of them")
    coordinates = read_numbers("points", [] if points is None else points, torch.float32, "cpu")
    of_points = read_numbers("labels", [] if labels is None else labels, torch.long, "cpu").reshape(-1)
    if coordinates.numel() != 2 * len(of_points):
        raise PromptError(
            f"{coordinates.numel() / 2:g} points came with {len(of_points)} labels: expected (points, 2), and one "
            "label for each point"
        )
    check_labels("labels", of_points)
    coordinates = coordinates.reshape(-1, 2)
    if box is not None:
        corners = read_corners("box", box, "cpu")
        if len(corners) != 1:
            raise PromptError(f"box holds {len(corners)} boxes: expected (4,), x0 y0 x1 y1, of one object")
        coordinates = torch.cat([corners[0], coordinates])
        of_points = torch.cat([torch.tensor([BOX_TOP_LEFT, BOX_BOTTOM_RIGHT], device="cpu"), of_points])
    height, width = tracks.size_hw if normalize_coords else (1, 1)
    scale = torch.tensor([tracks.input_hw[1] / width, tracks.input_hw[0] / height], dtype=torch.float32, device="cpu")
    device = tracks.engine.device
    return FramePrompt((coordinates * scale).to(device), of_points.to(device))


def prompt_object(
    tracks: Tracks,
    object_id: Hashable,
    frame: int,
    features_of: FeaturesOf,
    prompt: FramePrompt,
    *,
    replaces: bool,
    is_kept: bool,
) -> None:
    """Prompts an object in a frame.

    Args:
        tracks: The objects.
        object_id: Its id.
        frame: The frame's number.
        features_of: Encodes frames.
        prompt: Prompt for this frame.
        replaces: Whether earlier points of the frame are forgotten.
        is_kept: Whether the result of a frame that was tracked before stays when it is tracked again.
    """
    check_object_id(object_id)
    track = tracks.objects.get(object_id)
    was_tracked = track is not None and frame in track.tracked_steps and frame not in track.bank.prompted
    tracks.prompt(object_id, frame, features_of, prompt, replaces=replaces)
    if was_tracked and not is_kept:
        tracks.objects[object_id].bank.prompted.discard(frame)


def remove_prompts(track: Track, frame: int) -> None:
    """Undoes the prompts of an object in a frame. Its result there is kept until the frame is tracked again.

    An object without other prompts starts again: nothing could be tracked from what it has.
    """
    track.clicks.pop(frame, None)
    if frame not in track.bank.prompted:
        return
    track.conditioned.clear()
    track.tracked_steps.pop(frame, None)
    track.bank.prompted.discard(frame)
    if not track.bank.prompted:
        track.bank.clear()
        track.tracked_steps.clear()
        track.clicks.clear()


def video_logits(
    results: Mapping[Hashable, ObjectFrame],
    object_ids: list[Any],
    size_hw: SizeHW,
    *,
    fill_hole_area: int,
    non_overlap_masks: bool,
    device: torch.device,
) -> Tensor:
    """(objects, 1, height, width) float32 logits of a frame, -1024 for objects without a result."""
    upscaled = torch.full((len(object_ids), *size_hw), ABSENT_LOGIT, dtype=torch.float32, device=device)
    if rows := [row for row, object_id in enumerate(object_ids) if object_id in results]:
        low_res = torch.stack([results[object_ids[row]].logits.float() for row in rows])
        upscaled[rows] = upscale_logits(clean_logits(low_res, fill_hole_area, margin=HOLE_MARGIN), size_hw)
    if non_overlap_masks and len(upscaled) > 1:
        is_best = upscaled.argmax(0) == torch.arange(len(upscaled), device=device)[:, None, None]
        upscaled = torch.where(is_best, upscaled, upscaled.clamp(max=OVERLAP_LOGIT))
    return upscaled[:, None]


def stored_outputs(tracks: Tracks, track: Track) -> dict[str, LiveMapping]:
    """``cond_frame_outputs`` and ``non_cond_frame_outputs`` of an object, by frame, in Meta's shapes."""

    def output(frame: int) -> dict[str, Tensor | None]:
        result = track.bank[frame]
        memory = track.bank.maps.get(frame)
        height, width = (side // STRIDE for side in tracks.input_hw)
        return {
            "pred_masks": result.logits[None, None].float(),
            "obj_ptr": result.pointer[None],
            "object_score_logits": result.object_score.reshape(1, 1),
            "maskmem_features": None if memory is None else memory.T.reshape(1, -1, height, width),
            "maskmem_pos_enc": None,
        }

    bank = track.bank
    return {
        "cond_frame_outputs": LiveMapping(lambda: sorted(bank.prompted), output),
        "non_cond_frame_outputs": LiveMapping(lambda: sorted(bank.tracked), output),
    }
