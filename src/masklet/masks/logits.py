"""Logits on any device: upscaling, stability, and which mask owns a pixel."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from masklet.masks.run_lengths import check_masks


def upscale_logits(logits: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """Low-resolution logits at the size of the image, where ``> 0`` makes them masks.

    Args:
        logits: (..., h, w), any float type.
        size_hw: Height and width of the result.

    Returns:
        (..., height, width) float32. Bilinear between pixel centres, without antialiasing.

    Source: SAM 2 reference, post-processing of the image predictor.
    """
    h, w = logits.shape[-2:]
    upscaled = F.interpolate(logits.float().reshape(-1, 1, h, w), size_hw, mode="bilinear", align_corners=False)
    return upscaled.reshape(*logits.shape[:-2], *size_hw)


def stability_scores(logits: Tensor, *, threshold: float = 0.0, offset: float = 1.0) -> Tensor:
    """How little each mask changes when its cut-off moves by ``offset`` either way.

    Args:
        logits: (..., height, width), before the sigmoid.
        threshold: Logit above which a pixel is inside.
        offset: Distance from ``threshold`` to the strict and to the loose cut-off, in logits.

    Returns:
        (...) float32 in [0, 1]. A mask that is empty at both cut-offs scores 1.

    Raises:
        ValueError: ``offset`` is negative.

    Source: SAM (arXiv 2304.02643), appendix B, filtering of automatic masks.
    """
    if offset < 0:
        raise ValueError(f"offset must be >= 0 logits, got {offset}")
    # The strict mask lies inside the loose one, so their IoU is a ratio of areas. Counted as integers: float32 would
    # lose single pixels beyond 2^24 of them. By rows first, which a CPU does several times faster in 32 bits.
    strict, loose = (
        (logits > cut_off).sum(-1, dtype=torch.int32).sum(-1) for cut_off in (threshold + offset, threshold - offset)
    )
    return torch.where(loose > 0, strict / loose.clamp(min=1), 1.0).float()


def without_overlap(masks: np.ndarray, logits: Tensor) -> np.ndarray:
    """Assigns each pixel to at most one mask: of the masks that contain it, the one with the highest logit.

    Args:
        masks: (masks, height, width) bool.
        logits: (masks, h, w), of any size: they are upscaled to the size of the masks.

    Returns:
        A new (masks, height, width) bool. Of equal logits the first mask wins. A mask that has the highest logit
        nowhere becomes empty.
    """
    check_masks(masks)
    size_hw = (masks.shape[1], masks.shape[2])
    highest, owner = np.full(size_hw, -np.inf, np.float32), np.full(size_hw, -1)
    # One at a time: the logits of hundreds of masks at the image's size would not fit in memory.
    for i, (mask, low_res) in enumerate(zip(masks, logits, strict=True)):
        values = upscale_logits(low_res, size_hw).cpu().numpy()
        wins = mask & (values > highest)
        highest[wins], owner[wins] = values[wins], i
    return owner == np.arange(len(masks))[:, None, None]
