"""What a prediction is told: focal and dice on masks, L1 on predicted IoU, cross-entropy on the object score.

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
    """Of each loss in what is minimised. The defaults are the papers'."""

    focal: float = 20.0
    """A network that knows nothing is invited by so much to call all background; 5 teaches it."""
    dice: float = 1.0
    iou: float = 1.0
    object_score: float = 1.0
    all_candidates: float = 0.0
    """How much of the lesson goes to all candidates alike, 0 to 1. The papers' 0 leaves the others far behind the best,
    and a small network, whose predicted scores tell them apart badly, then often shows one of those; 0.25 helps it."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            high, expected = (1.0, "from 0 to 1") if name == "all_candidates" else (sys.float_info.max, ">= 0")
            if not 0 <= value <= high:
                raise ConfigError(f"{name} of losses is {value!r}: expected a number {expected}")


@dataclass(frozen=True)
class Losses:
    """Means over objects, unweighted: scalars that gradients flow through.

    Objects that are absent count for the object score alone.
    """

    weights: LossWeights
    focal: Tensor
    dice: Tensor
    iou: Tensor
    object_score: Tensor

    @property
    def total(self) -> Tensor:
        """What is minimised."""
        return (
            self.weights.focal * self.focal
            + self.weights.dice * self.dice
            + self.weights.iou * self.iou
            + self.weights.object_score * self.object_score
        )


def segmentation_losses(
    logits: Tensor,
    ious: Tensor,
    object_scores: Tensor,
    targets: Tensor,
    *,
    weights: LossWeights,
    counts: Tensor | None = None,
) -> Losses:
    """Compare candidate masks with the truth; of several candidates the best is taught the mask most.

    Args:
        logits: (batch, objects, masks, h, w).
        ious: (batch, objects, masks), predicted, 0 to 1: all are taught, so that the best can be told.
        object_scores: (batch, objects, 1) logits.
        targets: (batch, objects, h, w), how much of each cell is object, 0 to 1; none where an object is absent.
        weights: Of each loss.
        counts: (batch, objects) bool: the objects whose masks and IoU are taught; all if None.
    """
    truth, cells = targets[:, :, None].to(logits.dtype).expand_as(logits), targets >= 0.5
    focal, dice = focal_loss(logits, truth), dice_loss(logits, truth)  # (batch, objects, masks)
    best = (weights.focal * focal + weights.dice * dice).argmin(-1, keepdim=True)
    is_present = cells.flatten(2).any(-1, keepdim=True)  # (batch, objects, 1)
    is_taught = (is_present if counts is None else is_present & counts[..., None]).to(logits.dtype)

    def mean(losses: Tensor) -> Tensor:
        return (losses.mean(-1, keepdim=True) * is_taught).sum() / is_taught.sum().clamp(min=1)

    def taught(losses: Tensor) -> Tensor:
        of_all = losses.mean(-1, keepdim=True)
        return losses.gather(-1, best).lerp(of_all, weights.all_candidates)

    return Losses(
        weights=weights,
        focal=mean(taught(focal)),
        dice=mean(taught(dice)),
        iou=mean((ious - mask_iou(logits > 0, cells[:, :, None])).abs()),
        object_score=F.binary_cross_entropy_with_logits(object_scores, is_present.to(logits.dtype)),
    )


def focal_loss(logits: Tensor, truth: Tensor, *, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Mean over pixels of cross-entropy, weighted down where the answer is already right.

    Args:
        logits: (..., h, w).
        truth: (..., h, w), 0 to 1: logits of less at the border say where in its cells it runs.
        alpha: Weight of object pixels; the others weigh ``1 - alpha``.
        gamma: How fast the weight falls with certainty.

    Returns:
        (...).

    Source: Focal loss (arXiv 1708.02002), equation 5.
    """
    entropy = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    wrongness = (torch.sigmoid(logits) - truth).abs()
    return ((alpha * truth + (1 - alpha) * (1 - truth)) * wrongness**gamma * entropy).mean((-2, -1))


def dice_loss(logits: Tensor, truth: Tensor) -> Tensor:
    """(..., h, w) logits and truth, 0 to 1, to (...): 1 - overlap, in which small objects count like large ones.

    Source: V-Net (arXiv 1606.04797), section 3, with 1 added to both sides as in SAM, so that nothing is divided by
    zero. Its squares make the truth the best answer in cells that are part object, too; SAM leaves them out.
    """
    probability = torch.sigmoid(logits)
    both = 2 * (probability * truth).sum((-2, -1))
    return 1 - (both + 1) / (probability.square().sum((-2, -1)) + truth.square().sum((-2, -1)) + 1)


def mask_iou(masks: Tensor, targets: Tensor) -> Tensor:
    """Intersection over union of bool masks (..., h, w) that broadcast; (...) float32, 0 where both are empty."""
    both = (masks & targets).sum((-2, -1), dtype=torch.float32)
    either = (masks | targets).sum((-2, -1), dtype=torch.float32)
    return both / either.clamp(min=1)
