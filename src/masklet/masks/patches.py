"""Masks cropped to their boxes, so that work on a small mask of a large image stays small."""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from masklet.masks.boxes import mask_boxes
from masklet.masks.run_lengths import MaskStack, PackedMasks, Rle, crop_rle, encode_edges, encode_rle

PATCH_SHARE = 1 / 4
"""A patch up to this share of the image is encoded faster than the image."""


class Patch(NamedTuple):
    """The part of a mask inside its box."""

    place: tuple[slice, slice]
    """Rows and columns of the box in the image."""
    inside: np.ndarray
    """(rows, columns) bool; (0, 0) for an empty mask."""

    @property
    def corner_xy(self) -> tuple[int, int]:
        """The first pixel of the box."""
        rows, columns = self.place
        return columns.start, rows.start


def patches(masks: MaskStack, order: Sequence[int] | np.ndarray | None = None) -> Iterator[Patch]:
    """Crops masks to their boxes, in the given order of indices or all of them; holds one at a time in memory."""
    boxes = mask_boxes(masks).astype(int).tolist()
    for number in range(len(masks)) if order is None else order:
        x0, y0, x1, y1 = boxes[number]
        place = slice(y0, y1), slice(x0, x1)
        if isinstance(masks, PackedMasks):
            yield Patch(place, crop_rle(masks.runs[number], boxes[number]))
        else:
            yield Patch(place, masks[(number, *place)])


def union(masks: MaskStack) -> np.ndarray:
    """(height, width) bool: the pixels of any of the masks."""
    together = np.zeros(masks.shape[1:], bool)
    for patch in patches(masks):
        together[patch.place] |= patch.inside
    return together


def widened(patch: Patch, by_px: int, size_hw: tuple[int, int], *, least_beyond: int = 0) -> Patch:
    """Adds ``by_px`` empty pixels to each side of a patch, within an image of ``size_hw``.

    A side moves on to the image's border if fewer than ``least_beyond`` pixels would be left beyond it.
    """

    def extend(side: slice, length: int, across: int) -> slice:
        least_px = max(1, math.ceil(least_beyond / across))
        start, stop = side.start - by_px, side.stop + by_px
        return slice(start if start >= least_px else 0, stop if length - stop >= least_px else length)

    height, width = size_hw
    rows = extend(patch.place[0], height, width)
    columns = extend(patch.place[1], width, rows.stop - rows.start)
    margins = [
        (old.start - new.start, new.stop - old.stop) for old, new in zip(patch.place, (rows, columns), strict=True)
    ]
    return Patch((rows, columns), np.pad(patch.inside, margins))


def encode_patch(patch: Patch, size_hw: tuple[int, int]) -> Rle:
    """The RLE of the whole image, from a patch of it: without a bitmap of the image, which pycocotools would need."""
    (x0, y0), height = patch.corner_xy, size_hw[0]
    by_column = np.pad(patch.inside.T, ((0, 0), (1, 1)))
    columns, rows = np.nonzero(by_column[:, 1:] != by_column[:, :-1])
    return encode_edges((x0 + columns) * height + y0 + rows, size_hw)


def encode_masks(masks: np.ndarray) -> list[Rle]:
    """As ``encode_rle``, several times faster for masks that are small in their image."""
    size_hw = (masks.shape[1], masks.shape[2])
    largest = PATCH_SHARE * math.prod(size_hw)
    return [
        encode_patch(patch, size_hw) if patch.inside.size <= largest else encode_rle(mask[None])[0]
        for mask, patch in zip(masks, patches(masks), strict=True)
    ]
