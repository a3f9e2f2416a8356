"""Nested lists of points, labels and boxes to padded arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from masklet.config import SizeHW
from masklet.errors import PromptError
from masklet.numbers import MAX_COORDINATE, shown
from masklet.prompts import as_lists, depth_of, to_model_pixels


def read_nested(values: Any, name: str, *, levels: tuple[str, ...], without_objects: bool = False) -> list[Any]:
    """Nested lists of exactly these levels.

    Args:
        values: Lists, arrays or tensors.
        name: Name for messages.
        levels: Names of the levels, from the outside.
        without_objects: Whether the level of objects may be missing: one object for each image.

    Raises:
        PromptError: There is another number of levels, or a number that float32 does not hold.
    """
    nested = as_lists(values)
    depth = depth_of(nested, name)
    _check_numbers(nested, name)
    if without_objects and depth == len(levels) - 1:
        return [[image] for image in nested]
    if depth != len(levels):
        raise PromptError(
            f"{name} are nested {depth} deep: expected {len(levels)} levels ({', '.join(levels)})"
            + (f", or {len(levels) - 1} with one object for each image" if without_objects else "")
        )
    return list(nested)


def _check_numbers(nested: Any, name: str) -> None:
    if isinstance(nested, list):
        for inner in nested:
            _check_numbers(inner, name)
    elif not abs(nested) <= MAX_COORDINATE:  # NaN compares as False
        raise PromptError(f"{name} hold {shown(nested)}: expected finite numbers up to {MAX_COORDINATE}")


def pad(nested: list[Any], value: float, *, last: int | None = None) -> np.ndarray:
    """Fills up lists of different lengths.

    Args:
        nested: Lists of three or more levels.
        value: What fills the ends.
        last: Expected length of the innermost lists; None where it may vary.

    Raises:
        PromptError: An innermost list has another length.
    """
    shape = _longest(nested)
    if last is not None and shape[-1] != last:
        raise PromptError(f"coordinates of {shape[-1]} numbers: expected {last}")
    filled = np.full(shape, value, dtype=np.float64)
    _fill(filled, nested, last)
    return filled


def pad_labels(nested: list[Any], value: int) -> Tensor:
    """As ``pad``, to int64.

    Raises:
        PromptError: A label is not a whole number.
    """
    filled = pad(nested, value)
    if (broken := filled[filled % 1 != 0]).size:
        raise PromptError(f"input_labels hold {broken[0]:g}: expected whole numbers, such as 1 (on the object) or 0")
    return torch.from_numpy(filled.astype(np.int64))


def _longest(nested: Any) -> tuple[int, ...]:
    if not isinstance(nested, list):
        return ()
    inner = [_longest(value) for value in nested]
    return len(nested), *(max(sizes) for sizes in zip(*inner, strict=True))


def _fill(filled: np.ndarray, nested: list[Any], last: int | None) -> None:
    if filled.ndim == 1:
        if last is not None and len(nested) != last:
            raise PromptError(f"coordinates of {len(nested)} numbers: expected {last}")
        filled[: len(nested)] = nested
        return
    for index, inner in enumerate(nested):
        _fill(filled[index], inner, last)


def counts_of(nested: Any) -> Any:
    """The lengths of the lists above the numbers, for comparisons: [[2, 1], [3]] for two images."""
    if nested and not isinstance(nested[0], list):
        return len(nested)
    return [counts_of(inner) for inner in nested]


def scale(values: np.ndarray, original_sizes: list[SizeHW], target: SizeHW) -> Tensor:
    """(images, ..., 2) x and y in pixels of the original images to pixels of the network's input, float32.

    Args:
        values: Coordinates.
        original_sizes: (height, width) of each image, or of one for all.
        target: (height, width) of the network's input.
    """
    sizes = original_sizes * len(values) if len(original_sizes) == 1 else original_sizes
    coordinates = torch.from_numpy(values.astype(np.float32))
    return torch.stack(
        [to_model_pixels(xy, size_hw=size, input_hw=target) for xy, size in zip(coordinates, sizes, strict=True)]
    )
