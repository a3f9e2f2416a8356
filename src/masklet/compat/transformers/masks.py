"""The model's logits to masks of the images' sizes."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from masklet.config import SizeHW
from masklet.masks import clean_masks, masks_per_chunk

Binarize = Callable[[Tensor], Tensor]


def masks_of_size(logits: Tensor, size_hw: SizeHW, binarize: Binarize | None, *, may_overlap: bool) -> Tensor:
    """Masks of one image, or their logits.

    Args:
        logits: (objects, masks, h, w).
        size_hw: Size of the image.
        binarize: (..., height, width) logits to masks; None returns the logits, in their own type.
        may_overlap: False lowers all logits of a pixel but the highest object's to -10 or less.

    Returns:
        (objects, masks, height, width).
    """
    if may_overlap and binarize is not None:
        return _masks_in_chunks(logits, size_hw, binarize)
    upscaled = _upscale(logits, size_hw)
    if not may_overlap:
        upscaled = without_overlap(upscaled)
    return upscaled if binarize is None else binarize(upscaled)


def without_overlap(logits: Tensor) -> Tensor:
    """(objects, masks, height, width): lowers all logits of a pixel but the highest object's to -10 or less."""
    if len(logits) < 2:
        return logits
    is_highest = logits.argmax(0, keepdim=True) == torch.arange(len(logits), device=logits.device).view(-1, 1, 1, 1)
    return torch.where(is_highest, logits, logits.clamp(max=-10.0))


def clean_masks_above(logits: Tensor, threshold: float, *, max_hole_area: float, max_sprinkle_area: float) -> Tensor:
    """(..., height, width) to bool. Holes and islands of fewer pixels than these are filled and removed."""
    masks = logits > threshold
    if not max_hole_area and not max_sprinkle_area:
        return masks
    flat = masks.flatten(0, -3).cpu().numpy()
    cleaned = clean_masks(flat, fill_holes=math.ceil(max_hole_area), remove_islands=math.ceil(max_sprinkle_area))
    return torch.from_numpy(cleaned).view(masks.shape).to(masks.device)


def _masks_in_chunks(logits: Tensor, size_hw: SizeHW, binarize: Binarize) -> Tensor:
    """As ``masks_of_size``, in the memory of the result and the logits of one chunk."""
    masks = torch.empty(*logits.shape[:2], *size_hw, dtype=torch.bool, device=logits.device)
    length = masks_per_chunk(size_hw)
    for chunk, found in zip(logits.flatten(0, 1).split(length), masks.flatten(0, 1).split(length), strict=True):
        found.copy_(binarize(_upscale(chunk[:, None], size_hw)[:, 0]))
    return masks


def _upscale(logits: Tensor, size_hw: SizeHW) -> Tensor:
    """Upscale logits in their own type, as in transformers."""
    return F.interpolate(logits, size=size_hw, mode="bilinear", align_corners=False)
