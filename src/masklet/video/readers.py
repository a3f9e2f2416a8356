"""Where the frames of a video come from: the interface, and images in a sequence or one after another."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from typing import Any, Protocol

import numpy as np

from masklet.errors import ImageError, VideoError
from masklet.images.reading import ImageSource, read_image

IMAGES_FPS = Fraction(25)
"""Frames per second of images, which have no rate of their own."""


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """One image of a video."""

    index: int
    """From 0, in the order in which frames are shown."""
    time: float
    """Seconds since frame 0."""
    image: np.ndarray
    """(height, width, 3) uint8 RGB, upright."""


class Reader(Protocol):
    """What a video is read from."""

    fps: Fraction
    """Frames per second, on average."""
    count: int | None
    """Frames that can be read; None if that is known only at the end."""
    is_incomplete: bool
    """Whether frames at the end are missing."""
    reads_ahead: bool
    """Whether another thread may read frames before they are asked for."""

    def read(self, wanted: range) -> Generator[Frame]:
        """Read the frames ``wanted``, which is not empty, in that order. Frames that cannot be decoded are left out."""


class ImageSequence:
    """Images that can be read in any order."""

    is_incomplete = False
    reads_ahead = True

    def __init__(self, images: Any, name: str) -> None:
        self.name = name
        self.fps = IMAGES_FPS
        self.count: int | None = len(images)
        self._images = images

    def read(self, wanted: range) -> Generator[Frame]:  # noqa: D102
        for index in wanted:
            yield image_frame(index, self._images[index], self.name)


class ImageIterator:
    """Images that can be read once. The last one is kept, so that it can be prompted and then tracked."""

    count: int | None = None
    is_incomplete = False
    reads_ahead = False  # the iterator may be a camera, which must be read when asked and in the caller's thread

    def __init__(self, images: Iterable[ImageSource], name: str) -> None:
        self.name = name
        self.fps = IMAGES_FPS
        self._images = iter(images)
        self._taken = 0
        self._last: Frame | None = None

    def read(self, wanted: range) -> Generator[Frame]:  # noqa: D102
        for index in wanted:
            if self._last is None or index != self._last.index:
                if index < self._taken:
                    raise VideoError(
                        f"frame {index} of {self.name} cannot be read again: it gives each frame once, and "
                        f"{self._taken} have been read. To go back, pass a list, a folder or a video file"
                    )
                for image in islice(self._images, index - self._taken, None):
                    self._taken = index + 1
                    self._last = image_frame(index, image, self.name)
                    break
                else:
                    return
            yield self._last


def image_frame(index: int, image: ImageSource, name: str) -> Frame:
    """Read an image as a frame. Errors name the frame."""
    try:
        return Frame(index, float(index / IMAGES_FPS), read_image(image))
    except ImageError as error:
        raise VideoError(f"frame {index} of {name}: {error}") from error
