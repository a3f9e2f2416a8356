"""One step of tracking: (frame, memory, prompt) -> (result, memory). No state: file, stream and training share it.

Source: SAM 2 (arXiv 2408.00714), section 4.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from masklet.config import STRIDE, STRIDES
from masklet.model.prompt_encoder import BOX_TOP_LEFT
from masklet.model.sam2 import Sam2Model
from masklet.video.memory import ObjectFrame, ObjectMemory, Reading, memory_tokens

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


def track_object(
    model: Sam2Model,
    features: list[Tensor],
    bank: ObjectMemory,
    reading: Reading | None,
    prompt: FramePrompt | None = None,
    previous: Tensor | None = None,
) -> tuple[ObjectFrame, Tensor]:
    """Follow one object into a frame, or take a prompt for it there.

    Args:
        model: With its memory.
        features: Of the frame, see ``Sam2Model.get_image_features``; shared by all of its objects.
        bank: What is remembered of the object; it is read, not changed.
        reading: What to read of it; None on a frame that a prompt reached before the tracker did.
        prompt: What a person said.
        previous: (4h, 4w) logits to correct, where the frame had a result before.

    Returns:
        The object in this frame, and the memory map of it, (h*w, memory_dim).
    """
    if prompt is not None and prompt.mask is not None:
        return _take_mask(model, features, prompt.mask)
    if reading is None:
        coarse = features[2] + model.no_memory_embedding.view(1, -1, 1, 1)
    else:
        map_hw = (features[2].shape[-2], features[2].shape[-1])
        memory, positions, num_pointers = memory_tokens(model, bank, reading, map_hw=map_hw)
        coarse = model.condition(features[2], memory[None], positions, num_pointers=num_pointers)
    points = labels = mask = None
    if prompt is not None:
        assert prompt.points is not None
        assert prompt.labels is not None
        points, labels = prompt.points[None, None], prompt.labels[None, None]
        if previous is not None:
            mask = previous.clamp(-PREVIOUS_LIMIT, PREVIOUS_LIMIT)[None, None]
    decoded = model.decode(
        [features[0], features[1], coarse],
        points=points,
        labels=labels,
        masks=mask,
        multimask=labels is None or labels.shape[-1] <= 1,
    )
    best = decoded.ious[0, 0].argmax()
    score = decoded.object_scores[0]  # (1, 1)
    seen = ObjectFrame(
        logits=torch.where(score > 0, decoded.logits[0, 0, best], ABSENT_LOGIT),
        iou=decoded.ious[0, 0, best],
        score=score[0, 0],
        pointer=model.point_to_objects(decoded.mask_tokens[0, 0, best][None], score)[0],
    )
    return seen, memory_map(model, features, seen, is_prompted=prompt is not None)


def memory_map(model: Sam2Model, features: list[Tensor], seen: ObjectFrame, *, is_prompted: bool) -> Tensor:
    """(h*w, memory_dim): what is remembered of an object's frame, a function of the frame and the result alone."""
    memory = model.encode_memory(features[2], seen.logits[None], seen.score.view(1, 1), binarize=is_prompted)[0]
    # The reference stores memories so, and its rounding is part of what it computes.
    return memory.to(torch.bfloat16)


def _take_mask(model: Sam2Model, features: list[Tensor], mask: Tensor) -> tuple[ObjectFrame, Tensor]:
    """A person's mask is the result as it is; the network only makes a pointer of it."""
    inside = mask.to(model.dtype)[None, None]  # (1, 1, height, width)
    map_hw = (features[2].shape[-2], features[2].shape[-1])
    size_hw = (map_hw[0] * STRIDE // STRIDES[0], map_hw[1] * STRIDE // STRIDES[0])
    certain = CERTAIN_LOGIT * (2 * inside - 1)
    decoded = model.decode(features, masks=model.mask_downsample(inside), multimask=False)
    one = torch.ones((), device=model.device, dtype=model.dtype)
    seen = ObjectFrame(
        # In float32, since antialias is not to be had in bfloat16 everywhere.
        logits=F.interpolate(certain.float(), size=size_hw, mode="bilinear", antialias=True)[0, 0].to(model.dtype),
        iou=one,
        score=CERTAIN_LOGIT * one,
        pointer=model.point_to_objects(decoded.mask_tokens[0, 0, :1], decoded.object_scores[0])[0],
    )
    return seen, memory_map(model, features, seen, is_prompted=True)
