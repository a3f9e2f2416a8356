"""An image of the best and the worst objects of an evaluation, since means hide failures."""

from __future__ import annotations

from bisect import bisect
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from masklet.evaluation.clicks import box_of
from masklet.results.visualisation import grow

COLUMNS, TILE_PX, CAPTION_PX, GAP_PX = 8, 240, 34, 6
MARGIN = 0.2
"""Margin around an object and its mask, as a fraction of their longer side."""
TRUTH_COLOUR, MASK_COLOUR = (60, 230, 110), (255, 40, 150)
BACKGROUND_COLOUR, TEXT_COLOUR = (24, 24, 28), (235, 235, 235)


@dataclass
class Extremes:
    """The best and the worst of the added objects, a row of each."""

    scores: list[float] = field(default_factory=list)  # ascending
    tiles: list[Image.Image] = field(default_factory=list)  # in the order of their scores

    def add(
        self,
        name: str,
        score: float,
        image: NDArray[np.uint8],
        truth: NDArray[np.bool_],
        mask: NDArray[np.bool_],
    ) -> None:
        """Adds an object.

        Args:
            name: The caption. Of objects with equal scores the earlier one counts as worse.
            score: From 0 to 1.
            image: (height, width, 3) RGB.
            truth: (height, width).
            mask: (height, width), the predicted mask.
        """
        index = bisect(self.scores, score)
        self.scores.insert(index, score)
        self.tiles.insert(index, draw_tile(f"{name}\n{score:.3f}", image, truth, mask))
        if len(self.scores) > 2 * COLUMNS:  # the middle one is neither among the best nor among the worst
            del self.scores[COLUMNS], self.tiles[COLUMNS]

    def draw(self, title: str) -> Image.Image:
        """Draws all tiles from the best to the worst, row by row."""
        rows = max(1, -(-len(self.tiles) // COLUMNS))
        step_x, step_y = TILE_PX + GAP_PX, TILE_PX + CAPTION_PX + GAP_PX
        grid = Image.new("RGB", (COLUMNS * step_x + GAP_PX, rows * step_y + CAPTION_PX), BACKGROUND_COLOUR)
        pen, font = ImageDraw.Draw(grid), ImageFont.load_default(16)
        x: float = GAP_PX
        for text, colour in ((f"{title}, best to worst", TEXT_COLOUR), ("truth", TRUTH_COLOUR), ("mask", MASK_COLOUR)):
            pen.text((x, GAP_PX), text, colour, font)
            x += pen.textlength(text, font) + 20
        for index, tile in enumerate(reversed(self.tiles)):
            row, column = divmod(index, COLUMNS)
            grid.paste(tile, (GAP_PX + column * step_x, CAPTION_PX + row * step_y))
        return grid


def draw_tile(caption: str, image: NDArray[np.uint8], truth: NDArray[np.bool_], mask: NDArray[np.bool_]) -> Image.Image:
    """Crops the image around an object and draws a broad contour of the truth and a thin one of the mask."""
    x0, y0, x1, y1 = around(truth | mask)
    crop = Image.fromarray(image[y0:y1, x0:x1])
    scale = TILE_PX / max(crop.size)
    size = max(1, round(crop.width * scale)), max(1, round(crop.height * scale))
    pixels = np.array(crop.resize(size))
    for region, line_px, colour in ((truth, 3, TRUTH_COLOUR), (mask, 1, MASK_COLOUR)):
        inside = np.asarray(Image.fromarray(region[y0:y1, x0:x1]).resize(size, Image.Resampling.NEAREST))
        pixels[inside & grow(~inside, line_px)] = colour
    tile = Image.new("RGB", (TILE_PX, TILE_PX + CAPTION_PX), BACKGROUND_COLOUR)
    tile.paste(Image.fromarray(pixels), ((TILE_PX - size[0]) // 2, (TILE_PX - size[1]) // 2))
    ImageDraw.Draw(tile).text((2, TILE_PX + 2), caption, TEXT_COLOUR, ImageFont.load_default(12), spacing=2)
    return tile


def around(mask: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """(x0, y0, x1, y1) of a square around a mask, clipped to the image; the whole image if the mask is empty."""
    height, width = mask.shape
    if not mask.any():
        return 0, 0, width, height
    x0, y0, x1, y1 = box_of(mask)
    side = round(max(x1 - x0, y1 - y0) * (1 + 2 * MARGIN)) + 2
    left, top = (x0 + x1 - side) // 2, (y0 + y1 - side) // 2
    return max(0, left), max(0, top), min(width, left + side), min(height, top + side)
