"""Files of masks: PNG, NPZ, JSON and SVG."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from masklet.atomic import replacing
from masklet.masks import MaskStack, PackedMasks, patch_polygons, patches, union
from masklet.results.visualisation import colour_of

if TYPE_CHECKING:
    from masklet.results.masks import Masks

SUFFIXES = (".png", ".npz", ".json", ".svg")


def save_masks(masks: Masks, path: Path, *, by_object: bool) -> None:
    """Writes masks in the format of the suffix, see ``Masks.save``."""
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(f"masks are saved as .png, .npz, .json or .svg, not as {path.name!r}")
    if by_object and suffix != ".png":
        raise ValueError(f"by_object sets the pixels of a .png: it does not apply to {path.name!r}")
    if suffix == ".npz" and isinstance(masks.masks, PackedMasks):
        raise ValueError(f"packed masks are saved as .png, .json or .svg: {path.name!r} would store every pixel")
    try:
        with replacing(path) as unfinished:
            _write(masks, unfinished, suffix, by_object=by_object)
    except OSError as error:
        if error.errno is not None and error.filename is None:  # a full disk
            error.filename = str(path)
        raise


def _write(masks: Masks, path: Path, suffix: str, *, by_object: bool) -> None:
    if suffix == ".png":
        index_map(masks, by_object=by_object).save(path, format="PNG")
    elif suffix == ".npz":
        names = ("masks", "logits", "iou_scores", "object_ids", *["labels"] * (masks.labels is not None))
        arrays = {name: getattr(masks, name) for name in names}
        with path.open("wb") as file:  # numpy would append .npz to a name that ends in .NPZ
            np.savez_compressed(file, **arrays)
    else:
        text = json.dumps(masks.to_coco()) if suffix == ".json" else svg_text(masks)
        path.write_text(text, encoding="utf-8")


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
