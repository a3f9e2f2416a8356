"""COCO: annotations of instances, and data sets of one image."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from operator import index
from typing import TYPE_CHECKING, Any

from masklet.config import SizeHW
from masklet.masks import Rle, joined_ring, patch_polygons, patches
from masklet.results.exporters.classes import DEFAULT_NAME, Classes

if TYPE_CHECKING:
    from masklet.results.exports import MaskExports


def coco_instances(
    masks: MaskExports,
    classes: Classes,
    *,
    image_id: int = 1,
    category_id: int = 1,
    polygons: bool = False,
    tolerance: float = 0.0,
) -> list[dict[str, Any]]:
    """COCO instances, see ``Masks.to_coco``."""
    if tolerance and not polygons:
        raise ValueError(f"tolerance={tolerance:g} simplifies polygons, but run lengths are exact: pass polygons=True")
    segmentations = coco_polygons(masks, tolerance) if polygons else masks.to_rle()
    columns = (masks.boxes.tolist(), masks.areas.tolist(), masks.iou_scores.tolist(), masks.object_ids.tolist())
    return [
        coco_instance(
            number,
            segmentation,
            box,
            area=area,
            score=score,
            object_id=object_id,
            image_id=index(image_id),
            category_id=index(category_id) + class_number,
        )
        for number, (segmentation, class_number, box, area, score, object_id) in enumerate(
            zip(segmentations, classes.numbers, *columns, strict=True), 1
        )
        if segmentation  # an empty mask has no polygon, and pycocotools cannot read an empty list
    ]


def coco_polygons(masks: MaskExports, tolerance: float) -> Iterable[list[list[float]]]:
    """For each mask a list [x, y, x, y …] of each connected component, which contains its holes."""
    for patch in patches(masks.masks):
        polygons = patch_polygons(patch, tolerance=tolerance)
        yield [joined_ring(polygon.rings).ravel().tolist() for polygon in polygons]


def coco_instance(
    number: int,
    segmentation: Rle | list[list[float]],
    box: Sequence[float],
    *,
    area: int,
    score: float,
    object_id: int,
    image_id: int = 1,
    category_id: int = 1,
) -> dict[str, Any]:
    """One mask as a COCO instance, see ``Masks.to_coco``; ``box`` is x0 y0 x1 y1."""
    x0, y0, x1, y1 = box
    return {
        "id": number,
        "image_id": image_id,
        "category_id": category_id,
        "segmentation": segmentation,
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "area": area,
        "iscrowd": 0,
        "score": score,
        "object_id": object_id,
    }


def coco_data(
    instances: Sequence[Mapping[str, Any]],
    file_name: str | os.PathLike[str],
    size_hw: SizeHW,
    *,
    image_id: int = 1,
    category_id: int = 1,
    names: Sequence[str] = (DEFAULT_NAME,),
) -> dict[str, Any]:
    """A COCO data set of one image and its instances, which ``pycocotools.coco.COCO`` can open.

    Args:
        instances: As returned by ``coco_instances``.
        file_name: Name of the image.
        size_hw: Size of the image.
        image_id: As in ``instances``.
        category_id: Id of the first class.
        names: All classes.
    """
    height, width = size_hw
    return {
        "images": [{"id": index(image_id), "file_name": os.fspath(file_name), "width": width, "height": height}],
        "annotations": list(instances),
        "categories": [{"id": number, "name": name} for number, name in enumerate(names, index(category_id))],
    }


def stable_id(name: str) -> int:
    """An id that depends on a name only, so that later runs on the same folder do not change it."""
    return int.from_bytes(sha256(os.fsencode(name)).digest()[:6], "big")  # numbers in JSON are exact up to 53 bits
