"""CVAT's shapes as prompts, and masks as CVAT's shapes. Needs nothing from CVAT.

A rectangle is [x0, y0, x1, y1]. A polygon is [x, y, x, y, …]. A mask is the lengths of its runs within its box, row by
row and beginning with background, then the first and the last column and row of the box: [runs …, x0, y0, x1, y1].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias, get_args

import numpy as np

from masklet.config import SizeHW
from masklet.errors import PromptError
from masklet.masks import Patch, decode_rle, joined_ring, mask_boxes, patch_polygons, patches
from masklet.numbers import MAX_COORDINATE
from masklet.results.exporters.cvat import mask_runs
from masklet.results.importers import fill_polygons

ShapeType: TypeAlias = Literal["mask", "polygon", "rectangle"]
SHAPE_TYPES: tuple[ShapeType, ...] = get_args(ShapeType)


def check_shape_type(kind: str) -> ShapeType:
    """The kind of shape with this name.

    Raises:
        PromptError: There is none.
    """
    for known in SHAPE_TYPES:
        if kind == known:
            return known
    raise PromptError(f"shape {kind!r}: expected one of {', '.join(SHAPE_TYPES)}")


def shape_prompt(kind: str, points: Sequence[float], size_hw: SizeHW) -> dict[str, Any]:
    """A shape as the prompt of an object, see ``VideoSession.prompt``: a box, or a mask.

    Args:
        kind: "mask", "polygon" or "rectangle".
        points: The numbers of the shape.
        size_hw: Size of the image.

    Raises:
        PromptError: There is no such kind; the numbers do not make such a shape, or it is outside the image.
    """
    kind, numbers = check_shape_type(kind), finite_numbers(points)
    if kind == "rectangle":
        if len(numbers) != 4:
            raise PromptError(f"rectangle of {len(numbers)} numbers: expected [x0, y0, x1, y1] in pixels")
        return {"box": numbers.tolist()}
    mask = read_mask(numbers, size_hw) if kind == "mask" else fill_polygon(numbers, size_hw)
    if not mask.any():
        raise PromptError(f"the {kind} covers no pixel of the {size_hw[1]}×{size_hw[0]} image")
    return {"mask": mask}


def finite_numbers(points: Sequence[float]) -> np.ndarray:
    """(numbers,) float64. Raises a PromptError if they are not finite numbers within reach."""
    try:
        numbers = np.asarray(points, np.float64)
    except (ValueError, TypeError) as error:
        raise PromptError("a shape holds something else than numbers: expected a flat list of numbers") from error
    if numbers.ndim != 1 or not (np.abs(numbers) <= MAX_COORDINATE).all():
        raise PromptError("a shape is not a flat list of finite numbers: expected coordinates in pixels of the image")
    return numbers


def fill_polygon(numbers: np.ndarray, size_hw: SizeHW) -> np.ndarray:
    """(height, width) bool. Raises a PromptError unless the numbers make a polygon."""
    if len(numbers) < 6 or len(numbers) % 2:
        raise PromptError(f"polygon of {len(numbers)} numbers: expected x and y of three points or more")
    try:
        return decode_rle([fill_polygons([numbers], size_hw, 0)])[0]
    except ValueError as error:  # an outline of too many pixels
        raise PromptError(str(error)) from error


def read_mask(numbers: np.ndarray, size_hw: SizeHW) -> np.ndarray:
    """(height, width) bool. Raises a PromptError unless the numbers make a mask inside the image."""
    values = numbers.astype(np.int64)
    if len(values) < 5 or (values != numbers).any() or (values < 0).any():
        raise PromptError(f"mask of {len(numbers)} numbers: expected whole run lengths, then the box x0 y0 x1 y1")
    (height, width), (x0, y0, x1, y1) = size_hw, values[-4:].tolist()
    if not (x0 <= x1 < width and y0 <= y1 < height):
        raise PromptError(f"mask in the box ({x0}, {y0}, {x1}, {y1}): expected a box inside the {width}×{height} image")
    runs, shape = values[:-4], (y1 - y0 + 1, x1 - x0 + 1)
    if (total := int(runs.sum())) != shape[0] * shape[1]:
        raise PromptError(f"runs of {total} pixels in a box of {shape[1]}×{shape[0]}: expected as many as the box has")
    mask = np.zeros(size_hw, bool)
    mask[y0 : y1 + 1, x0 : x1 + 1] = (np.arange(len(runs)) % 2 == 1).repeat(runs).reshape(shape)
    return mask


def mask_shapes(mask: np.ndarray, kind: ShapeType, *, tolerance: float = 0.0) -> list[list[float]]:
    """A mask as shapes of one kind: the numbers of each. None for an empty mask.

    Args:
        mask: (height, width) bool.
        kind: A polygon for each connected component; one mask, or one rectangle, for all of them.
        tolerance: How far, in pixels, polygons may be from the exact outline. See ``Masks.to_polygons``.
    """
    patch = next(patches(mask[None]))
    if not patch.inside.size:
        return []
    if kind == "mask":
        return [mask_numbers(patch)]
    if kind == "rectangle":
        return [mask_boxes(mask[None])[0].tolist()]
    outlines = patch_polygons(patch, tolerance=tolerance)
    return [joined_ring(outline.rings).astype(float).ravel().tolist() for outline in outlines]


def mask_shape(mask: np.ndarray, kind: ShapeType, *, tolerance: float = 0.0) -> list[float] | None:
    """A mask as one shape, or None if it is empty. As a polygon it is the largest component."""
    shapes = mask_shapes(mask, kind, tolerance=tolerance)
    return max(shapes, key=ring_area) if len(shapes) > 1 else next(iter(shapes), None)


def mask_numbers(patch: Patch) -> list[float]:
    """The numbers of a mask that is not empty."""
    (x0, y0), (rows, columns) = patch.corner_xy, patch.inside.shape
    return [*mask_runs(patch), x0, y0, x0 + columns - 1, y0 + rows - 1]


def ring_area(numbers: Sequence[float]) -> float:
    """Area inside a closed ring, in pixels."""
    x, y = np.asarray(numbers, float).reshape(-1, 2).T
    return abs(float(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1)))) / 2
