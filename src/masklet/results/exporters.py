"""Masks in the formats of others, and back: arrays on our side, plain dicts, text and images on theirs.

Coordinates are pixels of the image, x right and y down, along the edges of pixels: the first one spans 0 to 1.
"""

import base64
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from itertools import chain
from typing import Any, TypeAlias

import numpy as np
import pycocotools.mask as coco
from PIL import Image

from masklet.config import SizeHW
from masklet.errors import ImageError
from masklet.images.reading import explained
from masklet.masks import (
    MaskStack,
    Patch,
    Polygon,
    Rle,
    check_rle,
    mask_areas,
    mask_polygons,
    patch_polygons,
    patches,
    text_rle,
    without_empty_runs,
)
from masklet.results.visualisation import colour_of

Affine: TypeAlias = Sequence[float]
"""a, b, c, d, e, f, as rasterio orders them: x' = a x + b y + c, y' = d x + e y + f."""

LOSSY = ("JPEG", "MPO", "WEBP", "JPEG2000", "AVIF")
"""Formats that do not keep numbers."""
ONE_IMAGE = "expected one. Choose its annotations: [a for a in annotations if a['image_id'] == …]"


# PNG


def index_image(masks: MaskStack, values: np.ndarray, scores: np.ndarray, colours: np.ndarray) -> Image.Image:
    """Each pixel has the value of its mask, that of the highest score where they overlap, and 0 outside.

    Args:
        masks: (masks, height, width) bool.
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
    pixels = np.zeros(masks.shape[1:], np.uint8 if last <= 255 else np.uint16)
    order = np.argsort(scores, kind="stable")
    for i, patch in zip(order, patches(masks, order), strict=True):
        pixels[patch.place][patch.inside] = values[i]
    image = Image.fromarray(pixels)
    if last <= 255:
        image.putpalette(np.concatenate([np.zeros((1, 3), np.uint8), colours]).tobytes())
    return image


def read_index_image(path: str | os.PathLike[str], threshold: float | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The masks of a PNG: a plain one (black and white), or one for each value but 0.

    Args:
        path: The file.
        threshold: If given, there is one mask, of all values from this one on.

    Returns:
        (masks, height, width) bool in ascending order of value, and (masks,) int, the values; 1 for black and white.

    Raises:
        ImageError: Not an image, or one in colours; without a threshold one whose values number no masks.
    """
    pixels = read_index_map(path)
    if threshold is not None:
        # What ``read_index_map`` took for black and white is 0 and 1 by now.
        inside = pixels >= threshold if pixels.max() > 1 else pixels > 0
        return inside[None], np.ones(1, int)
    values, counts = np.unique(pixels, return_counts=True)
    values, counts = values[values > 0], counts[values > 0]
    with explained(str(path)), Image.open(path) as image:
        is_soft_or_lossy = image.mode != "P" and (image.format in LOSSY or is_soft(values, counts))
    if is_soft_or_lossy:
        raise ImageError(
            f"{path} has {len(values)} shades of grey, as a soft mask or an image has: expected values "
            "that number masks. If it is one mask, pass threshold=128; if they are numbers, save it with a palette"
        )
    return pixels == values[:, None, None], values.astype(int)


def is_soft(values: np.ndarray, counts: np.ndarray) -> bool:
    """Whether grey values, and how often each occurs, are of one mask with soft edges, and not numbers of masks.

    Numbers follow each other from 1, but for 255 (void), or are few; soft edges have many shades, and a mask with them
    is mostly white.
    """
    are_in_turn = np.array_equal(values[:-1], np.arange(1, len(values)))
    return not are_in_turn and len(values) > 8 and values[-1] == 255 and counts.argmax() == len(values) - 1


def read_index_map(path: str | os.PathLike[str]) -> np.ndarray:
    """The values of a PNG that numbers masks, (height, width) of whole numbers; 1 for white in black and white.

    Raises:
        ImageError: Not an image, or one in colours.
    """
    with explained(str(path)), Image.open(path) as image:
        pixels = np.asarray(image)
        if image.mode == "P":
            white = None
        elif pixels.ndim == 3:
            pixels, white = np.asarray(image.convert("RGBA")), 255
            if (pixels[..., :3] != pixels[..., :1]).any() or (pixels[..., 3] < 255).any():
                raise ImageError(
                    f"{path} is an image in colours or with transparency ({image.mode}), not masks: expected black "
                    "and white, or a palette or grey image whose values number the masks"
                )
            pixels = pixels[..., 0]
        else:
            white = {"1": 1, "L": 255}.get(image.mode)  # 16 bits may well number 65535 objects
    is_black_and_white = white is not None and np.isin(pixels, (0, white)).all()
    return (pixels > 0).astype(np.uint8) if is_black_and_white else pixels


# COCO


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
    """One mask as a COCO instance, see ``Masks.to_coco``; its box is x0 y0 x1 y1."""
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
    """One image and its ``coco_instance``s as a whole COCO data set, which ``pycocotools.coco.COCO`` opens."""
    height, width = size_hw
    return {
        "images": [{"id": image_id, "file_name": file_name, "width": width, "height": height}],
        "annotations": list(instances),
        "categories": [{"id": 1, "name": "object"}],
    }


def annotations_of(
    data: Mapping[str, Any] | Sequence[Mapping[str, Any]], size_hw: SizeHW | None
) -> tuple[Sequence[Mapping[str, Any]], SizeHW | None]:
    """The annotations of one image, of a COCO data set or as they are, and (height, width) if it is known.

    Raises:
        ValueError: They are of several images, or this is no data set.
    """
    annotations: Any = data
    if isinstance(data, Mapping):
        annotations, images = data.get("annotations"), data.get("images", ())
        if not isinstance(annotations, Sequence):
            raise ValueError(f'a dict of {list(data)[:5]} is no COCO data set: expected "annotations" in it')
        if len(images) > 1:
            raise ValueError(f"the COCO data set has {len(images)} images: {ONE_IMAGE}")
        if size_hw is None and images and {"height", "width"} <= images[0].keys():
            size_hw = (images[0]["height"], images[0]["width"])
    if len(ids := {one.get("image_id") for one in annotations}) > 1:
        raise ValueError(f"the annotations are of {len(ids)} images: {ONE_IMAGE}")
    return annotations, size_hw


def read_annotations(
    annotations: Sequence[Mapping[str, Any]], size_hw: SizeHW | None
) -> tuple[list[Rle], tuple[int, int]]:
    """The masks of COCO annotations, which are run lengths, compressed or as numbers, or polygons.

    Returns:
        Run lengths of one size, and that (height, width).

    Raises:
        ValueError: The size is not known, or not one; a segmentation makes no sense.
    """
    runs = [read_segmentation(a.get("segmentation"), size_hw, index) for index, a in enumerate(annotations)]
    if not runs:
        if size_hw is None:
            raise ValueError("no annotations do not tell the size of the image: pass size_hw=(height, width)")
        return [], size_hw
    if size_hw is not None and (other := [run["size"] for run in runs if tuple(run["size"]) != tuple(size_hw)]):
        raise ValueError(f"run lengths of size {other[0]} do not fit size_hw={size_hw}: both are (height, width)")
    check_rle(runs)
    height, width = runs[0]["size"]
    return [without_empty_runs(run) for run in runs], (height, width)


def read_segmentation(segmentation: Any, size_hw: SizeHW | None, index: int) -> Rle:
    """Run lengths of the ``segmentation`` of annotation ``index``."""
    match segmentation:
        case {"size": [_, _], "counts": str()}:
            return {"size": list(segmentation["size"]), "counts": segmentation["counts"]}
        case {"size": [_, _], "counts": bytes()}:
            return text_rle(segmentation)
        case {"size": [height, width], "counts": [*_]}:
            return text_rle(coco.frPyObjects(segmentation, height, width))
        case [*polygons] if all(map(is_polygon, polygons)):
            if size_hw is None:
                raise ValueError("polygons do not tell the size of the image: pass size_hw=(height, width)")
            nothing = {"size": list(size_hw), "counts": [size_hw[0] * size_hw[1]]}  # polygons may be none
            parts = [coco.frPyObjects(nothing, *size_hw), *(coco.frPyObjects([p], *size_hw)[0] for p in polygons)]
            return text_rle(coco.merge(parts))
    raise ValueError(
        f"annotation {index} has the segmentation {str(segmentation)[:60]}: expected run lengths "
        '{"size": [height, width], "counts": …}, or polygons [[x0, y0, x1, y1, x2, y2, …], …]'
    )


def is_polygon(numbers: Any) -> bool:
    """Whether these are x and y in turn, of three points at least; COCO's tools take four numbers for a box."""
    return isinstance(numbers, Sequence) and len(numbers) >= 6 and len(numbers) % 2 == 0


# Polygons


def geojson_feature(patch: Patch, transform: Affine | None, properties: dict[str, Any]) -> dict[str, Any]:
    """One mask as a GeoJSON Feature (RFC 7946): a Polygon, a MultiPolygon, or no geometry for an empty mask."""
    a, b, c, d, e, f = (1, 0, 0, 0, 1, 0) if transform is None else read_affine(transform)
    turned = a * e - b * d < 0  # y up, as on maps: what ran clockwise on the screen runs against it on the ground

    def ring(points_xy: np.ndarray) -> list[list[float]]:
        x, y = points_xy.astype(float).T
        ground_xy = np.stack([a * x + b * y + c, d * x + e * y + f], axis=1)
        if turned:
            ground_xy = ground_xy[::-1]
        return [*ground_xy.tolist(), ground_xy[0].tolist()]

    # Pieces of 4 neighbours, since where rings touch themselves geographic software calls them invalid.
    pieces = [[ring(r) for r in rings(polygon)] for polygon in patch_polygons(patch, connectivity=4)]
    geometry: dict[str, Any] | None
    match pieces:
        case []:
            geometry = None
        case [piece]:
            geometry = {"type": "Polygon", "coordinates": piece}
        case _:
            geometry = {"type": "MultiPolygon", "coordinates": pieces}
    return {"type": "Feature", "geometry": geometry, "properties": properties}


def read_affine(transform: Affine) -> tuple[float, ...]:
    """Six numbers; also of the nine that rasterio's ``Affine`` holds."""
    numbers = tuple(float(number) for number in transform)
    if len(numbers) not in (6, 9) or not np.isfinite(numbers).all() or numbers[6:] not in ((), (0, 0, 1)):
        raise ValueError(f"transform is {numbers}: expected 6 finite numbers a, b, c, d, e, f, as rasterio orders them")
    a, b, _, d, e, _ = numbers[:6]
    if a * e == b * d:
        raise ValueError(f"transform {numbers[:6]} maps all pixels to one line: expected rasterio's order")
    return numbers[:6]


def labelme_shapes(patch: Patch, label: str, group_id: int) -> Iterator[dict[str, Any]]:
    """The pieces of a mask as labelme has them: polygons to edit, or, where there are holes, masks, which keep them."""
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
    """(height, width) bool: the pixels of a polygon whose points are corners of pixels."""
    walls = np.zeros((shape[0] + 1, shape[1] + 1), bool)
    for points_xy in rings(polygon):
        x, y = points_xy.astype(int).T
        for column, start, end in zip(x, y, np.roll(y, -1), strict=True):
            walls[min(start, end) : max(start, end), column] ^= True  # horizontal edges are empty ranges
    return np.logical_xor.accumulate(walls, axis=1)[:-1, :-1]


def yolo_line(patch: Patch, size_hw: SizeHW, class_id: int) -> str:
    """A class, then one ring around all pieces and holes of a mask, which is not empty: x, y, …, as shares of the size.

    The ring returns to its first point after each piece or hole. The ways there and back cancel: filled by the
    even-odd rule it is the mask.
    """
    height, width = size_hw
    first, *others = (ring for polygon in patch_polygons(patch) for ring in rings(polygon))
    way = [first, *chain.from_iterable((first[:1], ring, ring[:1]) for ring in others)]
    shares = np.concatenate(way) / (width, height)
    return " ".join([str(class_id), *(f"{share:.7g}" for share in shares.ravel())])


def svg_text(masks: MaskStack, objects: np.ndarray, scores: np.ndarray) -> str:
    """An image of the masks' size with a path for each that is not empty, the smallest on top."""
    height, width = masks.shape[1:]
    areas = mask_areas(masks)
    small_last = [i for i in np.argsort(-areas, kind="stable") if areas[i]]
    paths = []
    for i, patch in zip(small_last, patches(masks, small_last), strict=True):
        colour = "#" + bytes(colour_of(objects[i])).hex()
        outline = "".join(svg_ring(ring) for polygon in patch_polygons(patch) for ring in rings(polygon))
        paths.append(
            f'  <path id="mask-{i}" data-object="{objects[i]}" data-score="{scores[i]:.4f}" fill="{colour}" '
            f'fill-rule="evenodd" d="{outline}"/>\n'
        )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">\n'
        f"{''.join(paths)}</svg>\n"
    )


def svg_ring(points_xy: np.ndarray) -> str:
    """A closed path. Outlines start along a row and turn at each point, so a step needs one number."""
    x, y = points_xy.astype(int).T.tolist()
    steps = (f"H{x[i]}" if i % 2 else f"V{y[i]}" for i in range(1, len(x)))
    return f"M{x[0]} {y[0]}{''.join(steps)}Z"


def rings(polygon: Polygon) -> tuple[np.ndarray, ...]:
    """The exterior, then the holes."""
    return (polygon.exterior, *polygon.holes)


def optional_package(name: str, caller: str) -> Any:
    """A package that only ``caller`` needs, or an error that says how to get it."""
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{caller} needs the package {name}: pip install {name}", name=name) from error
