"""All masks of an image that is too large to be held: tile by tile, joined where tiles overlap.

What comes out are COCO instances, one after the other. Their run lengths are those of the whole image, made from
each mask's box, so no bitmap of the image's size is ever there: a mask takes about a byte for each column it crosses.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from masklet.config import SizeHW
from masklet.engine import Engine
from masklet.errors import ConfigError, ImageError
from masklet.everything.generator import Crop, Options, everything_packed
from masklet.images.reading import ImageSource
from masklet.images.windows import Windows, open_windows
from masklet.masks import (
    MaskStack,
    PackedMasks,
    Patch,
    Rle,
    encode_patch,
    join_rle,
    mask_areas,
    mask_boxes,
    patches,
    rle_ious,
)
from masklet.processing import Sam2ImageProcessor
from masklet.results.exporters import coco_instance

SAME_IOU = 0.5
"""Masks of neighbouring tiles are of one object if, where both tiles see it, their IoU is at least this."""
MAX_PIXELS = 2**31 - 1
"""COCO's tools count no further."""


@dataclass(eq=False)
class Object:
    """An object, as far as it has been seen; further tiles may add to it."""

    runs: list[Rle]
    """Its masks of several tiles, all of the image's size."""
    pixels: int
    """In these masks."""
    score: float
    """The mean over these pixels."""
    last_row: int
    """The last row of tiles that it was seen in."""
    other: Object | None = None
    """The object that this one turned out to be."""

    @property
    def whole(self) -> Object:
        """The object with all that it turned out to be."""
        whole = self
        while whole.other is not None:
            whole = whole.other
        return whole

    def join(self, other: Object) -> None:
        """Make one of two objects, or of one."""
        if other is self:
            return
        self.score = (self.score * self.pixels + other.score * other.pixels) / (self.pixels + other.pixels)
        self.pixels += other.pixels
        self.runs += other.runs
        self.last_row = max(self.last_row, other.last_row)
        other.other = self


@dataclass(frozen=True, eq=False)
class Tile:
    """What was found in a part of the image."""

    crop: Crop
    masks: MaskStack
    """Of the tile's size."""
    objects: list[Object]
    """One a mask."""

    def within(self, window: Crop) -> list[Rle]:
        """What of each mask lies in a part of the tile, as run lengths of that part."""
        top, left = window.y0 - self.crop.y0, window.x0 - self.crop.x0
        height, width = window.size_hw
        cut = []
        for (rows, columns), inside in patches(self.masks):
            y0, y1 = (min(max(edge - top, 0), height) for edge in (rows.start, rows.stop))
            x0, x1 = (min(max(edge - left, 0), width) for edge in (columns.start, columns.stop))
            y, x = rows.start - top, columns.start - left
            part = inside[y0 - y : y1 - y, x0 - x : x1 - x]
            cut.append(encode_patch(Patch((slice(y0, y1), slice(x0, x1)), part), window.size_hw))
        return cut


def everything_tiled(
    engine: Engine,
    image_processor: Sam2ImageProcessor,
    source: ImageSource,
    options: Options,
    *,
    tile: int,
    overlap: int | None,
) -> Iterator[dict[str, Any]]:
    """All masks of a large image, see ``Segmenter.everything``.

    Args:
        engine: Runs the network.
        image_processor: Makes the network's input of each tile.
        source: As ``open_windows`` takes it.
        options: What to look for in each tile.
        tile: Its side, in pixels.
        overlap: Pixels by which neighbours overlap at least; an eighth of ``tile`` if None.

    Returns:
        COCO instances, each as soon as no further tile can add to it.

    Raises:
        ImageError: It is no image, or has more pixels than COCO's tools can count.
        ConfigError: Tiles that make no sense.
    """
    if not isinstance(tile, int | np.integer) or tile < 16:
        raise ConfigError(f"tile is {tile!r}: expected 16 pixels or more, or None to look at the whole image at once")
    overlap = tile // 8 if overlap is None else overlap
    if not isinstance(overlap, int | np.integer) or not 0 < overlap <= tile // 2:
        raise ConfigError(f"overlap is {overlap!r}: expected 1 to {tile // 2} pixels, half of tile={tile}")
    image = open_windows(source)
    height, width = image.size_hw
    if height * width > MAX_PIXELS:
        raise ImageError(
            f"the image has {width}×{height} pixels: expected {MAX_PIXELS} at most, as COCO's run lengths end there. "
            "Cut it into parts"
        )
    return look_and_join(engine, image_processor, image, options, make_tiles(image.size_hw, tile, overlap))


def make_tiles(size_hw: SizeHW, tile: int, overlap: int) -> list[list[Crop]]:
    """Rows of tiles, all of one size, that cover the image and overlap evenly; one where the image is smaller."""

    def starts(side: int) -> list[int]:
        count = max(1, math.ceil((side - overlap) / (tile - overlap)))
        return np.linspace(0, max(0, side - tile), count).round().astype(int).tolist()

    height, width = size_hw
    return [
        [Crop(0, x0, y0, min(x0 + tile, width), min(y0 + tile, height)) for x0 in starts(width)]
        for y0 in starts(height)
    ]


def look_and_join(
    engine: Engine, image_processor: Sam2ImageProcessor, image: Windows, options: Options, rows: list[list[Crop]]
) -> Iterator[dict[str, Any]]:
    """Tile after tile, row by row. What is held are the tiles of two rows, and the objects that reach into the last."""
    growing: list[Object] = []
    above: list[Tile] = []
    count = 0
    for number, row in enumerate(rows):
        tiles: list[Tile] = []
        for column, crop in enumerate(row):
            tile = look(engine, image_processor, image, crop, options, number)
            for neighbour in (*tiles[-1:], *above[column : column + 1]):
                join(neighbour, tile)
            growing += tile.objects
            tiles.append(tile)
        above = tiles
        seen = [one for one in growing if one.other is None]
        growing = [one for one in seen if one.last_row == number and number + 1 < len(rows)]
        for one in (one for one in seen if one.last_row < number or number + 1 == len(rows)):
            yield instance(one, count, image.size_hw)
            count += 1


def look(
    engine: Engine, image_processor: Sam2ImageProcessor, image: Windows, crop: Crop, options: Options, row: int
) -> Tile:
    """Find everything in one tile, of this row."""
    pixels = image[crop.y0 : crop.y1, crop.x0 : crop.x1]
    found = everything_packed(engine, image_processor, pixels, options)
    objects = []
    for ((rows, columns), inside), score in zip(patches(found.masks), found.iou_scores.tolist(), strict=True):
        place = slice(rows.start + crop.y0, rows.stop + crop.y0), slice(columns.start + crop.x0, columns.stop + crop.x0)
        objects.append(Object([encode_patch(Patch(place, inside), image.size_hw)], int(inside.sum()), score, row))
    return Tile(crop, found.masks, objects)


def join(first: Tile, second: Tile) -> None:
    """Make one object of masks that agree where both tiles see them, each with one of the other at most."""
    a, b = first.crop, second.crop
    window = Crop(0, max(a.x0, b.x0), max(a.y0, b.y0), min(a.x1, b.x1), min(a.y1, b.y1))
    ious = rle_ious(first.within(window), second.within(window))
    while ious.max(initial=0) >= SAME_IOU:
        i, j = np.unravel_index(ious.argmax(), ious.shape)
        ious[i], ious[:, j] = 0, 0
        first.objects[i].whole.join(second.objects[j].whole)


def instance(one: Object, number: int, size_hw: SizeHW) -> dict[str, Any]:
    """An object as ``Masks.to_coco`` makes it."""
    mask = PackedMasks([join_rle(one.runs)], size_hw)
    (box,), (area,) = mask_boxes(mask).tolist(), mask_areas(mask).tolist()
    return coco_instance(number + 1, mask.runs[0], box, area=area, score=one.score, object_id=number)
