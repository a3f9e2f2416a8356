"""GeoJSON (RFC 7946): outlines in map coordinates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from masklet.masks import Patch, patch_polygons, patches
from masklet.numbers import real_number

if TYPE_CHECKING:
    from masklet.results.exports import MaskExports

Affine: TypeAlias = Sequence[float]
"""a, b, c, d, e, f in rasterio's order: x' = a x + b y + c, y' = d x + e y + f."""


def geojson_collection(
    masks: MaskExports, transform: Affine | None, labels: Sequence[str] | None, tolerance: float
) -> dict[str, Any]:
    """A GeoJSON FeatureCollection, see ``Masks.to_geojson``."""
    affine = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0) if transform is None else read_affine(transform)
    columns = {"object_id": masks.object_ids.tolist(), "score": masks.iou_scores.tolist(), "area": masks.areas.tolist()}
    if labels is not None:
        columns["class"] = labels
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    features = [
        geojson_feature(patch, affine, properties, tolerance)
        for patch, properties in zip(patches(masks.masks), rows, strict=True)
    ]
    return {"type": "FeatureCollection", "features": features}


def geojson_feature(patch: Patch, affine: Affine, properties: dict[str, Any], tolerance: float) -> dict[str, Any]:
    """One mask as a GeoJSON Feature (RFC 7946): a Polygon, a MultiPolygon, or no geometry for an empty mask."""
    a, b, c, d, e, f = affine
    is_flipped = a * e - b * d < 0  # y up, as on maps: rings change their direction

    def ring(points_xy: np.ndarray) -> list[list[float]]:
        x, y = points_xy.astype(float).T
        with np.errstate(over="ignore", invalid="ignore"):
            ground_xy = np.stack([a * x + b * y + c, d * x + e * y + f], axis=1)
        if not np.isfinite(ground_xy).all():
            raise ValueError(f"transform {tuple(affine)} maps pixels beyond the largest number: expected a smaller one")
        if is_flipped:
            ground_xy = ground_xy[::-1]
        return [*ground_xy.tolist(), ground_xy[0].tolist()]

    # With 4 neighbours, since geographic software rejects rings that touch themselves.
    outlines = patch_polygons(patch, connectivity=4, tolerance=tolerance)
    polygons = [[ring(r) for r in polygon.rings] for polygon in outlines]
    geometry: dict[str, Any] | None
    match polygons:
        case []:
            geometry = None
        case [polygon]:
            geometry = {"type": "Polygon", "coordinates": polygon}
        case _:
            geometry = {"type": "MultiPolygon", "coordinates": polygons}
    return {"type": "Feature", "geometry": geometry, "properties": properties}


def read_affine(transform: Affine) -> tuple[float, ...]:
    """The six numbers of a transform, also from the nine that rasterio's ``Affine`` holds."""
    numbers = tuple(real_number("a number of the transform", number, ValueError) for number in transform)
    if len(numbers) not in (6, 9) or numbers[6:] not in ((), (0, 0, 1)):
        raise ValueError(f"transform is {numbers}: expected 6 numbers a, b, c, d, e, f, as rasterio orders them")
    a, b, _, d, e, _ = numbers[:6]
    if a * e == b * d:
        raise ValueError(f"transform {numbers[:6]} maps all pixels to one line: expected rasterio's order")
    return numbers[:6]
