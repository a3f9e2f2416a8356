"""Where an evaluation clicks: as far inside the object as one can."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def centre_click(mask: NDArray[np.bool_]) -> tuple[float, float]:
    """The place farthest from the border of a (height, width) mask, which must not be empty.

    Returns:
        (x, y) in pixels; the topmost, then leftmost such pixel.

    Source: SAM (arXiv 2304.02643), section 7.1.
    """
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    # The mask alone, so that a small object in a large picture costs little.
    inside = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    distances = squared_border_distances(inside)
    y, x = np.unravel_index(distances.argmax(), distances.shape)
    return float(columns[0] + x), float(rows[0] + y)


def squared_border_distances(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """(height, width) squared distances from each pixel to the nearest outside the mask; all around it is outside.

    Exact: the distance along the row first, then the best of all rows above and below (Felzenszwalb and Huttenlocher,
    "Distance transforms of sampled functions", section 2.1, by search).
    """
    along_row = _row_distances(mask) ** 2
    best = along_row.copy()
    padded = np.pad(along_row, ((1, 1), (0, 0)))
    for offset in range(1, len(padded)):
        if offset**2 >= best.max(initial=0):
            break
        above = padded[: max(0, len(mask) + 1 - offset)] + offset**2  # row r holds padded row r + 1
        best[offset - 1 :] = np.minimum(best[offset - 1 :], above)
        below = padded[offset + 1 :] + offset**2
        best[: len(below)] = np.minimum(best[: len(below)], below)
    return best


def _row_distances(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Pixels to the nearest one outside, left or right in the same row."""
    place = np.broadcast_to(np.arange(1, mask.shape[1] + 1), mask.shape)
    left = np.maximum.accumulate(np.where(mask, 0, place), axis=1)
    right = np.minimum.accumulate(np.where(mask, mask.shape[1] + 1, place)[:, ::-1], axis=1)[:, ::-1]
    return np.minimum(place - left, right - place)
