"""Masks in other formats: files, plain dicts, text, and other packages' classes.

Coordinates are pixels of the image, x right and y down, along the edges of pixels: the first pixel spans 0 to 1.
"""

from __future__ import annotations

import base64
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from PIL import Image

from masklet.atomic import replacing
from masklet.config import SizeHW
from masklet.masks import MaskStack, PackedMasks, Patch, Polygon, Rle, mask_polygons, patch_polygons, patches, union
from masklet.results.visualisation import colour_of

if TYPE_CHECKING:
    from masklet.results.masks import Masks

Affine: TypeAlias = Sequence[float]
"""a, b, c, d, e, f in rasterio's order: x' = a x + b y + c, y' = d x + e y + f."""
SUFFIXES = (".png", ".npz", ".json", ".svg")


# Files


def save_masks(masks: Masks, path: Path, *, by_object: bool) -> None:
    """Writes masks in the format of the suffix, see ``Masks.save``."""
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(f"masks are saved as .png, .npz, .json or .svg, not as {path.name!r}")
    if by_object and suffix != ".png":
        raise ValueError(f"by_object sets the pixels of a .png: it does not apply to {path.name!r}")
    if suffix == ".npz" and isinstance(masks.masks, PackedMasks):
        raise ValueError(f"packed masks are saved as .png, .json or .svg: {path.name!r} would store every pixel")
    with replacing(path) as unfinished:
        if suffix == ".png":
            index_map(masks, by_object=by_object).save(unfinished, format="PNG")
        elif suffix == ".npz":
            arrays = {name: getattr(masks, name) for name in ("masks", "logits", "iou_scores", "object_ids")}
            with unfinished.open("wb") as file:  # numpy would append .npz to a name that ends in .NPZ
                np.savez_compressed(file, **arrays)
        else:
            text = json.dumps(coco_instances(masks)) if suffix == ".json" else svg_text(masks)
            unfinished.write_text(text, encoding="utf-8")


def index_map(masks: Masks, *, by_object: bool) -> Image.Image:
    """All masks in one image, see ``Masks.index_map``."""
    if by_object:
        return index_image(masks.masks, masks.object_ids + 1, masks.iou_scores, colour_of(np.arange(255)))
    if len(masks) < 2:
        return Image.fromarray(union(masks.masks).astype(np.uint8) * np.uint8(255))
    return index_image(masks.masks, np.arange(1, len(masks) + 1), masks.iou_scores, colour_of(masks.object_ids))


def index_image(stack: MaskStack, values: np.ndarray, scores: np.ndarray, colours: np.ndarray) -> Image.Image:
    """An image in which each pixel has the value of its mask, of the highest score where masks overlap, or 0.

    Args:
        stack: (masks, height, width) bool.
        values: (masks,) int, from 1.
        scores: (masks,) float.
        colours: (values, 3) uint8: the palette from value 1 on, for an image of 8 bits.

    Returns:
        8 bits with a palette, or 16 bits of grey for values beyond 255.

    Raises:
        ValueError: A value does not fit 16 bits.
    """
    if (last := int(values.max(initial=0))) > 65535 or values.min(initial=1) < 1:
        raise ValueError(
            f"values from {values.min()} to {last} do not fit the 65535 values of a 16-bit PNG: save the masks in "
            "parts, or as .npz or .json"
        )
    pixels = np.zeros(stack.shape[1:], np.uint8 if last <= 255 else np.uint16)
    order = np.argsort(scores, kind="stable")
    for i, patch in zip(order, patches(stack, order), strict=True):
        pixels[patch.place][patch.inside] = values[i]
    image = Image.fromarray(pixels)
    if last <= 255:
        image.putpalette(np.concatenate([np.zeros((1, 3), np.uint8), colours]).tobytes())
    return image


def svg_text(masks: Masks) -> str:
    """An SVG of the image's size with a path for each mask that is not empty, the smallest on top."""
    height, width = masks.size_hw
    areas = masks.areas
    order = [i for i in np.argsort(-areas, kind="stable") if areas[i]]
    paths = []
    for i, patch in zip(order, patches(masks.masks, order), strict=True):
        object_id, score = masks.object_ids[i], masks.iou_scores[i]
        colour = "#" + bytes(colour_of(object_id)).hex()
        outline = "".join(svg_ring(ring) for polygon in patch_polygons(patch) for ring in polygon.rings)
        paths.append(
            f'  <path id="mask-{i}" data-object="{object_id}" data-score="{score:.4f}" fill="{colour}" '
            f'fill-rule="evenodd" d="{outline}"/>\n'
        )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">\n'
        f"{''.join(paths)}</svg>\n"
    )


def svg_ring(points_xy: np.ndarray) -> str:
    """A closed path. An outline starts along a row and turns at each point, so one number per step is enough."""
    x, y = points_xy.astype(int).T.tolist()
    steps = (f"H{x[i]}" if i % 2 else f"V{y[i]}" for i in range(1, len(x)))
    return f"M{x[0]} {y[0]}{''.join(steps)}Z"


# COCO


def coco_instances(masks: Masks, *, image_id: int = 1, category_id: int = 1) -> list[dict[str, Any]]:
    """COCO instances, see ``Masks.to_coco``."""
    columns = (masks.boxes.tolist(), masks.areas.tolist(), masks.iou_scores.tolist(), masks.object_ids.tolist())
    return [
        coco_instance(
            number,
            rle,
            box,
            area=area,
            score=score,
            object_id=object_id,
            image_id=image_id,
            category_id=category_id,
        )
        for number, (rle, box, area, score, object_id) in enumerate(zip(masks.to_rle(), *columns, strict=True), 1)
    ]


def coco_instance(
    number: int,
    rle: Rle,
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
        "segmentation": rle,
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "area": area,
        "iscrowd": 0,
        "score": score,
        "object_id": object_id,
    }


def coco_data(
    instances: Sequence[Mapping[str, Any]], file_name: str, size_hw: SizeHW, *, image_id: int = 1
) -> dict[str, Any]:
    """A COCO data set of one image and its instances, which ``pycocotools.coco.COCO`` can open."""
    height, width = size_hw
    return {
        "images": [{"id": image_id, "file_name": file_name, "width": width, "height": height}],
        "annotations": list(instances),
        "categories": [{"id": 1, "name": "object"}],
    }


# Polygons


def geojson_collection(masks: Masks, transform: Affine | None) -> dict[str, Any]:
    """A GeoJSON FeatureCollection, see ``Masks.to_geojson``."""
    affine = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0) if transform is None else read_affine(transform)
    properties = zip(masks.object_ids.tolist(), masks.iou_scores.tolist(), masks.areas.tolist(), strict=True)
    features = [
        geojson_feature(patch, affine, {"object_id": object_id, "score": score, "area": area})
        for patch, (object_id, score, area) in zip(patches(masks.masks), properties, strict=True)
    ]
    return {"type": "FeatureCollection", "features": features}


def geojson_feature(patch: Patch, affine: Affine, properties: dict[str, Any]) -> dict[str, Any]:
    """One mask as a GeoJSON Feature (RFC 7946): a Polygon, a MultiPolygon, or no geometry for an empty mask."""
    a, b, c, d, e, f = affine
    is_flipped = a * e - b * d < 0  # y up, as on maps: rings change their direction

    def ring(points_xy: np.ndarray) -> list[list[float]]:
        x, y = points_xy.astype(float).T
        ground_xy = np.stack([a * x + b * y + c, d * x + e * y + f], axis=1)
        if is_flipped:
            ground_xy = ground_xy[::-1]
        return [*ground_xy.tolist(), ground_xy[0].tolist()]

    # With 4 neighbours, since geographic software rejects rings that touch themselves.
    polygons = [[ring(r) for r in polygon.rings] for polygon in patch_polygons(patch, connectivity=4)]
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
    numbers = tuple(float(number) for number in transform)
    if len(numbers) not in (6, 9) or not np.isfinite(numbers).all() or numbers[6:] not in ((), (0, 0, 1)):
        raise ValueError(f"transform is {numbers}: expected 6 finite numbers a, b, c, d, e, f, as rasterio orders them")
    a, b, _, d, e, _ = numbers[:6]
    if a * e == b * d:
        raise ValueError(f"transform {numbers[:6]} maps all pixels to one line: expected rasterio's order")
    return numbers[:6]


def labelme_page(masks: Masks, image_path: str | os.PathLike[str], label: str) -> dict[str, Any]:
    """A labelme file, see ``Masks.to_labelme``."""
    height, width = masks.size_hw
    shapes = [
        shape
        for patch, object_id in zip(patches(masks.masks), masks.object_ids.tolist(), strict=True)
        for shape in labelme_shapes(patch, label, object_id)
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


def labelme_shapes(patch: Patch, label: str, group_id: int) -> Iterator[dict[str, Any]]:
    """One labelme shape for each connected component: a polygon, or a mask if it has holes."""
    for polygon in mask_polygons(patch.inside):
        shape = {"label": label, "group_id": group_id, "description": "", "flags": {}}
        if not polygon.holes:
            points = (polygon.exterior + patch.corner_xy).tolist()
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


def yolo_text(masks: Masks, class_id: int) -> str:
    """Lines of a YOLO label file, see ``Masks.to_yolo``."""
    filled = (patch for patch in patches(masks.masks) if patch.inside.size)
    return "".join(yolo_line(patch, masks.size_hw, class_id) + "\n" for patch in filled)


def yolo_line(patch: Patch, size_hw: SizeHW, class_id: int) -> str:
    """A class, then x, y, … of one ring around all components and holes of a mask that is not empty, from 0 to 1.

    The ring returns to its first point after each component or hole. The connecting lines run both ways and cancel:
    filled by the even-odd rule, the ring gives the mask.
    """
    height, width = size_hw
    first, *others = (ring for polygon in patch_polygons(patch) for ring in polygon.rings)
    path = [first, *chain.from_iterable((first[:1], ring, ring[:1]) for ring in others)]
    shares = np.concatenate(path) / (width, height)
    return " ".join([str(class_id), *(f"{share:.7g}" for share in shares.ravel())])


# Other packages


def detections(masks: Masks, class_id: int) -> Any:
    """``supervision.Detections``, see ``Masks.to_supervision``."""
    return optional_package("supervision", "to_supervision()").Detections(
        xyxy=masks.boxes,
        mask=np.asarray(masks.masks),
        confidence=masks.iou_scores,
        class_id=np.full(len(masks), class_id),
        tracker_id=masks.object_ids,
    )


def data_frame(masks: Masks) -> Any:
    """A ``pandas.DataFrame``, see ``Masks.to_pandas``."""
    columns = {"object_id": masks.object_ids, "score": masks.iou_scores, "area": masks.areas}
    columns |= dict(zip(("x0", "y0", "x1", "y1"), masks.boxes.T, strict=True))
    return optional_package("pandas", "to_pandas()").DataFrame({**columns, "segmentation": masks.to_rle()})


def optional_package(name: str, caller: str) -> Any:
    """Imports a package that only ``caller`` needs; the error says how to install it."""
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{caller} needs the package {name}: pip install {name}", name=name) from error
