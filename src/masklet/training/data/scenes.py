"""Annotated images and videos, whatever they are kept in: the one type that all readers give."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cc3d
import numpy as np
from numpy.typing import NDArray

from masklet.errors import DataError
from masklet.masks import decode_rle
from masklet.results.importers import read_segmentation
from masklet.training.batches import Mask
from masklet.training.worlds import Pixels

HASHES = 2**32
"""Values of the checksum that decides which side of a split a name falls on."""


@dataclass(frozen=True)
class Frame:
    """An image and the objects that are in it."""

    name: str
    image: Pixels  # (height, width, 3) RGB
    masks: Mapping[int, Callable[[], Mask]]  # by object, decoded when asked for: there may be hundreds

    def mask(self, number: int) -> Mask:
        """(height, width) of one object.

        Raises:
            DataError: It is of another size than the image.
        """
        mask = self.masks[number]()
        if mask.shape != (size_hw := self.image.shape[:2]):
            came, expected = (f"{width}×{height}" for height, width in (mask.shape, size_hw))
            raise DataError(f"{self.name}: the mask of object {number} is {came} pixels, but the image is {expected}")
        return mask


@dataclass(frozen=True)
class Scene:
    """A video, or an image as a video of one frame; nothing of it is read yet."""

    name: str
    frame: Callable[[int], Frame]
    """Reads one frame; an object keeps its number through all of them."""
    count: Callable[[], int] = lambda: 1
    """Frames. Asked for when needed, as some videos have to be opened to tell."""
    files: tuple[Path, ...] = ()
    """What has to be there."""


def split_by_name(scenes: Sequence[Scene], share: float) -> tuple[list[Scene], list[Scene]]:
    """Scenes to learn from, and a share to measure on: a name falls on the same side whatever else there is.

    At least one scene is on either side, if there are two and a share is asked for; one alone is learned from.
    """
    hashes = [zlib.crc32(scene.name.encode()) for scene in scenes]
    ranked = sorted(range(len(scenes)), key=lambda index: (hashes[index], scenes[index].name, index))
    count = sum(value < share * HASHES for value in hashes)
    if share > 0:
        count = min(max(count, 1), max(len(scenes) - 1, 0))
    measured = set(ranked[:count])
    return [s for i, s in enumerate(scenes) if i not in measured], [scenes[i] for i in sorted(measured)]


def masks_of_labels(labels: NDArray[Any], *, split: bool = False) -> dict[int, Callable[[], Mask]]:
    """Masks from a map of numbers, (height, width): 0 background, else an object each.

    Args:
        labels: The map.
        split: Take connected parts for objects of their own.
    """
    numbers = [int(number) for number in np.unique(labels) if number]
    if split:
        labels = cc3d.connected_components(labels.copy(), connectivity=8)  # it wants one that it could write to
        numbers = list(range(1, int(labels.max()) + 1))

    def masks_where(number: int) -> Callable[[], Mask]:
        return lambda: labels == number

    return {number: masks_where(number) for number in numbers}


def mask_of_coco(segmentation: Any, size_hw: tuple[int, int], where: str, index: int) -> Callable[[], Mask]:
    """A mask from what COCO calls a segmentation: polygons, or run lengths, packed or as a list.

    Decoding raises a DataError where it is none of these.

    Args:
        segmentation: Of one annotation.
        size_hw: (height, width) of its image.
        where: The file, for errors.
        index: Of the annotation, for errors.
    """

    def decode() -> Mask:
        try:
            return decode_rle([read_segmentation(segmentation, size_hw, index)])[0]
        except OverflowError as error:
            raise DataError(f"{where}: annotation {index} has run lengths below 0, or too large") from error
        except (ValueError, TypeError, KeyError) as error:
            raise DataError(f"{where}: {error}") from error

    return decode


def read_json(path: Path) -> Any:
    """Content of a JSON file.

    Raises:
        DataError: It is missing or no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise DataError(f"{path} is not JSON ({error})") from error
