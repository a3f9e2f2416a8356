"""Read and write film: a video file, a folder of pictures, or pictures one after the other."""

from __future__ import annotations

import os
import re
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

from masklet.errors import FilmError, PictureError
from masklet.files import replacing
from masklet.pictures import PictureSource, read_picture
from masklet.video.decoder import FRAMES_AHEAD, PICTURES_FPS, Frame, VideoFile

FilmSource: TypeAlias = str | os.PathLike[str] | Iterable[PictureSource]

# fmt: off
PICTURE_SUFFIXES = (
    ".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp",
)
# fmt: on
WRITABLE_SUFFIXES = (".mkv", ".mov", ".mp4")
ENCODERS = {"libx264": {"crf": "18"}, "libopenh264": {"b": "8M"}, "mpeg4": {"qmin": "2", "qmax": "4"}}
"""The first that PyAV was built with writes our films; each with what makes it look like the original."""

CHECKSUM_BYTES = 2**20


class FilmWarning(UserWarning):
    """A film of which a part could not be read."""


class Reader(Protocol):
    """What a film is read from."""

    fps: Fraction
    count: int | None
    is_incomplete: bool
    reads_ahead: bool

    def read(self, wanted: range) -> Generator[Frame]:
        """The frames ``wanted``, one at least, in that order; those that cannot be decoded are left out."""


def open_film(source: FilmSource) -> Film:
    """A film to read frames from, whatever it is kept in.

    Args:
        source: One of

            - the path of a video file, of any format that PyAV decodes. It is read through once, without decoding, to
              know its frames;
            - a folder of pictures, in natural order (``frame2`` before ``frame10``); other files are passed over;
            - a sequence of pictures, as ``read_picture`` takes them: a list of paths, an array (frames, height, width,
              3);
            - any other iterable of pictures, read once, as frames are asked for: no way back, no known end.

    Raises:
        FilmError: ``source`` is missing, is not a film, or has no frames.
    """
    if isinstance(source, (str, os.PathLike)):
        path = Path(source)
        if not path.exists():
            way_out = "URLs are not fetched: download it first" if "://" in str(source) else f"looked in {os.getcwd()}"
            raise FilmError(f"there is no film at {source}: expected a video file or a folder of pictures; {way_out}")
        if not path.is_dir():
            return Film(VideoFile(path), str(path), path)
        if not (pictures := pictures_in(path)):
            raise FilmError(f"{path} has no pictures in it: expected files that end in {', '.join(PICTURE_SUFFIXES)}")
        return Film(PictureSequence(pictures, str(path)), str(path), path)
    kind = type(source).__name__
    if getattr(source, "ndim", 4) != 4:
        raise FilmError(
            f"{kind} of shape {tuple(getattr(source, 'shape', ()))} is not a film: "
            "expected (frames, height, width, 3). For a film of one picture pass [picture]"
        )
    is_bytes = isinstance(source, (bytes, bytearray, memoryview)) or hasattr(source, "read")
    if is_bytes or isinstance(source, Mapping) or not isinstance(source, Iterable):
        way_out = "Save it to a file and pass its path" if is_bytes else "Pass a list, of one picture if need be"
        raise FilmError(f"expected a path, a folder or an iterable of pictures, not {kind}. {way_out}")
    name = f"the {kind} of pictures"
    if isinstance(source, Sequence) or hasattr(source, "__getitem__"):
        return Film(PictureSequence(source, name), name)
    return Film(PassingPictures(source, name), name)


def pictures_in(folder: Path) -> list[Path]:
    """The pictures right in a folder, in natural order: runs of digits count as numbers."""

    def order(file: Path) -> tuple[list[str | int], str]:
        # Text and numbers take turns, so like is compared with like; the name itself settles img1 against img01.
        parts = re.split("([0-9]+)", file.name.lower())
        return [int(part) if place % 2 else part for place, part in enumerate(parts)], file.name

    files = (file for file in folder.iterdir() if file.suffix.lower() in PICTURE_SUFFIXES and file.name[0] != ".")
    return sorted((file for file in files if file.is_file()), key=order)


class Film:
    """Frames of one size, read a few at a time. Made by ``open_film``."""

    def __init__(self, reader: Reader, name: str, path: Path | None = None) -> None:
        self.name = name
        self.path = path
        first = None if reader.count == 0 else next(reader.read(range(1)), None)
        if first is None:
            raise FilmError(f"{name} has no frames that can be read: expected at least one")
        self.size_hw = (first.picture.shape[0], first.picture.shape[1])
        """Of its frames as they are shown: rotation is applied, pixels are as stored (none is stretched)."""
        self.fps = reader.fps
        """Frames per second, on average."""
        self.count = reader.count
        """Frames that can be read; None if that shows only at the end."""
        self._reader = reader

    def __len__(self) -> int:
        if self.count is None:
            raise TypeError(f"{self.name} has no known length: film.count is None")
        return self.count

    def __iter__(self) -> Iterator[Frame]:
        return self.frames()

    def __getitem__(self, index: int) -> Frame:
        """One frame, the same as when the film is read through. Frames from the keyframe before it are decoded too."""
        if index < 0 and self.count is not None:
            index += self.count
        for frame in self._checked(range(self._existing(index), index + 1)):
            return frame
        reason = "there are not so many" if self.count is None else "it is damaged, take the one before or after it"
        raise FilmError(f"frame {index} of {self.name} cannot be read: {reason}")

    def frames(self, start: int | None = None, stop: int | None = None, step: int = 1) -> Generator[Frame]:
        """Read frames, those of a file or folder in a background thread and up to ``FRAMES_AHEAD`` in advance.

        Args:
            start: The first; the film's first if None, or its last when ``step`` is negative.
            stop: The first no longer read, as in ``range``; None reads to the film's end, or back to its beginning.
            step: From one to the next; negative reads backward. Frames left out are not opened in a folder, and in a
                video file decoded, since later ones build on them, but not turned into pixels.

        Returns:
            A generator. The thread ends with it: at its last frame, on ``close()``, and when it is forgotten.

        Raises:
            FilmError: There is no such frame; the film cannot go back; while reading, its frames change size.

        Warns:
            FilmWarning: Frames are missing. What could be read has been.
        """
        if step == 0:
            raise FilmError("step is 0: expected 1 to read forward, -1 to read backward, or a multiple of them")
        if step < 0 and self.count is None:
            raise FilmError(f"{self.name} cannot be read backward: pass a list, a folder or a video file")
        count = sys.maxsize if self.count is None else self.count
        first = self._existing(start if start is not None else 0 if step > 0 else count - 1)
        last = (count if step > 0 else -1) if stop is None else min(max(stop, -1), count)
        return self._read(range(first, last, step))

    def checksum(self) -> str | None:
        """Recognises the same file or folder later, by its size and ends or by names, sizes and some pictures."""
        if self.path is None:
            return None
        if self.path.is_dir():
            pictures = pictures_in(self.path)
            entries = (f"{picture.name}/{picture.stat().st_size}\n" for picture in pictures)
            digest = sha256("".join(entries).encode(errors="surrogateescape"))
            for picture in (pictures[0], pictures[len(pictures) // 2], pictures[-1]):
                with picture.open("rb") as file:
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
            raise FilmError(f"there is no frame {index} in {self.name}: {known}")
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
            warnings.warn(f"{self.name} is damaged: {left_out}", FilmWarning, stacklevel=2)
        # A step may pass over the last frame before the cut: what counts is whether reading was to go that far.
        if self._reader.is_incomplete and self.count in (wanted.stop, wanted.start + 1):
            missing = f"its first {self.count} frames could be read, others are missing. Fetch or export it again"
            warnings.warn(f"{self.name} is cut off or damaged: {missing}", FilmWarning, stacklevel=2)

    def _checked(self, wanted: range) -> Generator[Frame]:
        for frame in self._reader.read(wanted):
            if frame.picture.shape[:2] != self.size_hw:
                raise FilmError(
                    f"frame {frame.index} of {self.name} is {width_by_height(frame.picture.shape)}, but frame 0 is "
                    f"{width_by_height(self.size_hw)}: expected one size. Scale the frames, or split the film there"
                )
            yield frame


def ahead(frames: Generator[Frame], count: int = FRAMES_AHEAD) -> Generator[Frame]:
    """The same frames, produced in a thread, up to ``count`` before they are asked for."""
    pool = ThreadPoolExecutor(1, thread_name_prefix="masklet-film")

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


class PictureSequence:
    """Pictures that can be had in any order."""

    is_incomplete = False
    reads_ahead = True

    def __init__(self, pictures: Any, name: str) -> None:
        self.name = name
        self.fps = PICTURES_FPS
        self.count: int | None = len(pictures)
        self._pictures = pictures

    def read(self, wanted: range) -> Generator[Frame]:  # noqa: D102
        for index in wanted:
            yield picture_frame(index, self._pictures[index], self.name)


class PassingPictures:
    """Pictures that come once. The one that came last is kept: it is looked at, prompted, and then tracked."""

    count: int | None = None
    is_incomplete = False
    reads_ahead = False  # a camera's pictures are taken when asked for, and where: its code may not like threads

    def __init__(self, pictures: Iterable[PictureSource], name: str) -> None:
        self.name = name
        self.fps = PICTURES_FPS
        self._coming = iter(pictures)
        self._passed = 0
        self._last: Frame | None = None

    def read(self, wanted: range) -> Generator[Frame]:  # noqa: D102
        for index in wanted:
            if self._last is None or index != self._last.index:
                if index < self._passed:
                    raise FilmError(
                        f"frame {index} of {self.name} has passed, and it gives each once: {self._passed} have been "
                        "taken. To go back pass a list, a folder or a video file"
                    )
                for picture in islice(self._coming, index - self._passed, None):
                    self._passed = index + 1
                    self._last = picture_frame(index, picture, self.name)
                    break
                else:
                    return
            yield self._last


def width_by_height(size_hw: tuple[int, ...]) -> str:
    """As people say it."""
    return f"{size_hw[1]}×{size_hw[0]}"


def picture_frame(index: int, picture: PictureSource, name: str) -> Frame:
    """What ``read_picture`` makes of a picture, or complaints that say which it was."""
    try:
        return Frame(index, float(index / PICTURES_FPS), read_picture(picture))
    except PictureError as error:
        raise FilmError(f"frame {index} of {name}: {error}") from error


class FilmWriter:
    """Writes pictures of one size as a film that every player shows: H.264 if PyAV can, else MPEG-4; 8 bits, 4:2:0.

    A context manager: ``with FilmWriter("out.mp4", film.fps) as out: out.write(picture)``. The file appears when the
    block ends well, and not at all when it fails. 4:2:0 has even sizes: an odd one repeats its last row or column.

    Args:
        path: Where to; its suffix chooses the format.
        fps: Pictures per second.

    Raises:
        FilmError: The suffix is not one of ``WRITABLE_SUFFIXES``; ``fps`` is not positive; nothing was written.
    """

    def __init__(self, path: str | os.PathLike[str], fps: Fraction | float = PICTURES_FPS) -> None:
        self.path = Path(path)
        self.count = 0
        if self.path.suffix.lower() not in WRITABLE_SUFFIXES:
            raise FilmError(f"cannot write a film to {path}: expected a name ending in {', '.join(WRITABLE_SUFFIXES)}")
        if not 1e-2 <= fps <= 1e3:
            raise FilmError(f"fps is {fps}: expected 0.01 to 1000 pictures per second")
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

    def write(self, picture: PictureSource) -> None:
        """Add a picture, as ``read_picture`` takes it.

        Raises:
            PictureError: It is none.
            FilmError: Its size differs from the first one's; the writer is not open.
        """
        if self._container is None:
            raise FilmError(f"{self.path} is not open: write inside 'with FilmWriter(path, fps) as film:'")
        pixels = read_picture(picture)
        height, width, _ = pixels.shape
        if self._stream is None:
            self._size_hw = (height, width)
            self._stream = self._started(self._container, height + height % 2, width + width % 2)
        if (height, width) != self._size_hw:
            raise FilmError(
                f"picture {self.count} for {self.path} is {width}×{height}, but picture 0 was "
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
            raise FilmError(f"no picture was written to {self.path}: expected one at least")
        container.mux(self._stream.encode(None))
