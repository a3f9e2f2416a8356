"""Read and write video: a video file, a folder of images, or images one after the other."""

from __future__ import annotations

import os
import sys
import warnings
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from fractions import Fraction
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import av
import numpy as np
from av.container import OutputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from typing_extensions import Self

from masklet.atomic import replacing
from masklet.errors import ImageError, VideoError
from masklet.images.folder import IMAGE_SUFFIXES, images_in
from masklet.images.reading import ImageSource, read_image
from masklet.video.decoder import FRAMES_AHEAD, IMAGES_FPS, Frame, VideoFile

VideoSource: TypeAlias = str | os.PathLike[str] | Iterable[ImageSource]

WRITABLE_SUFFIXES = (".mkv", ".mov", ".mp4")
ENCODERS = {"libx264": {"crf": "18"}, "libopenh264": {"b": "8M"}, "mpeg4": {"qmin": "2", "qmax": "4"}}
"""The first that PyAV was built with writes our videos; each with what makes it look like the original."""

CHECKSUM_BYTES = 2**20


class VideoWarning(UserWarning):
    """A video of which a part could not be read."""


class Reader(Protocol):
    """What a video is read from."""

    fps: Fraction
    count: int | None
    is_incomplete: bool
    reads_ahead: bool

    def read(self, wanted: range) -> Generator[Frame]:
        """The frames ``wanted``, one at least, in that order; those that cannot be decoded are left out."""


def open_video(source: VideoSource) -> Video:
    """A video to read frames from, whatever it is kept in.

    Args:
        source: One of

            - the path of a video file, of any format that PyAV decodes. It is read through once, without decoding, to
              know its frames;
            - a folder of images, in natural order (``frame2`` before ``frame10``); other files are passed over;
            - a sequence of images, as ``read_image`` takes them: a list of paths, an array (frames, height, width,
              3);
            - any other iterable of images, read once, as frames are asked for: no way back, no known end.

    Raises:
        VideoError: ``source`` is missing, is not a video, or has no frames.
    """
    if isinstance(source, (str, os.PathLike)):
        path = Path(source)
        if not path.exists():
            way_out = "URLs are not fetched: download it first" if "://" in str(source) else f"looked in {os.getcwd()}"
            raise VideoError(f"there is no video at {source}: expected a video file or a folder of images; {way_out}")
        if not path.is_dir():
            return Video(VideoFile(path), str(path), path)
        if not (images := images_in(path)):
            raise VideoError(f"{path} has no images in it: expected files that end in {', '.join(IMAGE_SUFFIXES)}")
        return Video(ImageSequence(images, str(path)), str(path), path)
    kind = type(source).__name__
    if getattr(source, "ndim", 4) != 4:
        raise VideoError(
            f"{kind} of shape {tuple(getattr(source, 'shape', ()))} is not a video: "
            "expected (frames, height, width, 3). For a video of one image pass [image]"
        )
    is_bytes = isinstance(source, (bytes, bytearray, memoryview)) or hasattr(source, "read")
    if is_bytes or isinstance(source, Mapping) or not isinstance(source, Iterable):
        way_out = "Save it to a file and pass its path" if is_bytes else "Pass a list, of one image if need be"
        raise VideoError(f"expected a path, a folder or an iterable of images, not {kind}. {way_out}")
    name = f"the {kind} of images"
    if isinstance(source, Sequence) or hasattr(source, "__getitem__"):
        return Video(ImageSequence(source, name), name)
    return Video(ImageIterator(source, name), name)


class Video:
    """Frames of one size, read a few at a time. Made by ``open_video``."""

    def __init__(self, reader: Reader, name: str, path: Path | None = None) -> None:
        self.name = name
        self.path = path
        first = None if reader.count == 0 else next(reader.read(range(1)), None)
        if first is None:
            raise VideoError(f"{name} has no frames that can be read: expected at least one")
        self.size_hw = (first.image.shape[0], first.image.shape[1])
        """Of its frames as they are shown: rotation is applied, pixels are as stored (none is stretched)."""
        self.fps = reader.fps
        """Frames per second, on average."""
        self.count = reader.count
        """Frames that can be read; None if that shows only at the end."""
        self._reader = reader

    def __len__(self) -> int:
        if self.count is None:
            raise TypeError(f"{self.name} has no known length: video.count is None")
        return self.count

    def __iter__(self) -> Iterator[Frame]:
        return self.frames()

    def __getitem__(self, index: int) -> Frame:
        """One frame, the same as when the video is read through. Frames from the keyframe before it are decoded too."""
        if index < 0 and self.count is not None:
            index += self.count
        for frame in self._checked(range(self._existing(index), index + 1)):
            return frame
        reason = "there are not so many" if self.count is None else "it is damaged, take the one before or after it"
        raise VideoError(f"frame {index} of {self.name} cannot be read: {reason}")

    def frames(self, start: int | None = None, stop: int | None = None, step: int = 1) -> Generator[Frame]:
        """Read frames, those of a file or folder in a background thread and up to ``FRAMES_AHEAD`` in advance.

        Args:
            start: The first; the video's first if None, or its last when ``step`` is negative.
            stop: The first no longer read, as in ``range``; None reads to the video's end, or back to its beginning.
            step: From one to the next; negative reads backward. Frames left out are not opened in a folder, and in a
                video file decoded, since later ones build on them, but not turned into pixels.

        Returns:
            A generator. The thread ends with it: at its last frame, on ``close()``, and when it is forgotten.

        Raises:
            VideoError: There is no such frame; the video cannot go back; while reading, its frames change size.

        Warns:
            VideoWarning: Frames are missing. What could be read has been.
        """
        if step == 0:
            raise VideoError("step is 0: expected 1 to read forward, -1 to read backward, or a multiple of them")
        if step < 0 and self.count is None:
            raise VideoError(f"{self.name} cannot be read backward: pass a list, a folder or a video file")
        count = sys.maxsize if self.count is None else self.count
        first = self._existing(start if start is not None else 0 if step > 0 else count - 1)
        last = (count if step > 0 else -1) if stop is None else min(max(stop, -1), count)
        return self._read(range(first, last, step))

    def checksum(self) -> str | None:
        """Recognises the same file or folder later, by its size and ends or by names, sizes and some images."""
        if self.path is None:
            return None
        if self.path.is_dir():
            images = images_in(self.path)
            entries = (f"{image.name}/{image.stat().st_size}\n" for image in images)
            digest = sha256("".join(entries).encode(errors="surrogateescape"))
            for image in (images[0], images[len(images) // 2], images[-1]):
                with image.open("rb") as file:
                    digest.update(file.read(CHECKSUM_BYTES))
            return digest.hexdigest()
        size = self.path.stat().st_size
        with self.path.open("rb") as file:
            digest = sha256(f"{size}\n".encode() + file.read(CHECKSUM_BYTES))
            file.seek(max(0, size - CHECKSUM_BYTES))
            digest.update(file.read(CHECKSUM_BYTES))
        return digest.hexdigest()

    def _existing(self, index: int) -> int:
        if index < 0 or (self.count is not None and index >= self.count):
            known = "frames count from 0" if self.count is None else f"its {self.count} frames count from 0"
            raise VideoError(f"there is no frame {index} in {self.name}: {known}")
        return index

    def _read(self, wanted: range) -> Generator[Frame]:
        if not wanted:
            return
        frames = self._checked(wanted)
        seen = 0
        with closing(ahead(frames) if self._reader.reads_ahead else frames) as frames:
            for frame in frames:
                seen += 1
                yield frame
        if self.count is None:
            return
        if seen < len(wanted):
            left_out = f"{len(wanted) - seen} of {len(wanted)} frames could not be decoded and were left out"
            warnings.warn(f"{self.name} is damaged: {left_out}", VideoWarning, stacklevel=2)
        # A step may pass over the last frame before the cut: what counts is whether reading was to go that far.
        if self._reader.is_incomplete and self.count in (wanted.stop, wanted.start + 1):
            missing = f"its first {self.count} frames could be read, others are missing. Fetch or export it again"
            warnings.warn(f"{self.name} is cut off or damaged: {missing}", VideoWarning, stacklevel=2)

    def _checked(self, wanted: range) -> Generator[Frame]:
        for frame in self._reader.read(wanted):
            if frame.image.shape[:2] != self.size_hw:
                raise VideoError(
                    f"frame {frame.index} of {self.name} is {width_by_height(frame.image.shape)}, but frame 0 is "
                    f"{width_by_height(self.size_hw)}: expected one size. Scale the frames, or split the video there"
                )
            yield frame


def ahead(frames: Generator[Frame], count: int = FRAMES_AHEAD) -> Generator[Frame]:
    """The same frames, produced in a thread, up to ``count`` before they are asked for."""
    pool = ThreadPoolExecutor(1, thread_name_prefix="masklet-video")

    def request() -> Future[Frame | None]:
        return pool.submit(lambda: next(frames, None))

    try:
        requested = deque(request() for _ in range(count))
        while (frame := requested.popleft().result()) is not None:
            requested.append(request())
            yield frame
    finally:
        # The garbage collector may come by in the thread itself, which ends but cannot wait for its own end.
        with suppress(RuntimeError):
            pool.shutdown(cancel_futures=True)
            frames.close()


class ImageSequence:
    """Images that can be had in any order."""

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
    """Images that come once. The one that came last is kept: it is looked at, prompted, and then tracked."""

    count: int | None = None
    is_incomplete = False
    reads_ahead = False  # a camera's images are taken when asked for, and where: its code may not like threads

    def __init__(self, images: Iterable[ImageSource], name: str) -> None:
        self.name = name
        self.fps = IMAGES_FPS
        self._coming = iter(images)
        self._passed = 0
        self._last: Frame | None = None

    def read(self, wanted: range) -> Generator[Frame]:  # noqa: D102
        for index in wanted:
            if self._last is None or index != self._last.index:
                if index < self._passed:
                    raise VideoError(
                        f"frame {index} of {self.name} has passed, and it gives each once: {self._passed} have been "
                        "taken. To go back pass a list, a folder or a video file"
                    )
                for image in islice(self._coming, index - self._passed, None):
                    self._passed = index + 1
                    self._last = image_frame(index, image, self.name)
                    break
                else:
                    return
            yield self._last


def width_by_height(size_hw: tuple[int, ...]) -> str:
    """As people say it."""
    return f"{size_hw[1]}×{size_hw[0]}"


def image_frame(index: int, image: ImageSource, name: str) -> Frame:
    """What ``read_image`` makes of an image, or complaints that say which it was."""
    try:
        return Frame(index, float(index / IMAGES_FPS), read_image(image))
    except ImageError as error:
        raise VideoError(f"frame {index} of {name}: {error}") from error


class VideoWriter:
    """Writes images of one size as a video that every player shows: H.264 if PyAV can, else MPEG-4; 8 bits, 4:2:0.

    A context manager: ``with VideoWriter("out.mp4", video.fps) as out: out.write(image)``. The file appears when the
    block ends well, and not at all when it fails. 4:2:0 has even sizes: an odd one repeats its last row or column.

    Args:
        path: Where to; its suffix chooses the format.
        fps: Images per second.

    Raises:
        VideoError: The suffix is not one of ``WRITABLE_SUFFIXES``; ``fps`` is not positive; nothing was written.
    """

    def __init__(self, path: str | os.PathLike[str], fps: Fraction | float = IMAGES_FPS) -> None:
        self.path = Path(path)
        self.count = 0
        if self.path.suffix.lower() not in WRITABLE_SUFFIXES:
            raise VideoError(
                f"cannot write a video to {path}: expected a name ending in {', '.join(WRITABLE_SUFFIXES)}"
            )
        if not 1e-2 <= fps <= 1e3:
            raise VideoError(f"fps is {fps}: expected 0.01 to 1000 images per second")
        self.fps = Fraction(fps).limit_denominator(1001)  # 30000/1001 is the finest step in use
        self._container: OutputContainer | None = None
        self._stream: VideoStream | None = None
        self._size_hw = (0, 0)

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            unfinished = stack.enter_context(replacing(self.path))
            self._container = stack.enter_context(av.open(str(unfinished.absolute()), "w"))
            stack.push(self._finish)
            self._closing = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self._closing.__exit__(*error)

    def write(self, image: ImageSource) -> None:
        """Add an image, as ``read_image`` takes it.

        Raises:
            ImageError: It is none.
            VideoError: Its size differs from the first one's; the writer is not open.
        """
        if self._container is None:
            raise VideoError(f"{self.path} is not open: write inside 'with VideoWriter(path, fps) as video:'")
        pixels = read_image(image)
        height, width, _ = pixels.shape
        if self._stream is None:
            self._size_hw = (height, width)
            self._stream = self._started(self._container, height + height % 2, width + width % 2)
        if (height, width) != self._size_hw:
            raise VideoError(
                f"image {self.count} for {self.path} is {width}×{height}, but image 0 was "
                f"{width_by_height(self._size_hw)}: expected one size. Scale them before"
            )
        pixels = np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        frame = VideoFrame.from_ndarray(pixels).reformat(format="yuv420p", dst_colorspace="ITU709")
        frame.pts = self.count
        self._container.mux(self._stream.encode(frame))
        self.count += 1

    def _started(self, container: OutputContainer, height: int, width: int) -> VideoStream:
        encoder = next(name for name in ENCODERS if name in av.codecs_available)
        stream = container.add_stream(encoder, self.fps, options=ENCODERS[encoder])
        assert isinstance(stream, VideoStream)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        # BT.709, said so that players do not guess; 1 is its number in all three lists, and limited range in the last.
        stream.colorspace = stream.color_primaries = stream.color_trc = stream.color_range = 1
        return stream

    def _finish(self, kind: type[BaseException] | None, *_: object) -> None:
        container, self._container = self._container, None
        if kind is not None:
            return
        if container is None or self._stream is None:
            raise VideoError(f"no image was written to {self.path}: expected one at least")
        container.mux(self._stream.encode(None))
