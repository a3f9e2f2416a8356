"""Where automatic masks are searched: crops of the image, and a grid of points in each.

Source: SAM (arXiv 2304.02643), appendix B, "cropping".
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product

import numpy as np

from masklet.config import SizeHW
from masklet.errors import ImageError
from masklet.everything.options import EverythingOptions


@dataclass(frozen=True)
class Crop:
    """A window of the image that is encoded on its own; edges in pixels of the image."""

    layer: int
    """0 for the whole image."""
    x0: int
    y0: int
    x1: int
    y1: int

    @property
    def size_hw(self) -> SizeHW:
        """(height, width) in pixels of the image."""
        return self.y1 - self.y0, self.x1 - self.x0

    @property
    def place(self) -> tuple[slice, slice]:
        """Rows and columns of the image."""
        return slice(self.y0, self.y1), slice(self.x0, self.x1)

    @property
    def offset_xyxy(self) -> np.ndarray:
        """(4,) float32, to be added to boxes of the crop for boxes of the image."""
        return np.array([self.x0, self.y0, self.x0, self.y0], np.float32)


def make_crops(size_hw: SizeHW, options: EverythingOptions) -> list[Crop]:
    """The whole image, then the overlapping crops of each layer.

    Raises:
        ImageError: The image has too few pixels.
    """
    height, width = size_hw
    crops = [Crop(0, 0, 0, width, height)]
    for layer in range(1, options.crops + 1):
        count = 2**layer
        overlap = int(options.crop_overlap * min(size_hw) * 2 / count)
        crop_h, crop_w = (math.ceil((overlap * (count - 1) + side) / count) for side in size_hw)
        for column, row in product(range(count), range(count)):
            x0, y0 = (crop_w - overlap) * column, (crop_h - overlap) * row
            crops.append(Crop(layer, x0, y0, min(x0 + crop_w, width), min(y0 + crop_h, height)))
    if any(min(crop.size_hw) < 1 for crop in crops):
        raise ImageError(
            f"an image of {width}×{height} pixels cannot be cut into {2**options.crops} by {2**options.crops} crops: "
            f"expected fewer layers than crops={options.crops}, or a larger image"
        )
    return crops


def points_in_layer(options: EverythingOptions, layer: int) -> np.ndarray:
    """(points, 2) float32 x and y, 0 to 1, that are prompted in each crop of a layer."""
    if options.point_grids is None:
        return make_grid(options.points_in_layer(layer))
    return np.array(options.point_grids[layer], np.float32)


def make_grid(per_side: int) -> np.ndarray:
    """(per_side**2, 2) float32 x and y, 0 to 1: the centres of equal cells, row by row."""
    centres = (np.arange(per_side, dtype=np.float32) + np.float32(0.5)) / np.float32(per_side)
    return np.stack(np.meshgrid(centres, centres), axis=-1).reshape(-1, 2)
