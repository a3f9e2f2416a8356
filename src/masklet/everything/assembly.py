"""Automatic masks at the image's size, from the candidates that passed the filters. Runs without torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from masklet.config import SizeHW
from masklet.everything.filters import Candidates, distinct_after_cleaning, without_small_regions
from masklet.everything.grid import Crop
from masklet.everything.options import EverythingOptions
from masklet.masks import PackedMasks, Rle, encode_masks, mask_boxes
from masklet.results import Masks

Inside = Callable[[Any, SizeHW], np.ndarray]
"""Upscales (h, w) logits to a mask, (height, width) bool."""


def assemble(
    found: Candidates,
    crops: list[Crop],
    image: np.ndarray,
    options: EverythingOptions,
    *,
    inside: Inside,
    logits: np.ndarray | None,
) -> tuple[Masks, Candidates]:
    """The masks of an image and their candidates, without those that are duplicates after cleaning.

    Args:
        found: What passed the filters.
        crops: What ``found.crops`` points to.
        image: (height, width, 3) uint8 RGB.
        options: Options of cleaning.
        inside: Upscales the logits of a candidate.
        logits: (masks, h, w) of the whole image; None for run lengths without logits.
    """
    packed = logits is None
    stack, is_unchanged = _full_size(found, crops, (image.shape[0], image.shape[1]), options, inside, packed=packed)
    kept_logits = np.zeros((len(found), 0, 0), np.float32) if logits is None else logits
    if is_unchanged.all():
        return Masks(stack, kept_logits, found.iou_scores, np.arange(len(found)), image), found
    kept = distinct_after_cleaning(mask_boxes(stack), is_unchanged, options)
    masks = Masks(_only(stack, kept), kept_logits[kept], found.iou_scores[kept], np.arange(len(kept)), image)
    return masks, found[kept]


def _full_size(
    candidates: Candidates,
    crops: list[Crop],
    size_hw: SizeHW,
    options: EverythingOptions,
    inside: Inside,
    *,
    packed: bool,
) -> tuple[Any, np.ndarray]:
    """Masks at the image's size, one after the other, without small regions.

    Returns:
        (masks, height, width) bool, ``PackedMasks`` on request, and (masks,) bool: those that cleaning left unchanged.
    """
    stack = np.empty((0 if packed else len(candidates), *size_hw), bool)
    runs: list[Rle] = []
    is_unchanged = np.ones(len(candidates), bool)
    for i, (logits, index) in enumerate(zip(candidates.logits, candidates.crops, strict=True)):
        crop, mask = crops[index], np.zeros(size_hw, bool)
        mask[crop.place] = inside(logits, crop.size_hw)
        if options.min_area:
            cleaned = without_small_regions(mask, options)
            is_unchanged[i], mask = np.array_equal(cleaned, mask), cleaned
        if packed:
            runs += encode_masks(mask[None])
        else:
            stack[i] = mask
    return PackedMasks(runs, size_hw) if packed else stack, is_unchanged


def _only(stack: Any, kept: np.ndarray) -> Any:
    """The masks of these ascending indices, moved to the front of the stack's own memory if it is an array."""
    if isinstance(stack, PackedMasks):
        return stack[kept]
    for to, index in enumerate(kept):
        stack[to] = stack[index]
    return stack[: len(kept)]
