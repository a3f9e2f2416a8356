"""Where an evaluation clicks: in the middle of the object, then in the middle of what is wrong with its mask.

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
    """A pixel, and whether it is on the object or beside it."""

    x: int
    y: int
    is_on_object: bool

    @property
    def point(self) -> tuple[int, int, int]:
        """(x, y, label), as ``predict`` and ``prompt`` take it."""
        return self.x, self.y, int(self.is_on_object)


def click_until(
    count: int, truth: NDArray[np.bool_], answer: Callable[[Click], NDArray[np.bool_]]
) -> Iterator[NDArray[np.bool_]]:
    """The masks that are shown after 1 to ``count`` clicks of somebody who corrects the mask before.

    Args:
        count: Of clicks.
        truth: (height, width), not empty: the object that is meant.
        answer: What is shown, (height, width), once this click was made as well. Where a mask is right to the pixel
            nothing more is clicked, and it stays.
    """
    shown = np.zeros_like(truth)
    for _ in range(count):
        if (click := next_click(shown, truth)) is not None:
            shown = answer(click)
        yield shown


def next_click(shown: NDArray[np.bool_], truth: NDArray[np.bool_]) -> Click | None:
    """The middle of the largest region where a mask is wrong; of an object that is not shown at all, its own.

    The largest is the one with room for the largest circle, and the middle is that circle's. What was missed is clicked
    as the object's and comes first of equals, what is too much is clicked as beside it.

    Args:
        shown: (height, width).
        truth: (height, width).

    Returns:
        The click, or None where nothing is wrong.
    """
    missed, too_much = inner_pixel(truth & ~shown), inner_pixel(shown & ~truth)
    if missed.depth == too_much.depth == 0:
        return None
    if missed.depth >= too_much.depth:
        return Click(missed.x, missed.y, True)
    return Click(too_much.x, too_much.y, False)


@dataclass(frozen=True)
class InnerPixel:
    """A pixel of a mask and its squared distance to the nearest one outside; 0 if the mask is empty."""

    x: int
    y: int
    depth: int


def inner_pixel(mask: NDArray[np.bool_]) -> InnerPixel:
    """The pixel farthest from the border of a (height, width) mask: the topmost, then leftmost of such."""
    # The mask alone, so that a small object in a large image costs little.
    x0, y0, x1, y1 = box_of(mask)
    if x0 == x1:
        return InnerPixel(0, 0, 0)
    depths = squared_border_distances(mask[y0:y1, x0:x1])
    y, x = np.unravel_index(depths.argmax(), depths.shape)
    return InnerPixel(x0 + int(x), y0 + int(y), int(depths[y, x]))


def squared_border_distances(mask: NDArray[np.bool_]) -> NDArray[np.int32]:
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


def _row_distances(mask: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Pixels to the nearest one outside, left or right in the same row."""
    place = np.broadcast_to(np.arange(1, mask.shape[1] + 1, dtype=np.int32), mask.shape)
    left = np.maximum.accumulate(np.where(mask, 0, place), axis=1)
    right = np.minimum.accumulate(np.where(mask, mask.shape[1] + 1, place)[:, ::-1], axis=1)[:, ::-1]
    return np.minimum(place - left, right - place)


def box_of(mask: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """(x0, y0, x1, y1) around a (height, width) mask, edges in pixels; zeros if it is empty."""
    x0, y0, x1, y1 = mask_boxes(mask[None])[0].astype(int).tolist()
    return x0, y0, x1, y1
