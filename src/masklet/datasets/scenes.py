"""Annotated images and videos: the types that all readers of data sets return."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cc3d
import numpy as np
from numpy.typing import NDArray

from masklet.errors import DataError
from masklet.masks import decode_rle
from masklet.results.importers import read_segmentation

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]

NUM_CHECKSUMS = 2**32
"""Number of values of the checksum that splits scenes by name."""


@dataclass(frozen=True)
class Frame:
    """An image and the objects in it."""

    name: str
    image: Pixels  # (height, width, 3) RGB
    masks: Mapping[int, Callable[[], Mask]]  # by object number; decoded on demand, as there may be hundreds

    def mask(self, number: int) -> Mask:
        """The mask of one object, (height, width).

        Raises:
            DataError: The mask and the image differ in size.
        """
        mask = self.masks[number]()
        if mask.shape != (size_hw := self.image.shape[:2]):
            found, expected = (f"{width}×{height}" for height, width in (mask.shape, size_hw))
            raise DataError(f"{self.name}: the mask of object {number} is {found} pixels, but the image is {expected}")
        return mask


def _one() -> int:
    return 1


@dataclass(frozen=True)
class Scene:
    """A video, or an image as a video of one frame. Nothing is read until it is needed."""

    name: str
    frame: Callable[[int], Frame]
    """Reads one frame by its index. An object has the same number in all frames."""
    count: Callable[[], int] = _one
    """Returns the number of frames; some videos have to be opened for it."""
    files: tuple[Path, ...] = ()
    """Files that must exist."""
    run: Callable[[range], Iterable[Frame]] | None = None
    """Reads consecutive frames, where that is faster than one by one."""

    def frames(self, indices: range) -> Iterator[Frame]:
        """Reads consecutive frames."""
        yield from self.run(indices) if self.run is not None else map(self.frame, indices)


def split_by_name(scenes: Sequence[Scene], share: float) -> tuple[list[Scene], list[Scene]]:
    """Splits scenes into those to train on and a ``share`` to validate on.

    A name always falls on the same side, whatever the other scenes are. If ``share`` is above 0 and there are two
    scenes or more, each side gets at least one; a single scene is trained on.
    """
    checksums = [zlib.crc32(scene.name.encode()) for scene in scenes]
    ranked = sorted(range(len(scenes)), key=lambda index: (checksums[index], scenes[index].name, index))
    count = sum(value < share * NUM_CHECKSUMS for value in checksums)
    if share > 0:
        count = min(max(count, 1), max(len(scenes) - 1, 0))
    held_out = set(ranked[:count])
    return [s for i, s in enumerate(scenes) if i not in held_out], [scenes[i] for i in sorted(held_out)]


def masks_of_labels(labels: NDArray[Any], *, split: bool = False) -> dict[int, Callable[[], Mask]]:
    """Masks from a label map.

    Args:
        labels: (height, width): 0 for background, another number for each object.
        split: Treat every connected component as an object of its own.
    """
    numbers = [int(number) for number in np.unique(labels) if number]
    if split:
        labels = cc3d.connected_components(labels.copy(), connectivity=8)  # cc3d needs a writable array
        numbers = list(range(1, int(labels.max()) + 1))

    def masks_where(number: int) -> Callable[[], Mask]:
        return lambda: labels == number

    return {number: masks_where(number) for number in numbers}


def mask_of_coco(segmentation: Any, size_hw: tuple[int, int], where: str, index: int) -> Callable[[], Mask]:
    """A function that decodes a COCO segmentation: polygons, or run lengths, compressed or as a list.

    The function raises a DataError if the segmentation is none of these.

    Args:
        segmentation: The segmentation of one annotation.
        size_hw: (height, width) of its image.
        where: Name of the file, for error messages.
        index: Number of the annotation, for error messages.
    """

    def decode() -> Mask:
        try:
            return decode_rle([read_segmentation(segmentation, size_hw, index)])[0]
        except ValueError as error:
            raise DataError(f"{where}: {error}") from error

    return decode


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        DataError: The file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise DataError(f"{path} is not JSON ({error})") from error
