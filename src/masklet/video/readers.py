"""Where the frames of a video come from: the interface, and images in a sequence or one after another."""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from PIL.Image import Image

from masklet.errors import ImageError, VideoError
from masklet.images.options import DEFAULT, ImageOptions
from masklet.images.reading import ImageSource, pixels_of, resolved_for
from masklet.images.values import to_rgb8
from masklet.tensors import is_tensor

if TYPE_CHECKING:
    from torch import Tensor

SAMPLED_FRAMES = 8
"""Number of frames in which the range of values of a sequence is found."""
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
    staged: Tensor | None = None
    """The image in pinned memory, if the thread that read it was asked to put it there."""


class Reader(Protocol):
    """What a video is read from."""

    fps: Fraction
    """Frames per second, on average."""
    count: int | None
    """Frames up to the last one, lost ones among them; None if that is known only at the end."""
    is_incomplete: bool
    """Whether frames at the end are missing."""
    reads_ahead: bool
    """Whether another thread may read frames before they are asked for."""

    @property
    def lost(self) -> Collection[int]:
        """Numbers of the frames that cannot be decoded, as far as that is known before they are read."""

    def read(self, wanted: range) -> Generator[Frame]:
        """Read the frames ``wanted``, which is not empty, in that order. Frames that cannot be decoded are left out."""


class Images(Protocol):
    """Images that can be read in any order, from one file or many."""

    fps: Fraction
    """Images per second, on average."""
    is_incomplete: bool
    """Whether images at the end are missing."""

    def __len__(self) -> int: ...

    def time(self, index: int) -> float:
        """When an image is shown, in seconds from the first one."""

    def read(self, wanted: Sequence[int], options: ImageOptions) -> Generator[np.ndarray]:
        """The pixels of the images ``wanted``, as from ``pixels_of``."""


class ImageList:
    """A sequence of images: paths, or frames in an array, a memory map, or an array of zarr, h5py or dask."""

    fps = IMAGES_FPS
    is_incomplete = False

    def __init__(self, images: Any) -> None:
        self._images = images

    def __len__(self) -> int:
        # An array of zarr has no length.
        return int(self._images.shape[0]) if hasattr(self._images, "shape") else len(self._images)

    def time(self, index: int) -> float:  # noqa: D102
        return float(index / self.fps)

    def read(self, wanted: Sequence[int], options: ImageOptions) -> Generator[np.ndarray]:  # noqa: D102
        for index in wanted:
            image = self._images[index]
            if is_tensor(image):
                image = image[None] if image.ndim == 2 else image
            elif hasattr(image, "__array__") and not isinstance(image, (np.ndarray, Image)):
                image = np.asarray(image)
            yield pixels_of(image, options)


class ImageSequence:
    """Images that can be read in any order, as frames."""

    lost: Collection[int] = ()
    reads_ahead = True

    def __init__(self, images: Images, name: str, options: ImageOptions = DEFAULT) -> None:
        self.name = name
        self.fps = images.fps
        self.count: int | None = len(images)
        self.is_incomplete = images.is_incomplete
        self.options = options
        """With one range of values for all frames, once the first has been read."""
        self._images = images
        self._is_resolved = False

    def read(self, wanted: range) -> Generator[Frame]:  # noqa: D102
        for index, pixels in self._numbered(wanted):
            if not self._is_resolved:
                self.options = resolved_for(self._sampled(index, pixels), self.options)
                self._is_resolved = True
            yield frame_of(index, self._images.time(index), pixels, self.name, self.options)

    def _numbered(self, wanted: Sequence[int]) -> Generator[tuple[int, np.ndarray]]:
        with closing(self._images.read(wanted, self.options)) as images:
            for index in wanted:
                with naming_frame(index, self.name):
                    pixels = next(images)
                yield index, pixels

    def _sampled(self, first: int, pixels: np.ndarray) -> Iterator[np.ndarray]:
        """The frame that is read first and, to find a range of values, some from all over the sequence."""
        yield pixels
        if self.options.value_range == "auto":
            places = np.linspace(0, len(self._images) - 1, SAMPLED_FRAMES).astype(int).tolist()
            for _, sampled in self._numbered(sorted({*places} - {first})):
                yield sampled


class ImageIterator:
    """Images that can be read once. The last one is kept, so that it can be prompted and then tracked."""

    count: int | None = None
    is_incomplete = False
    lost: Collection[int] = ()
    reads_ahead = False  # the iterator may be a camera, which must be read when asked and in the caller's thread

    def __init__(self, images: Iterable[ImageSource], name: str, options: ImageOptions = DEFAULT) -> None:
        self.name = name
        self.fps = IMAGES_FPS
        self.options = options
        """With the range of values of the first frame, once it has been read."""
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
                    with naming_frame(index, self.name):
                        pixels = pixels_of(image, self.options)
                    if self._last is None:
                        self.options = resolved_for([pixels], self.options)
                    self._last = frame_of(index, float(index / self.fps), pixels, self.name, self.options)
                    break
                else:
                    return
            yield self._last


def frame_of(index: int, time: float, pixels: np.ndarray, name: str, options: ImageOptions) -> Frame:
    """A frame of what ``pixels_of`` returned, with resolved options."""
    with naming_frame(index, name):
        return Frame(index, time, to_rgb8(pixels, options))


@contextmanager
def naming_frame(index: int, name: str) -> Iterator[None]:
    """Turns ImageErrors into VideoErrors that name the frame."""
    try:
        yield
    except ImageError as error:
        raise VideoError(f"frame {index} of {name}: {error}") from error
