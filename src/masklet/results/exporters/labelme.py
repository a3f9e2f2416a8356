"""labelme: a JSON file beside an image."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from masklet.masks import Patch, Polygon, joined_ring, mask_polygons, patches

if TYPE_CHECKING:
    from masklet.results.exports import MaskExports


def labelme_page(
    masks: MaskExports,
    image_path: str | os.PathLike[str],
    labels: Sequence[str],
    *,
    polygons: bool,
    tolerance: float,
) -> dict[str, Any]:
    """A labelme file, see ``Masks.to_labelme``."""
    height, width = masks.size_hw
    shapes = [
        shape
        for patch, label, object_id in zip(patches(masks.masks), labels, masks.object_ids.tolist(), strict=True)
        for shape in labelme_shapes(patch, label, object_id, polygons, tolerance)
    ]
    return {
        "version": "5.5.0",
        "flags": {},
        "shapes": shapes,
        "imagePath": os.fspath(image_path),
        "imageData": None,
        "imageHeight": height,
        "imageWidth": width,
    }


def labelme_shapes(
    patch: Patch, label: str, group_id: int, polygons: bool, tolerance: float
) -> Iterator[dict[str, Any]]:
    """One labelme shape for each connected component: a polygon, or an exact mask if it has holes."""
    exact = mask_polygons(patch.inside)
    simplified = mask_polygons(patch.inside, tolerance=tolerance) if tolerance else exact
    for polygon, outline in zip(exact, simplified, strict=True):
        shape = {"label": label, "group_id": group_id, "description": "", "flags": {}}
        if polygons or not polygon.holes:
            points = (joined_ring(outline.rings) + patch.corner_xy).tolist()
            yield {**shape, "shape_type": "polygon", "points": points, "mask": None}
            continue
        first_xy, end_xy = polygon.exterior.min(0).astype(int), polygon.exterior.max(0).astype(int)
        (x0, y0), (x1, y1) = first_xy, end_xy
        file = io.BytesIO()
        Image.fromarray(fill(polygon, patch.inside.shape)[y0:y1, x0:x1]).save(file, "PNG")
        corners_xy = np.stack([first_xy, end_xy - 1]) + patch.corner_xy  # the first and the last pixel
        yield {
            **shape,
            "shape_type": "mask",
            "points": corners_xy.astype(float).tolist(),
            "mask": base64.b64encode(file.getvalue()).decode("ascii"),
        }


def fill(polygon: Polygon, shape: tuple[int, ...]) -> np.ndarray:
    """(height, width) bool: the pixels inside a polygon whose points are corners of pixels."""
    walls = np.zeros((shape[0] + 1, shape[1] + 1), bool)
    for points_xy in polygon.rings:
        x, y = points_xy.astype(int).T
        for column, start, end in zip(x, y, np.roll(y, -1), strict=True):
            walls[min(start, end) : max(start, end), column] ^= True  # horizontal edges are empty ranges
    return np.logical_xor.accumulate(walls, axis=1)[:-1, :-1]
