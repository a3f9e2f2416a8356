"""All masks of an image that does not fit in memory: tile by tile, with the masks of an object joined across tiles.

The results are COCO instances, yielded one at a time. Their run lengths are of the whole image and are made from the
box of each mask, so no bitmap of the image's size exists: a mask takes about one byte for each column that it crosses.
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
from masklet.everything.generator import everything
from masklet.everything.grid import Crop
from masklet.everything.options import EverythingOptions
from masklet.images.options import DEFAULT, ImageOptions
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
from masklet.numbers import MAX_PIXELS, whole_number
from masklet.processing import ImageProcessor
from masklet.results.exporters import coco_instance

SAME_IOU = 0.5
"""Masks of neighbouring tiles belong to one object if their IoU in the overlap of the tiles is at least this."""
MIN_TILE = 16
"""In pixels."""


@dataclass(eq=False)
class TiledObject:
    """An object as the tiles so far contain it; further tiles may add to it."""

    runs: list[Rle]
    """Its masks in each tile, with the image's size."""
    pixels: int
    """Area of these masks."""
    score: float
    """Mean of the predicted IoU over these pixels."""
    last_row: int
    """The last row of tiles that contains it."""
    joined_to: TiledObject | None = None
    """The object that this one was joined to, if any."""

    @property
    def whole(self) -> TiledObject:
        """The object that this one has become a part of, or itself."""
        whole = self
        while whole.joined_to is not None:
            whole = whole.joined_to
        return whole

    def join(self, other: TiledObject) -> None:
        """Adds the masks of another object to this one."""
        if other is self:
            return
        self.score = (self.score * self.pixels + other.score * other.pixels) / (self.pixels + other.pixels)
        self.pixels += other.pixels
        self.runs += other.runs
        self.last_row = max(self.last_row, other.last_row)
        other.joined_to = self


@dataclass(frozen=True, eq=False)
class Tile:
    """A tile and its masks."""

    crop: Crop
    masks: MaskStack
    """Masks of the tile's size."""
    objects: list[TiledObject]
    """The object of each mask."""

    def within(self, window: Crop) -> list[Rle]:
        """The part of each mask in a window of the tile, as run lengths of the window's size."""
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
    image_processor: ImageProcessor,
    source: ImageSource,
    options: EverythingOptions,
    *,
    tile: int,
    overlap: int | None,
    image_options: ImageOptions = DEFAULT,
) -> Iterator[dict[str, Any]]:
    """Finds all masks of a large image, see ``Segmenter.everything_tiled``.

    Args:
        engine: Runs the network.
        image_processor: Prepares each tile for the network.
        source: As in ``open_windows``.
        options: Options of the masks in each tile.
        tile: Side of a tile, in pixels.
        overlap: Least overlap of neighbouring tiles, in pixels; an eighth of ``tile`` if None.
        image_options: How the values of the image are read; all tiles share one range.

    Returns:
        COCO instances, each yielded as soon as no further tile can add to it.

    Raises:
        ImageError: It is not an image, or has more pixels than COCO's tools can count.
        ConfigError: ``tile`` or ``overlap`` is invalid.
    """
    tile = whole_number("tile", tile, ConfigError, least=MIN_TILE)
    overlap = whole_number("overlap", tile // 8 if overlap is None else overlap, ConfigError)
    if not 0 < overlap <= tile // 2:
        raise ConfigError(f"overlap is {overlap}: expected 1 to {tile // 2} pixels, half of tile={tile}")
    image = open_windows(source, image_options)
    height, width = image.size_hw
    if height * width > MAX_PIXELS:
        raise ImageError(
            f"the image has {width}×{height} pixels: expected {MAX_PIXELS} at most, the limit of COCO's run lengths. "
            "Cut it into parts"
        )
    return _instances(engine, image_processor, image, options, make_tiles(image.size_hw, tile, overlap))


def make_tiles(size_hw: SizeHW, tile: int, overlap: int) -> list[list[Crop]]:
    """Rows of tiles of equal size that cover the image and overlap evenly; a smaller image is one tile."""

    def starts(side: int) -> list[int]:
        count = max(1, math.ceil((side - overlap) / (tile - overlap)))
        return np.linspace(0, max(0, side - tile), count).round().astype(int).tolist()

    height, width = size_hw
    return [
        [Crop(0, x0, y0, min(x0 + tile, width), min(y0 + tile, height)) for x0 in starts(width)]
        for y0 in starts(height)
    ]


def _instances(
    engine: Engine,
    image_processor: ImageProcessor,
    image: Windows,
    options: EverythingOptions,
    rows: list[list[Crop]],
) -> Iterator[dict[str, Any]]:
    """Goes through the tiles row by row. Holds the tiles of two rows, and the objects that reach the last of them."""
    growing: list[TiledObject] = []
    above: list[Tile] = []
    count = 0
    for number, row in enumerate(rows):
        tiles: list[Tile] = []
        for column, crop in enumerate(row):
            tile = find_in_tile(engine, image_processor, image, crop, options, number)
            for neighbour in (*tiles[-1:], *above[column : column + 1]):
                join_tiles(neighbour, tile)
            growing += tile.objects
            tiles.append(tile)
        above = tiles
        objects = [one for one in growing if one.joined_to is None]
        is_last = number + 1 == len(rows)
        growing = [one for one in objects if one.last_row == number and not is_last]
        for one in (one for one in objects if one.last_row < number or is_last):
            yield coco_instance_of(one, count, image.size_hw)
            count += 1


def find_in_tile(
    engine: Engine,
    image_processor: ImageProcessor,
    image: Windows,
    crop: Crop,
    options: EverythingOptions,
    row: int,
) -> Tile:
    """Finds all masks of one tile, which lies in this row of tiles."""
    found = everything(engine, image_processor, image[crop.place], options, packed=True)
    objects = []
    for ((rows, columns), inside), score in zip(patches(found.masks), found.iou_scores.tolist(), strict=True):
        place = slice(rows.start + crop.y0, rows.stop + crop.y0), slice(columns.start + crop.x0, columns.stop + crop.x0)
        run = encode_patch(Patch(place, inside), image.size_hw)
        objects.append(TiledObject([run], int(inside.sum()), score, row))
    return Tile(crop, found.masks, objects)


def join_tiles(first: Tile, second: Tile) -> None:
    """Joins the objects of masks that agree in the overlap of two tiles. A mask is joined to one mask at most."""
    a, b = first.crop, second.crop
    window = Crop(0, max(a.x0, b.x0), max(a.y0, b.y0), min(a.x1, b.x1), min(a.y1, b.y1))
    ious = rle_ious(first.within(window), second.within(window))
    while ious.max(initial=0) >= SAME_IOU:
        i, j = np.unravel_index(ious.argmax(), ious.shape)
        ious[i], ious[:, j] = 0, 0
        first.objects[i].whole.join(second.objects[j].whole)


def coco_instance_of(one: TiledObject, number: int, size_hw: SizeHW) -> dict[str, Any]:
    """An object as ``Masks.to_coco`` writes it."""
    mask = PackedMasks([join_rle(one.runs)], size_hw)
    (box,), (area,) = mask_boxes(mask).tolist(), mask_areas(mask).tolist()
    return coco_instance(number + 1, mask.runs[0], box, area=area, score=one.score, object_id=number)
