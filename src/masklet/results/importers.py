"""Masks from other formats: PNG and COCO. Files and plain dicts in, arrays and run lengths out."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pycocotools.mask as coco
import torch
from PIL import Image

from masklet.config import SizeHW
from masklet.errors import ImageError
from masklet.images.reading import explained
from masklet.masks import Rle, check_rle, text_rle, without_empty_runs
from masklet.prompts import plain_mask_logits

LOSSY = ("JPEG", "MPO", "WEBP", "JPEG2000", "AVIF")
"""Formats that change pixel values."""
ONE_IMAGE = "expected one. Choose its annotations: [a for a in annotations if a['image_id'] == …]"


def stand_in_logits(masks: np.ndarray) -> np.ndarray:
    """(masks, 256, 256) float32: logits for masks that no network predicted, as of a mask prompt at 1024×1024."""
    logits = np.zeros((len(masks), 256, 256), np.float32)
    for into, mask in zip(logits, masks, strict=True):  # one at a time: it needs the mask in float32
        into[:] = plain_mask_logits(torch.from_numpy(mask[None]), (256, 256))[0].numpy()
    return logits


# PNG


def read_index_image(path: str | os.PathLike[str], threshold: float | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The masks of a PNG: one of a black and white image, or one for each value except 0.

    Args:
        path: The file.
        threshold: If given, the image is one mask, of all values from this one up.

    Returns:
        (masks, height, width) bool in ascending order of value, and (masks,) int, the values; 1 for black and white.

    Raises:
        ImageError: The file is not an image, or has colours; without a threshold, its values do not number masks.
    """
    pixels = read_index_map(path)
    if threshold is not None:
        # ``read_index_map`` has reduced a black and white image to 0 and 1.
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
    """Whether grey values and their frequencies come from one mask with soft edges rather than from numbered masks.

    Numbers are consecutive from 1, except for 255 (void), or few. Soft edges have many shades, and most pixels of the
    mask are white.
    """
    are_consecutive = np.array_equal(values[:-1], np.arange(1, len(values)))
    return not are_consecutive and len(values) > 8 and values[-1] == 255 and counts.argmax() == len(values) - 1


def read_index_map(path: str | os.PathLike[str]) -> np.ndarray:
    """The values of an image that numbers masks: (height, width) integers; white in a black and white image gives 1.

    Raises:
        ImageError: The file is not an image, or has colours.
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


def annotations_of(
    data: Mapping[str, Any] | Sequence[Mapping[str, Any]], size_hw: SizeHW | None
) -> tuple[Sequence[Mapping[str, Any]], SizeHW | None]:
    """The annotations of one image, from a COCO data set or a plain list, and (height, width) if it is known.

    Raises:
        ValueError: The annotations are of several images, or ``data`` is not a data set.
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


def annotation_values(annotations: Sequence[Mapping[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """(masks,) float32 scores and (masks,) int object ids; 1, and the index, where an annotation has none."""

    def given(name: str, index: int, default: float) -> Any:
        return default if (value := annotations[index].get(name)) is None else value  # some tools write null

    scores = [given("score", index, 1.0) for index in range(len(annotations))]
    object_ids = [given("object_id", index, index) for index in range(len(annotations))]
    return np.array(scores, np.float32), np.array(object_ids, int)


def read_annotations(annotations: Sequence[Mapping[str, Any]], size_hw: SizeHW | None) -> tuple[list[Rle], SizeHW]:
    """The masks of COCO annotations: compressed or uncompressed run lengths, or polygons.

    Returns:
        Run lengths of one size, and that (height, width).

    Raises:
        ValueError: The size is unknown, sizes differ, or a segmentation is malformed.
    """
    runs = [read_segmentation(a.get("segmentation"), size_hw, index) for index, a in enumerate(annotations)]
    if not runs:
        if size_hw is None:
            raise ValueError("the size of the image is unknown without annotations: pass size_hw=(height, width)")
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
                raise ValueError("the size of the image is unknown from polygons: pass size_hw=(height, width)")
            nothing = {"size": list(size_hw), "counts": [size_hw[0] * size_hw[1]]}  # for an empty list of polygons
            parts = [coco.frPyObjects(nothing, *size_hw), *(coco.frPyObjects([p], *size_hw)[0] for p in polygons)]
            return text_rle(coco.merge(parts))
    raise ValueError(
        f"annotation {index} has the segmentation {str(segmentation)[:60]}: expected run lengths "
        '{"size": [height, width], "counts": …}, or polygons [[x0, y0, x1, y1, x2, y2, …], …]'
    )


def is_polygon(numbers: Any) -> bool:
    """Whether these are alternating x and y of at least three points; COCO's tools take four numbers for a box."""
    return isinstance(numbers, Sequence) and len(numbers) >= 6 and len(numbers) % 2 == 0
