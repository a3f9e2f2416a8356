"""Agreement of a mask with the truth: J compares regions, F compares boundaries.

Source: Perazzi et al., "A benchmark dataset and evaluation methodology for video object segmentation" (CVPR 2016),
section 5.
"""

from __future__ import annotations

from math import ceil, hypot, isqrt

import numpy as np
from numpy.typing import NDArray

from masklet.masks import mask_ious

TOLERANCE = 0.008
"""Boundaries match within this fraction of the image's diagonal."""


def region_j(mask: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    """J: intersection over union of two (height, width) masks; 1 where both are empty."""
    return float(mask_ious(mask[None], truth[None])[0, 0])


def boundary_f(mask: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    """F: harmonic mean of the precision and the recall of a mask's boundary; 1 if neither mask has a boundary.

    If only one of them has a boundary, F is 0.
    """
    tolerance_px = ceil(TOLERANCE * hypot(*mask.shape))
    drawn, real = boundary(mask), boundary(truth)
    drawn_count, real_count = np.count_nonzero(drawn), np.count_nonzero(real)
    if not drawn_count or not real_count:
        return float(drawn_count == real_count)
    precision = np.count_nonzero(drawn & within(real, tolerance_px)) / drawn_count
    recall = np.count_nonzero(real & within(drawn, tolerance_px)) / real_count
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def boundary(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels of a (height, width) mask that differ from the pixel to the right, below, or below to the right.

    The border of the image is no boundary, so a mask of the whole image has none.
    """
    padded = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
    edges = (mask != padded[:-1, 1:]) | (mask != padded[1:, :-1])
    # In the last row and column the diagonal pixel would repeat the other one.
    edges[:-1, :-1] |= mask[:-1, :-1] != mask[1:, 1:]
    return edges


def within(mask: NDArray[np.bool_], radius: int) -> NDArray[np.bool_]:
    """Dilates a mask by a disk: all pixels with a pixel of the mask at most ``radius`` pixels away."""
    height, width = mask.shape
    # Counts of mask pixels to the left: a run of a row is empty if the counts at its ends are equal.
    counts = np.zeros((height, width + 2 * radius + 1), np.int32)
    np.cumsum(np.pad(mask, ((0, 0), (radius, radius))), axis=1, out=counts[:, 1:])
    near = np.zeros_like(mask)
    for rows in range(min(radius + 1, height)):
        reach = isqrt(radius**2 - rows**2)
        left, right = radius - reach, radius + reach + 1
        in_row = counts[:, right : right + width] > counts[:, left : left + width]
        near[rows:] |= in_row[: height - rows]
        near[: height - rows] |= in_row[rows:]
    return near
