"""One step of tracking: (frame, memory, prompt) -> (result, memory). No state: file, stream and training share it.

Source: SAM 2 (arXiv 2408.00714), section 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from masklet.config import STRIDE, STRIDES
from masklet.model.mask_decoder import DecodedMasks
from masklet.model.prompt_encoder import BOX_TOP_LEFT
from masklet.model.sam2 import Sam2Model
from masklet.video.memory import MemorySelection, ObjectFrame, ObjectMemory, memory_tokens

ABSENT_LOGIT = -1024.0
"""Mask logits of an object that is not in the frame."""
CERTAIN_LOGIT = 10.0
"""Logits of a mask that a person gave."""
PREVIOUS_LIMIT = 32.0
"""Earlier logits are clamped to this before they are corrected."""


@dataclass(frozen=True)
class FramePrompt:
    """What a person said of one object in one frame, in pixels of the network's input: clicks and box, or a mask."""

    points: Tensor | None = None  # (points, 2), box corners first
    labels: Tensor | None = None  # (points,)
    mask: Tensor | None = None  # (height, width) bool, of the network's input

    def after(self, earlier: FramePrompt) -> FramePrompt:
        """Both together: clicks add up, a new box or mask takes an earlier one's place."""
        if self.mask is not None or earlier.mask is not None or earlier.points is None or self.points is None:
            return self
        assert earlier.labels is not None
        assert self.labels is not None
        has_box = bool((self.labels == BOX_TOP_LEFT).any())
        kept = earlier.labels < BOX_TOP_LEFT if has_box else torch.ones_like(earlier.labels, dtype=torch.bool)
        points = torch.cat([earlier.points[kept], self.points])
        labels = torch.cat([earlier.labels[kept], self.labels])
        corners_first = (labels < BOX_TOP_LEFT).long().argsort(stable=True)
        return FramePrompt(points[corners_first], labels[corners_first])


def track_objects(
    model: Sam2Model,
    features: list[Tensor],
    banks: Sequence[ObjectMemory],
    readings: Sequence[MemorySelection],
    *,
    fixed_shapes: bool = False,
) -> list[tuple[ObjectFrame, Tensor]]:
    """Follow objects into a frame, all in one batch.

    Args:
        model: With its memory.
        features: Of the frame, see ``Sam2Model.get_image_features``; shared by all of its objects.
        banks: What is remembered of each object; they are read, not changed.
        readings: What to read of each; all of one shape, see ``MemorySelection.shape``.
        fixed_shapes: Fill memories up to a constant shape, as accelerators like it.

    Returns:
        Each object in this frame, and the memory map of it, (h*w, memory_dim).
    """
    seen = choose(model, decode_with_memory(model, features, banks, readings, fixed_shapes=fixed_shapes))
    # One by one, since a map that is made again later is made alone, and has to be the same to the bit.
    return [(one, memory_maps(model, features, [one], is_prompted=False)[0]) for one in seen]


def track_object(
    model: Sam2Model,
    features: list[Tensor],
    prompt: FramePrompt,
    remembered: Tensor | None = None,
    previous: Tensor | None = None,
) -> tuple[ObjectFrame, Tensor]:
    """Take a prompt for one object in a frame.

    Args:
        model: With its memory.
        features: Of the frame.
        prompt: What a person said.
        remembered: (1, dim, h, w) of ``read_memory``; None on a frame that a prompt reached before the tracker did.
        previous: (4h, 4w) logits to correct, where the frame had a result before.

    Returns:
        As ``track_objects``.
    """
    if prompt.mask is not None:
        seen = _take_mask(model, features, prompt.mask)
    else:
        (seen,) = choose(model, decode_prompt(model, features, prompt, remembered, previous))
    (memory,) = memory_maps(model, features, [seen], is_prompted=True)
    return seen, memory


def decode_prompt(
    model: Sam2Model,
    features: list[Tensor],
    prompt: FramePrompt,
    remembered: Tensor | None,
    previous: Tensor | None,
) -> DecodedMasks:
    """What the network says to clicks or a box, (1, 1, ...): see ``track_object``. One click has three candidates."""
    assert prompt.points is not None
    assert prompt.labels is not None
    return model.decode(
        model.without_memory(features) if remembered is None else [features[0], features[1], remembered],
        points=prompt.points[None, None],
        labels=prompt.labels[None, None],
        masks=None if previous is None else previous.clamp(-PREVIOUS_LIMIT, PREVIOUS_LIMIT)[None, None],
        multimask=len(prompt.labels) <= 1,
    )


def decode_with_memory(
    model: Sam2Model,
    features: list[Tensor],
    banks: Sequence[ObjectMemory],
    readings: Sequence[MemorySelection],
    *,
    fixed_shapes: bool = False,
) -> DecodedMasks:
    """What the network says of objects that nothing is said of in this frame: (objects, 1, ...), three candidates."""
    coarse = read_memory(model, features[2], banks, readings, fixed_shapes=fixed_shapes)
    return model.decode([features[0], features[1], coarse], multimask=True)


def choose(model: Sam2Model, decoded: DecodedMasks) -> list[ObjectFrame]:
    """Of each object's candidates, (objects, 1, candidates, ...), the one of the best predicted IoU."""
    best = decoded.iou_scores[:, 0].argmax(-1)  # (objects,)
    each = torch.arange(len(best), device=best.device)
    scores = decoded.object_scores[:, 0]  # (objects, 1)
    logits = torch.where(scores[..., None] > 0, decoded.logits[each, 0, best], ABSENT_LOGIT)
    tokens = decoded.mask_tokens[each, 0, best.clamp(max=decoded.mask_tokens.shape[2] - 1)]
    # One by one as everything on a CPU, so that no object's last bit depends on how many others there are.
    pointers = torch.cat([model.point_to_objects(tokens[n : n + 1], scores[n : n + 1]) for n in range(len(best))])
    columns = (logits, decoded.iou_scores[each, 0, best], scores[:, 0], pointers)
    # Clones, or what is kept of one object would keep what all of them were made in.
    return [ObjectFrame(*(tensor.clone() for tensor in row)) for row in zip(*columns, strict=True)]


def memory_maps(
    model: Sam2Model, features: list[Tensor], seen: Sequence[ObjectFrame], *, is_prompted: bool
) -> list[Tensor]:
    """(h*w, memory_dim) each: what is remembered of objects in a frame, a function of frame and results alone."""
    logits, scores = torch.stack([one.logits for one in seen]), torch.stack([one.score for one in seen])
    memories = model.encode_memory(features[2], logits, scores[:, None], binarize=is_prompted)
    # The reference stores memories so, and its rounding is part of what it computes.
    return [memory.to(torch.bfloat16, copy=True) for memory in memories]


def read_memory(
    model: Sam2Model,
    features: Tensor,
    banks: Sequence[ObjectMemory],
    readings: Sequence[MemorySelection],
    *,
    fixed_shapes: bool = False,
) -> Tensor:
    """(1, dim, h, w) features, conditioned on what is remembered of each object: (objects, dim, h, w)."""
    map_hw = (features.shape[-2], features.shape[-1])
    tokens = memory_tokens(model, banks, readings, map_hw=map_hw, fixed_shapes=fixed_shapes)
    return model.condition(
        features, tokens.memory, tokens.positions, num_pointers=tokens.num_pointers, is_empty=tokens.is_empty
    )


def _take_mask(model: Sam2Model, features: list[Tensor], mask: Tensor) -> ObjectFrame:
    """A person's mask is the result as it is; the network only makes a pointer of it."""
    inside = mask.to(model.dtype)[None, None]  # (1, 1, height, width)
    map_hw = (features[2].shape[-2], features[2].shape[-1])
    size_hw = (map_hw[0] * STRIDE // STRIDES[0], map_hw[1] * STRIDE // STRIDES[0])
    certain = CERTAIN_LOGIT * (2 * inside - 1)
    decoded = model.decode(features, masks=model.mask_downsample(inside), multimask=False)
    one = torch.ones((), device=model.device, dtype=model.dtype)
    return ObjectFrame(
        # In float32, since antialias is not to be had in bfloat16 everywhere.
        logits=F.interpolate(certain.float(), size=size_hw, mode="bilinear", antialias=True)[0, 0].to(model.dtype),
        iou=one,
        score=CERTAIN_LOGIT * one,
        pointer=model.point_to_objects(decoded.mask_tokens[0, 0, :1], decoded.object_scores[0])[0],
    )
