"""Simulated clicks: in the middle of the object, then in the middle of the largest error of its mask.

Points are pixels of the image, x right and y down.

Source: SAM (arXiv 2304.02643), section 7.1; SAM 2 (arXiv 2408.00714), section 6.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from masklet.masks import mask_boxes


@dataclass(frozen=True)
class Click:
    """A pixel, and whether it is foreground or background."""

    x: int
    y: int
    is_foreground: bool

    @property
    def point(self) -> tuple[int, int, int]:
        """(x, y, label), as ``predict`` and ``prompt`` take it."""
        return self.x, self.y, int(self.is_foreground)


def click_until(
    count: int, truth: NDArray[np.bool_], predict: Callable[[Click], NDArray[np.bool_]]
) -> Iterator[NDArray[np.bool_]]:
    """Yields the masks after 1 to ``count`` clicks, each of which corrects the previous mask.

    A mask that equals the truth is not clicked any more, and is yielded again.

    Args:
        count: Number of clicks.
        truth: (height, width), not empty: the object.
        predict: Takes the next click and returns the mask, (height, width), for all clicks so far.
    """
    mask = np.zeros_like(truth)
    for _ in range(count):
        if (click := next_click(mask, truth)) is not None:
            mask = predict(click)
        yield mask


def next_click(mask: NDArray[np.bool_], truth: NDArray[np.bool_]) -> Click | None:
    """The middle of the largest error region of a mask; for an empty mask, the middle of the object.

    The largest region is the one that contains the largest circle, and its middle is the circle's centre. Missed
    regions get a foreground click, surplus regions a background click. Of equal regions a missed one comes first.

    Args:
        mask: (height, width).
        truth: (height, width).

    Returns:
        The click, or None if the mask has no error.
    """
    missed, surplus = inner_pixel(truth & ~mask), inner_pixel(mask & ~truth)
    if missed.depth == surplus.depth == 0:
        return None
    if missed.depth >= surplus.depth:
        return Click(missed.x, missed.y, True)
    return Click(surplus.x, surplus.y, False)


@dataclass(frozen=True)
class InnerPixel:
    """A pixel of a mask and its squared distance to the nearest pixel outside the mask; 0 if the mask is empty."""

    x: int
    y: int
    depth: int


def inner_pixel(mask: NDArray[np.bool_]) -> InnerPixel:
    """The pixel farthest from the border of a (height, width) mask; of several, the topmost, then the leftmost."""
    # Crop to the mask, so that a small object in a large image costs little.
    x0, y0, x1, y1 = box_of(mask)
    if x0 == x1:
        return InnerPixel(0, 0, 0)
    depths = squared_border_distances(mask[y0:y1, x0:x1])
    y, x = np.unravel_index(depths.argmax(), depths.shape)
    return InnerPixel(x0 + int(x), y0 + int(y), int(depths[y, x]))


def squared_border_distances(mask: NDArray[np.bool_]) -> NDArray[np.int32]:
    """(height, width) squared distances from each pixel to the nearest one outside the mask.

    Everything beyond the array is outside. The distances are exact: along each row first, then the minimum over the
    rows above and below (Felzenszwalb and Huttenlocher, "Distance transforms of sampled functions", section 2.1, by
    search).
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


def _row_distances(mask: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Distance to the nearest pixel outside in the same row."""
    place = np.broadcast_to(np.arange(1, mask.shape[1] + 1, dtype=np.int32), mask.shape)
    left = np.maximum.accumulate(np.where(mask, 0, place), axis=1)
    right = np.minimum.accumulate(np.where(mask, mask.shape[1] + 1, place)[:, ::-1], axis=1)[:, ::-1]
    return np.minimum(place - left, right - place)


def box_of(mask: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """(x0, y0, x1, y1) around a (height, width) mask, edges in pixels; zeros if it is empty."""
    x0, y0, x1, y1 = mask_boxes(mask[None])[0].astype(int).tolist()
    return x0, y0, x1, y1
