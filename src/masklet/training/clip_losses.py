"""Objects are shown in a clip's first frame and followed through the others, by the very steps of inference.

Source: SAM 2 (arXiv 2408.00714), section 4, "training", and appendix D.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from masklet.model.mask_decoder import DecodedMasks
from masklet.model.sam2 import Sam2Model
from masklet.training.losses import Losses, mask_iou, segmentation_losses
from masklet.training.prompts import MASK_STRIDE, PADDING, first_prompt
from masklet.video.memory import ObjectFrame, ObjectMemory, PaperPolicy
from masklet.video.tracker import CERTAIN_LOGIT, FramePrompt, choose, decode_with_memory, memory_maps, track_object

MASK_PROMPTS = 0.5
"""Objects that are shown by their mask; a click and a box share the rest."""
MAX_GAP = 3
"""A frame's number is at most this much above that of the one before."""


def clip_losses(
    model: Sam2Model,
    features: list[list[Tensor]],
    targets: Tensor,
    *,
    focal_weight: float,
    generator: torch.Generator,
) -> tuple[list[Losses], list[float]]:
    """Prompt every object in the first frame of a clip, then follow it.

    Args:
        model: With its memory.
        features: Of each frame, see ``Sam2Model.get_image_features``.
        targets: (frames, objects, h, w) bool, at the finest map's stride; none empty in the first frame.
        focal_weight: Of the focal loss in the total.
        generator: Decides how objects are shown, and how far apart in time the frames are said to be.

    Returns:
        The losses of each frame, and the mean IoU of the objects in the first frame and, where visible, in the others.
    """
    policy = PaperPolicy(num_maskmem=model.config.num_maskmem)
    banks = [ObjectMemory(spool=None) for _ in range(targets.shape[1])]
    numbers = _frame_numbers(len(targets), generator)
    losses, ious = [], []

    shown = []
    for bank, prompt in zip(banks, _prompts(targets[0], generator), strict=True):
        seen, memory = track_object(model, features[0], prompt)
        bank.put(numbers[0], seen, memory, is_prompted=True)
        shown.append(seen)
    losses.append(_losses_where_shown(shown, targets[0], focal_weight))
    ious.append(_ious(shown, targets[0]))

    for number, maps, truth in zip(numbers[1:], features[1:], targets[1:], strict=True):
        readings = [policy(number, bank.prompted, bank.tracked, step=1) for bank in banks]
        decoded = decode_with_memory(model, maps, banks, readings)
        losses.append(
            segmentation_losses(
                decoded.logits.float(),
                decoded.ious.float(),
                decoded.object_scores.float(),
                truth[:, None],
                focal_weight=focal_weight,
            )
        )
        tracked = choose(model, told_who_is_there(decoded, truth))
        for bank, seen, memory in zip(
            banks, tracked, memory_maps(model, maps, tracked, is_prompted=False), strict=True
        ):
            bank.put(number, seen, memory, is_prompted=False)
        ious.append(_ious(tracked, truth))
    followed, is_visible = torch.stack(ious[1:]), targets[1:].flatten(2).any(-1)
    return losses, [float(ious[0].mean()), float(followed.sum() / is_visible.sum().clamp(min=1))]


def _frame_numbers(frames: int, generator: torch.Generator) -> list[int]:
    """Rising from 0, with gaps: a short clip would never reach what stands for the age of older memories."""
    gaps = torch.randint(1, MAX_GAP + 1, (frames - 1,), generator=generator)
    # Half of the clips are whole, as films are.
    if float(torch.rand((), generator=generator)) < 0.5:
        gaps = torch.ones_like(gaps)
    return [0, *gaps.cumsum(0).tolist()]


def _prompts(targets: Tensor, generator: torch.Generator) -> list[FramePrompt]:
    """One for each object of (objects, h, w)."""
    clicks = first_prompt(targets[None], generator)
    prompts = []
    for target, points, labels in zip(targets, clicks.points[0], clicks.labels[0], strict=True):
        if float(torch.rand((), generator=generator)) < MASK_PROMPTS:
            mask = target.repeat_interleave(MASK_STRIDE, 0).repeat_interleave(MASK_STRIDE, 1)
            prompts.append(FramePrompt(mask=mask))
        else:
            prompts.append(FramePrompt(points[labels != PADDING], labels[labels != PADDING]))
    return prompts


def told_who_is_there(decoded: DecodedMasks, truth: Tensor) -> DecodedMasks:
    """With the true presence in the place of the predicted one.

    What the tracker takes for absent it remembers as absent: a mask of nothing and a constant pointer. While the score
    is still wrong, that would cut the memory off from the mask it has to learn from.
    """
    is_present = truth.flatten(1).any(-1)[:, None, None]  # (objects, 1, 1)
    scores = torch.where(is_present, CERTAIN_LOGIT, -CERTAIN_LOGIT).to(decoded.object_scores.dtype)
    return replace(decoded, object_scores=scores)


def _losses_where_shown(shown: list[ObjectFrame], truth: Tensor, focal_weight: float) -> Losses:
    """Where an object is shown the masks are those of a picture, whose weights are frozen: only the score learns."""
    logits, ious, scores = (
        torch.stack([getattr(one, name) for one in shown])[:, None].float() for name in ("logits", "iou", "score")
    )
    return segmentation_losses(
        logits[:, None], ious[:, None], scores[..., None], truth[:, None], focal_weight=focal_weight
    )


def _ious(seen: list[ObjectFrame], truth: Tensor) -> Tensor:
    """(objects,)."""
    return mask_iou(torch.stack([one.logits.detach() for one in seen]) > 0, truth)
