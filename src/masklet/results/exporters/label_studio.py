"""Label Studio: tasks with predictions, as brush masks in its own run lengths or as polygons."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from masklet.config import SizeHW
from masklet.masks import Patch, joined_ring, patch_polygons, patches

if TYPE_CHECKING:
    from masklet.results.exports import MaskExports

LONGEST_RUN = 2**16
"""Values in one block of the run lengths."""


def label_studio_task(
    masks: MaskExports,
    image: str | os.PathLike[str],
    labels: Sequence[str],
    *,
    polygons: bool,
    tolerance: float,
    from_name: str | None,
    to_name: str,
) -> dict[str, Any]:
    """A task of Label Studio, see ``Masks.to_label_studio``."""
    if tolerance and not polygons:
        raise ValueError(f"tolerance={tolerance:g} simplifies polygons, but brush masks are exact: pass polygons=True")
    height, width = masks.size_hw
    columns = (patches(masks.masks), labels, masks.iou_scores.tolist(), masks.object_ids.tolist())
    regions = []
    for number, (patch, label, score, object_id) in enumerate(zip(*columns, strict=True)):
        kind = "polygonlabels" if polygons else "brushlabels"
        values = polygon_values(patch, masks.size_hw, tolerance) if polygons else brush_values(patch, masks.size_hw)
        for part, value in enumerate(values):
            region = {
                "id": f"mask-{number}-{part}" if polygons else f"mask-{number}",
                "type": kind,
                "from_name": from_name or ("label" if polygons else "tag"),
                "to_name": to_name,
                "original_width": width,
                "original_height": height,
                "image_rotation": 0,
                "score": score,
                "meta": {"object_id": object_id},
                "value": {**value, kind: [label]},
            }
            regions.append(region)
    prediction = {"model_version": "masklet", "score": float(masks.iou_scores.mean()) if len(masks.masks) else 0.0}
    return {"data": {to_name: os.fspath(image)}, "predictions": [{**prediction, "result": regions}]}


def polygon_values(patch: Patch, size_hw: SizeHW, tolerance: float) -> Iterator[dict[str, Any]]:
    """For each connected component its points in percent of the image."""
    height, width = size_hw
    for polygon in patch_polygons(patch, tolerance=tolerance):
        percent = joined_ring(polygon.rings).astype(float) * 100 / (width, height)
        yield {"points": percent.tolist(), "closed": True}


def brush_values(patch: Patch, size_hw: SizeHW) -> Iterator[dict[str, Any]]:
    """The mask, unless it is empty."""
    if patch.inside.size:
        yield {"format": "rle", "rle": brush_rle(patch, size_hw)}


def brush_rle(patch: Patch, size_hw: SizeHW) -> list[int]:
    """Run lengths of an image whose four channels are 255 inside the mask and 0 outside, as @thi.ng/rle-pack has them.

    A stream of bits, the highest first: the number of values in 32 bits; their size, 8 bits, less one in 5 bits; four
    sizes of counts, 3, 4, 8 and 16 bits, each less one in 4 bits. Then the blocks: 1 for a repeated value (0 for single
    values, which a mask does not need); which of the four sizes, in 2 bits; the count less one; the value.

    Returns:
        Bytes, the last filled with zeros.

    Raises:
        ValueError: The image has too many pixels for the 32 bits.
    """
    height, width = size_hw
    total = 4 * height * width
    if total >= 2**32:
        raise ValueError(f"Label Studio's run lengths hold fewer than 2**30 pixels, got {width}×{height}")
    counts, values = split_runs(*row_runs(patch, size_hw))
    size = np.searchsorted((2**3, 2**4, 2**8), counts, "left")  # the smallest that fits
    bits = np.array((3, 4, 8, 16))[size]
    codes = ((4 | size) << bits | counts - 1) << 8 | values
    header = [(total, 32), (7, 5), (2, 4), (3, 4), (7, 4), (15, 4)]
    numbers = np.concatenate([[number for number, _ in header], codes])
    lengths = np.concatenate([[length for _, length in header], bits + 11])
    return np.packbits(bits_of(numbers, lengths)).tolist()


def row_runs(patch: Patch, size_hw: SizeHW) -> tuple[np.ndarray, np.ndarray]:
    """Row by row, the number of values in each run, four for each pixel, and the value of each run, 0 or 255."""
    (x0, y0), (height, width) = patch.corner_xy, size_hw
    by_row = np.pad(patch.inside, ((0, 0), (1, 1)))
    rows, columns = np.nonzero(by_row[:, 1:] != by_row[:, :-1])
    pixels, times = np.unique((y0 + rows) * width + x0 + columns, return_counts=True)
    edges = pixels[times == 1]  # where a run ends with one row and continues with the next, there is none
    counts = 4 * np.diff(edges, prepend=0, append=height * width)
    values = np.arange(len(counts)) % 2 * 255
    return counts[counts > 0], values[counts > 0]


def split_runs(counts: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Divides runs that are longer than a block can hold."""
    parts = -(-counts // LONGEST_RUN)
    ends = parts.cumsum() - 1
    divided = np.full(parts.sum(), LONGEST_RUN)
    divided[ends] = counts - (parts - 1) * LONGEST_RUN
    return divided, values.repeat(parts)


def bits_of(numbers: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """(bits,) uint8: each number in binary, with the given number of digits."""
    ends = lengths.cumsum()
    shift = ends.repeat(lengths) - 1 - np.arange(ends[-1])
    return (numbers.repeat(lengths) >> shift & 1).astype(np.uint8)
