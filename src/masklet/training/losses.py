"""Losses of predicted masks: focal and dice on masks, L1 on predicted IoU, cross-entropy on the object score.

Source: SAM (arXiv 2304.02643), appendix A, "losses" and "training algorithm"; SAM 2 (2408.00714), appendix D.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from masklet.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class LossWeights:
    """Weight of each loss in the total. The defaults are those of the papers."""

    focal: float = 20.0
    """Weight of the focal loss. At 20 an untrained network tends to predict background everywhere; 5 trains it."""
    dice: float = 1.0
    """Weight of the dice loss."""
    iou: float = 1.0
    """Weight of the L1 loss on predicted IoU."""
    object_score: float = 1.0
    """Weight of the cross-entropy on the object score."""
    all_candidates: float = 0.0
    """Share of the mask losses, 0 to 1, that is the mean over all candidates instead of the best one. With the papers'
    0 the other candidates stay far behind the best. A small network predicts IoU poorly and often selects one of
    those; 0.25 helps it."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            high, expected = (1.0, "from 0 to 1") if name == "all_candidates" else (sys.float_info.max, ">= 0")
            if not 0 <= value <= high:
                raise ConfigError(f"{name} of losses is {value!r}: expected a number {expected}")


@dataclass(frozen=True)
class Losses:
    """Unweighted means over objects: scalars with gradients. Absent objects contribute to the object score alone."""

    weights: LossWeights
    focal: Tensor
    dice: Tensor
    iou: Tensor
    object_score: Tensor

    @property
    def total(self) -> Tensor:
        """The weighted sum, which training minimises."""
        return (
            self.weights.focal * self.focal
            + self.weights.dice * self.dice
            + self.weights.iou * self.iou
            + self.weights.object_score * self.object_score
        )


@dataclass(frozen=True)
class ObjectLosses:
    """The losses of each object, (batch, objects) each, and which objects they count for."""

    focal: Tensor
    dice: Tensor
    iou: Tensor
    object_score: Tensor
    is_present: Tensor  # bool: absent objects contribute to the object score alone


def object_losses(
    logits: Tensor, ious: Tensor, object_scores: Tensor, targets: Tensor, *, weights: LossWeights
) -> ObjectLosses:
    """Compares candidate masks with the target. Mask losses apply to the best candidate, IoU losses to all of them.

    Args:
        logits: (batch, objects, masks, h, w).
        ious: (batch, objects, masks), predicted, 0 to 1.
        object_scores: (batch, objects, 1) logits.
        targets: (batch, objects, h, w), the share of each cell that the object covers, 0 to 1; 0 everywhere where an
            object is absent.
        weights: Weight of each loss.
    """
    truth, cells = targets[:, :, None].to(logits.dtype).expand_as(logits), targets >= 0.5
    focal, dice = focal_loss(logits, truth), dice_loss(logits, truth)  # (batch, objects, masks)
    best = (weights.focal * focal + weights.dice * dice).argmin(-1, keepdim=True)
    is_present = cells.flatten(2).any(-1)

    def of_best(losses: Tensor) -> Tensor:
        return losses.gather(-1, best).squeeze(-1).lerp(losses.mean(-1), weights.all_candidates)

    return ObjectLosses(
        focal=of_best(focal),
        dice=of_best(dice),
        iou=(ious - mask_iou(logits > 0, cells[:, :, None])).abs().mean(-1),
        object_score=F.binary_cross_entropy_with_logits(
            object_scores.squeeze(-1), is_present.to(logits.dtype), reduction="none"
        ),
        is_present=is_present,
    )


def segmentation_losses(
    logits: Tensor,
    ious: Tensor,
    object_scores: Tensor,
    targets: Tensor,
    *,
    weights: LossWeights,
    supervised: Tensor | None = None,
) -> Losses:
    """The means of ``object_losses`` over objects.

    Args:
        logits: As there, like the next four.
        ious: As there.
        object_scores: As there.
        targets: As there.
        weights: As there.
        supervised: (batch, objects) bool: objects whose masks and IoU count; all of them if None.
    """
    each = object_losses(logits, ious, object_scores, targets, weights=weights)
    counts = (each.is_present if supervised is None else each.is_present & supervised).to(logits.dtype)

    def mean(losses: Tensor) -> Tensor:
        return (losses * counts).sum() / counts.sum().clamp(min=1)

    return Losses(
        weights=weights,
        focal=mean(each.focal),
        dice=mean(each.dice),
        iou=mean(each.iou),
        object_score=each.object_score.mean(),
    )


def focal_loss(logits: Tensor, truth: Tensor, *, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Cross-entropy, averaged over pixels, that gives less weight to pixels that are already right.

    Args:
        logits: (..., h, w).
        truth: (..., h, w), 0 to 1: a fraction says how much of a border cell belongs to the object.
        alpha: Weight of object pixels; background pixels weigh ``1 - alpha``.
        gamma: How fast the weight of a pixel falls as its prediction improves.

    Returns:
        (...).

    Source: Focal loss (arXiv 1708.02002), equation 5.
    """
    entropy = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    error = (torch.sigmoid(logits) - truth).abs()
    return ((alpha * truth + (1 - alpha) * (1 - truth)) * error**gamma * entropy).mean((-2, -1))


def dice_loss(logits: Tensor, truth: Tensor) -> Tensor:
    """1 minus the overlap of (..., h, w) logits and truth, 0 to 1: (...). Small and large objects count alike.

    Source: V-Net (arXiv 1606.04797), section 3, with 1 added to numerator and denominator as in SAM, which avoids a
    division by zero. V-Net squares both terms of the denominator, which makes the truth optimal in partly covered cells
    too; SAM does not.
    """
    probability = torch.sigmoid(logits)
    both = 2 * (probability * truth).sum((-2, -1))
    return 1 - (both + 1) / (probability.square().sum((-2, -1)) + truth.square().sum((-2, -1)) + 1)


def mask_iou(masks: Tensor, targets: Tensor) -> Tensor:
    """Intersection over union of broadcastable bool masks (..., h, w): (...) float32, 0 where both are empty."""
    both = (masks & targets).sum((-2, -1), dtype=torch.float32)
    either = (masks | targets).sum((-2, -1), dtype=torch.float32)
    return both / either.clamp(min=1)
