"""Read videos: a video file, a folder of images, or images one after another."""

from __future__ import annotations

import os
import sys
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from masklet.errors import VideoError
from masklet.images.folder import IMAGE_SUFFIXES, images_in
from masklet.images.options import DEFAULT, ImageOptions
from masklet.images.reading import ImageSource
from masklet.tensors import is_tensor
from masklet.video.decoder import FRAMES_AHEAD, VideoFile
from masklet.video.readers import Frame, ImageIterator, ImageList, ImageSequence, Reader
from masklet.video.stacks import open_images

if TYPE_CHECKING:
    from torch import Tensor

VideoSource: TypeAlias = str | os.PathLike[str] | Iterable[ImageSource]

CHECKSUM_BYTES = 2**20
MAX_SPANS = 8
"""Maximum number of ranges of missing frames that a warning names."""


class VideoWarning(UserWarning):
    """Part of a video could not be read."""


def open_video(source: VideoSource, options: ImageOptions = DEFAULT) -> Video:
    """Open a video to read frames from.

    Args:
        source: One of

            - the path of a video file, of any format that PyAV decodes. It is read through once, without decoding, to
              find its frames. If it is damaged, frames keep the numbers and times that they had before the damage, and
              lost frames are left out: see ``Video.gaps``. Frames that a recorder dropped have no number;
            - the path of an image file, recognised by its content: a TIFF of many pages, all of one size and along one
              axis; an animated GIF, PNG, WebP or AVIF, with its times; or a single image;
            - a folder of images, in natural order (``frame2`` before ``frame10``); other files are ignored;
            - a sequence of images, as ``read_image`` takes them: a list of paths, or an array (frames, height, width)
              or (frames, height, width, channels), including memory maps and arrays of zarr, h5py or dask; a tensor
              (frames, height, width) or (frames, channels, height, width);
            - any other iterable of images. It is read once, as frames are asked for: it cannot go back, and its
              length is not known.
        options: How values of images become brightness, see ``read_image``. All frames share one range: "auto" finds it
            in some frames of a folder or sequence, and in the first frame of any other iterable.

    Raises:
        VideoError: ``source`` is missing, is not a video, or has no frames; ``options`` are given for a video file.
    """
    if isinstance(source, (str, os.PathLike)):
        return _open_path(source, options)
    kind = type(source).__name__
    check_dimensions(source)
    is_bytes = isinstance(source, (bytes, bytearray, memoryview)) or hasattr(source, "read")
    is_array = hasattr(source, "__array__") and hasattr(source, "shape")
    if is_bytes or isinstance(source, Mapping) or not (is_array or isinstance(source, Iterable)):
        advice = "Save it to a file and pass its path" if is_bytes else "Pass a list, also for one image"
        raise VideoError(f"expected a path, a folder or an iterable of images, not {kind}. {advice}")
    name = f"the {kind} of images"
    if isinstance(source, Sequence) or hasattr(source, "__getitem__"):
        return Video(ImageSequence(ImageList(source), name, options), name)
    return Video(ImageIterator(source, name, options), name)


def _open_path(source: str | os.PathLike[str], options: ImageOptions) -> Video:
    path = Path(source)
    if not path.exists():
        advice = "download it first, or read it with LiveVideo" if "://" in str(source) else f"looked in {os.getcwd()}"
        raise VideoError(f"there is no video at {source}: expected a video file or a folder of images; {advice}")
    if not path.is_dir():
        if (pages := open_images(path, options)) is not None:
            return Video(ImageSequence(pages, str(path), options), str(path), path)
        if not options.is_default:
            raise VideoError(f"{path} is a video file: value_range, bands and nodata are for images, leave them out")
        return Video(VideoFile(path), str(path), path)
    if not (images := images_in(path)):
        raise VideoError(f"{path} has no images in it: expected files that end in {', '.join(IMAGE_SUFFIXES)}")
    return Video(ImageSequence(ImageList(images), str(path), options), str(path), path)


def check_dimensions(source: object) -> None:
    """Raise a VideoError if this is an array or tensor, but not of frames."""
    ndim, shape = getattr(source, "ndim", None), tuple(getattr(source, "shape", ()))
    # An array (height, width, 3) is an image and no video of narrow frames; the same for a tensor (3, height, width).
    is_image = ndim == 3 and shape[0 if is_tensor(source) else 2] in (1, 3, 4)
    if ndim not in (None, 3, 4) or is_image:
        expected = "(frames, 3, height, width)" if is_tensor(source) else "(frames, height, width, 3)"
        raise VideoError(
            f"{type(source).__name__} of shape {shape} is not a video: expected {expected} or (frames, height, width). "
            "For a video of one image pass [image]"
        )


class Video:
    """The frames of a video, all of one size, read a few at a time. Made by ``open_video``."""

    def __init__(self, reader: Reader, name: str, path: Path | None = None) -> None:
        self.name = name
        """For messages: the path, or what kind of images it is made of."""
        self.path = path
        """Path of the file or folder; None for images in memory."""
        # The first frames of a damaged file may be lost.
        first = None if reader.count == 0 else next(reader.read(range(reader.count or 1)), None)
        if first is None:
            raise VideoError(f"{name} has no frames that can be read: expected at least one")
        self.size_hw = (first.image.shape[0], first.image.shape[1])
        """(height, width) of the upright frames. Pixels are as stored: none is stretched to an aspect ratio."""
        self.fps = reader.fps
        """Frames per second, on average."""
        self.count = reader.count
        """Frames up to the last one, lost ones among them; None if that is known only at the end."""
        self._first = first.index
        self._reader = reader

    @property
    def image_options(self) -> ImageOptions:
        """How the values of images were read, with a fixed range where "auto" was asked for."""
        return getattr(self._reader, "options", DEFAULT)

    @property
    def gaps(self) -> list[range]:
        """Frames of a damaged file that cannot be decoded, as far as that is known before they are read.

        They keep their numbers: frames after them are numbered as in the undamaged video.
        """
        return consecutive(sorted(self._reader.lost))

    @property
    def reads_ahead(self) -> bool:
        """Whether a thread reads frames before they are asked for."""
        return self._reader.reads_ahead

    def __len__(self) -> int:
        if self.count is None:
            raise TypeError(f"{self.name} has no known length: video.count is None")
        return self.count

    def __iter__(self) -> Iterator[Frame]:
        return self.frames()

    def __getitem__(self, index: int) -> Frame:
        """One frame, the same as when the video is read through. A file is decoded from the keyframe before it."""
        if index < 0 and self.count is not None:
            index += self.count
        for frame in self._checked(range(self._existing(index), index + 1)):
            return frame
        reason = "the video is shorter" if self.count is None else f"it is damaged, use {self._nearest(index)}"
        raise VideoError(f"frame {index} of {self.name} cannot be read: {reason}")

    def frames(
        self,
        start: int | None = None,
        stop: int | None = None,
        step: int = 1,
        *,
        stage: Callable[[np.ndarray], Tensor] | None = None,
    ) -> Generator[Frame]:
        """Read frames. Those of a file or folder are read in a thread, up to ``FRAMES_AHEAD`` in advance.

        Args:
            start: The first frame; if None, the video's first, or its last if ``step`` is negative.
            stop: The frame before which reading ends, as in ``range``; None reads to the video's end, or back to its
                beginning.
            step: From one frame to the next; negative reads backward. Skipped frames of a folder are not opened. Those
                of a video file are decoded, since later frames depend on them, but not converted to pixels.
            stage: Makes ``Frame.staged`` of a frame's image, in the thread that reads it.

        Returns:
            A generator. Its thread ends after the last frame, on ``close()``, and when it is garbage-collected.

        Raises:
            VideoError: There is no such frame; the video cannot go back; while reading, the size of frames changes.

        Warns:
            VideoWarning: Frames are missing. All others have been read.
        """
        if step == 0:
            raise VideoError("step is 0: expected 1 to read forward, -1 to read backward, or a multiple of them")
        if step < 0 and self.count is None:
            raise VideoError(f"{self.name} cannot be read backward: pass a list, a folder or a video file")
        count = sys.maxsize if self.count is None else self.count
        first = self._existing(start if start is not None else 0 if step > 0 else count - 1)
        last = (count if step > 0 else -1) if stop is None else min(max(stop, -1), count)
        return self._read(range(first, last, step), stage)

    def checksum(self) -> str | None:
        """A checksum to recognise the same file or folder later; None for images in memory.

        Of a file it covers the size and both ends, of a folder the names and sizes and a few images.
        """
        if self.path is None:
            return None
        return _folder_checksum(self.path) if self.path.is_dir() else _file_checksum(self.path)

    def _existing(self, index: int) -> int:
        if index < 0 or (self.count is not None and index >= self.count):
            known = "frames count from 0" if self.count is None else f"its {self.count} frames count from 0"
            raise VideoError(f"there is no frame {index} in {self.name}: {known}")
        return index

    def _nearest(self, index: int) -> str:
        """The nearest frames that can be read, for messages."""
        lost = self._reader.lost
        sides = (range(index - 1, -1, -1), range(index + 1, self.count or 0))
        nearest = [next((str(other) for other in side if other not in lost), None) for side in sides]
        return f"frame {' or '.join(filter(None, nearest))}, the nearest that can be read"

    def _read(self, wanted: range, stage: Callable[[np.ndarray], Tensor] | None) -> Generator[Frame]:
        if not wanted:
            return
        frames = self._checked(wanted)
        if stage is not None and self._reader.reads_ahead:
            frames = (replace(frame, staged=stage(frame.image)) for frame in frames)
        done, missing = 0, list[range]()
        with closing(read_ahead(frames) if self._reader.reads_ahead else frames) as frames:
            for frame in frames:
                place = wanted.index(frame.index)
                if place > done:
                    missing.append(wanted[done:place])
                done = place + 1
                yield frame
        if self.count is None:
            return
        if done < len(wanted):
            missing.append(wanted[done:])
        if missing:
            left_out = f"{sum(map(len, missing))} of {len(wanted)} frames could not be decoded and were left out"
            warnings.warn(f"{self.name} is damaged: {left_out}: {spans(missing)}", VideoWarning, stacklevel=2)
        # The last frame before the cut may lie between two steps, so the end of the range decides.
        if self._reader.is_incomplete and self.count in (wanted.stop, wanted.start + 1):
            cut = f"its first {self.count} frames could be read, others are missing. Download or export it again"
            warnings.warn(f"{self.name} is cut off or damaged: {cut}", VideoWarning, stacklevel=2)

    def _checked(self, wanted: range) -> Generator[Frame]:
        for frame in self._reader.read(wanted):
            if frame.image.shape[:2] != self.size_hw:
                raise VideoError(
                    f"frame {frame.index} of {self.name} is {width_by_height(frame.image.shape)}, but frame "
                    f"{self._first} is {width_by_height(self.size_hw)}: expected one size. Resize the frames, or split "
                    "the video there"
                )
            yield frame


def read_ahead(frames: Generator[Frame], count: int = FRAMES_AHEAD) -> Generator[Frame]:
    """The same frames, read in a thread, up to ``count`` before they are asked for."""
    pool = ThreadPoolExecutor(1, thread_name_prefix="masklet-video")

    def request() -> Future[Frame | None]:
        return pool.submit(lambda: next(frames, None))

    try:
        requested = deque(request() for _ in range(count))
        while (frame := requested.popleft().result()) is not None:
            requested.append(request())
            yield frame
    finally:
        # The garbage collector may run in the thread itself, which cannot wait for its own end.
        with suppress(RuntimeError):
            pool.shutdown(cancel_futures=True)
            frames.close()


def with_following(frames: Generator[Frame]) -> Generator[tuple[Frame, Frame | None]]:
    """Each frame with the one that comes after it, and None with the last. An error is raised in its place."""
    with closing(frames):
        frame = next(frames, None)
        while frame is not None:
            following, error = None, None
            try:
                following = next(frames, None)
            except Exception as raised:
                error = raised
            yield frame, following
            if error is not None:
                raise error
            frame = following


def consecutive(numbers: Iterable[int]) -> list[range]:
    """Rising numbers as ranges."""
    ranges: list[range] = []
    for number in numbers:
        if ranges and ranges[-1].stop == number:
            ranges[-1] = range(ranges[-1].start, number + 1)
        else:
            ranges.append(range(number, number + 1))
    return ranges


def spans(ranges: Iterable[range]) -> str:
    """Ranges for messages, those of lower numbers first: ``3, 10-19``."""
    ends = sorted((min(numbers), max(numbers)) for numbers in ranges)
    texts = [str(first) if first == last else f"{first}-{last}" for first, last in ends[:MAX_SPANS]]
    return ", ".join([*texts, f"and {len(ends) - MAX_SPANS} more ranges"] if len(ends) > MAX_SPANS else texts)


def _file_checksum(path: Path) -> str:
    size = path.stat().st_size
    with path.open("rb") as file:
        digest = sha256(f"{size}\n".encode() + file.read(CHECKSUM_BYTES))
        file.seek(max(0, size - CHECKSUM_BYTES))
        digest.update(file.read(CHECKSUM_BYTES))
    return digest.hexdigest()


def _folder_checksum(path: Path) -> str:
    images = images_in(path)
    entries = (f"{image.name}/{image.stat().st_size}\n" for image in images)
    digest = sha256("".join(entries).encode(errors="surrogateescape"))
    for image in (images[0], images[len(images) // 2], images[-1]):
        with image.open("rb") as file:
            digest.update(file.read(CHECKSUM_BYTES))
    return digest.hexdigest()


def width_by_height(size_hw: tuple[int, ...]) -> str:
    """A size for messages: ``854×480``."""
    return f"{size_hw[1]}×{size_hw[0]}"
