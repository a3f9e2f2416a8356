"""How well a mask agrees with the truth: J, of what lies inside, and F, of where it ends.

Source: Perazzi et al., "A benchmark dataset and evaluation methodology for video object segmentation" (CVPR 2016),
section 5.
"""

from __future__ import annotations

from math import ceil, hypot, isqrt

import numpy as np
from numpy.typing import NDArray

from masklet.masks import mask_ious

TOLERANCE = 0.008
"""Share of the image's diagonal within which boundaries match."""


def region_j(mask: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    """J: intersection over union of two (height, width) masks; 1 where both are empty."""
    return float(mask_ious(mask[None], truth[None])[0, 0])


def boundary_f(mask: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    """F: harmonic mean of the shares of each boundary that lie near the other; 1 where neither mask has a boundary.

    Where only one has, what of the other's is missed or made up counts as such: 0.
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
    """Pixels of a (height, width) mask that differ from that to the right, below, or below to the right.

    Beyond the image nothing differs; so a mask of everything has no boundary.
    """
    padded = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
    edges = (mask != padded[:-1, 1:]) | (mask != padded[1:, :-1])
    # Inside, the diagonal one too; in the last row or column it would only repeat another.
    edges[:-1, :-1] |= mask[:-1, :-1] != mask[1:, 1:]
    return edges


def within(mask: NDArray[np.bool_], radius: int) -> NDArray[np.bool_]:
    """All pixels whose centre is at most ``radius`` pixels from that of one in the mask: dilation by a disk."""
    height, width = mask.shape
    # What lies left of a place, counted, tells by one comparison whether any run of its row is empty.
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
