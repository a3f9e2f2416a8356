"""Label maps: images whose pixels are numbers of objects."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from masklet.results.importers import read_index_map

VOID = 255
"""Undecided pixels in annotations of 8 bits. They count as background."""


def read_labels(path: Path) -> NDArray[np.integer]:
    """Reads an annotation, (height, width): 0 is background or void, any other number an object.

    Raises:
        ImageError: The file cannot be read, or is an image in colour.
    """
    labels = read_index_map(path)
    return np.where(labels == VOID, np.uint8(0), labels) if labels.dtype == np.uint8 else labels


def object_numbers(labels: NDArray[np.integer]) -> list[int]:
    """The numbers of the objects in a (height, width) map, ascending."""
    return [int(number) for number in np.unique(labels) if number]
