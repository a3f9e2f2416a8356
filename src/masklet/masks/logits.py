"""Logits on any device: upscaling, stability, and which mask owns a pixel.

torch is imported where it is needed, since arrays of masks are of use without it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from masklet.masks.patches import encode_masks
from masklet.masks.resizing import upscaled
from masklet.masks.run_lengths import MaskStack, PackedMasks, check_masks

if TYPE_CHECKING:
    from torch import Tensor

CHUNK_PIXELS = 2**22
"""Logits that are upscaled together, in pixels: 16 MB, which a CPU's allocator reuses, where 64 MB take twice as long.
One mask of any size is upscaled whole."""


def upscale_logits(logits: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """Low-resolution logits at the size of the image, where ``> 0`` makes them masks.

    Args:
        logits: (..., h, w), any float type.
        size_hw: Height and width of the result.

    Returns:
        (..., height, width) float32. Bilinear between pixel centres, without antialiasing.

    Source: SAM 2 reference, post-processing of the image predictor.
    """
    import torch.nn.functional as F

    h, w = logits.shape[-2:]
    larger = F.interpolate(logits.float().reshape(-1, 1, h, w), size_hw, mode="bilinear", align_corners=False)
    return larger.reshape(*logits.shape[:-2], *size_hw)


def masks_per_chunk(size_hw: tuple[int, int]) -> int:
    """How many masks of this size are upscaled together."""
    return max(1, CHUNK_PIXELS // (size_hw[0] * size_hw[1]))


def upscaled_chunks(logits: Tensor, size_hw: tuple[int, int]) -> Iterator[Tensor]:
    """As ``upscale_logits`` for (masks, h, w), in chunks of at most ``CHUNK_PIXELS``."""
    length = masks_per_chunk(size_hw)
    for start in range(0, len(logits), length):
        yield upscale_logits(logits[start : start + length], size_hw)


def upscaled_masks(logits: Tensor, size_hw: tuple[int, int]) -> Iterator[np.ndarray]:
    """(masks, h, w) logits to (masks, height, width) bool, in chunks of at most ``CHUNK_PIXELS``."""
    return ((chunk > 0).cpu().numpy() for chunk in upscaled_chunks(logits, size_hw))


def join_chunks(
    chunks: Iterable[np.ndarray], count: int, size_hw: tuple[int, int], *, packed: bool = False
) -> MaskStack:
    """Chunks of masks as one (count, height, width) bool, or packed, in the memory of the result and one chunk."""
    if packed:
        return PackedMasks([run for chunk in chunks for run in encode_masks(chunk)], size_hw)
    masks, start = np.empty((count, *size_hw), bool), 0
    for chunk in chunks:
        masks[start : start + len(chunk)] = chunk
        start += len(chunk)
    return masks


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
    import torch

    # The strict mask lies inside the loose one, so their IoU is a ratio of areas. Counted as integers: float32 would
    # lose single pixels beyond 2^24 of them. By rows first, which a CPU does several times faster in 32 bits.
    strict, loose = (
        (logits > cut_off).sum(-1, dtype=torch.int32).sum(-1) for cut_off in (threshold + offset, threshold - offset)
    )
    return torch.where(loose > 0, strict.float() / loose.clamp(min=1).float(), 1.0)


def without_overlap(masks: np.ndarray, logits: np.ndarray) -> np.ndarray:
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
        values = upscaled(np.asarray(low_res, np.float32), size_hw)
        wins = mask & (values > highest)
        highest[wins], owner[wins] = values[wins], i
    return owner == np.arange(len(masks))[:, None, None]
