"""Writes images as a video file, or as an animated GIF or WebP."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeAlias

import av
import numpy as np
from av.codec import Codec
from av.codec.codec import UnknownCodecError
from av.container import OutputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from PIL import Image

from masklet.atomic import keeping, replacing
from masklet.errors import VideoError
from masklet.images.reading import ImageSource, read_image
from masklet.numbers import real_number
from masklet.video.frames import width_by_height
from masklet.video.readers import IMAGES_FPS

WRITABLE_SUFFIXES = (".mkv", ".mov", ".mp4", ".gif", ".webp")
Encoders: TypeAlias = dict[str, dict[str, str]]
# B-frames are off: with irregular times, they make an MP4 state a duration that ends before its last images.
ENCODERS: Encoders = {
    "libx264": {"crf": "18", "bf": "0"},
    "libopenh264": {"b": "8M"},
    "mpeg4": {"qmin": "2", "qmax": "4"},
}
"""Encoders of videos, the preferred first, each with options for a quality close to the original."""
ANIMATION_ENCODERS: dict[str, Encoders] = {".gif": {"gif": {}}, ".webp": {"libwebp_anim": {"quality": "90"}}}
"""The same of animations."""
LIVE_SUFFIXES = (".mkv", ".mov", ".mp4")
"""Formats of videos that can be played before they are complete."""
FRAGMENTS = {"movflags": "hybrid_fragmented", "frag_duration": "1000000"}
"""Options of MP4 and MOV: fragments of a second, which become an ordinary file at the end."""
CLUSTERS = {"cluster_time_limit": "1000"}
"""Options of Matroska: the same, in milliseconds."""
LIVE_ENCODERS = {"libx264": {"preset": "veryfast", "tune": "zerolatency"}}
"""Options of encoders that leave time for tracking, and hold no images back."""
MIN_FPS, MAX_FPS = 1e-2, 1e3
VIDEO_TICKS = 60000
"""Steps of time in a second, about: MPEG-4 allows up to 65535. Matroska rounds them to milliseconds."""


@dataclass(frozen=True)
class Encoding:
    """How images become a file of one kind."""

    encoder: str
    options: dict[str, str]
    pix_fmt: str
    tick: Fraction
    """The step of time, in seconds."""
    least: int = 1
    """Ticks for which an image is shown at least."""


class VideoWriter:
    """Writes images of one size as a video for every player: H.264 if PyAV has it, else MPEG-4; 8 bits, 4:2:0.

    Names ending in ``.gif`` and ``.webp`` give animations that repeat. A GIF has 256 colours for each image, times in
    steps of 10 ms, and at most 50 images per second; WebP stores equal consecutive images as one.

    A context manager: ``with VideoWriter("out.mp4", video.fps) as out: out.write(image)``. The file appears when the
    block ends without an error, and otherwise not at all. 4:2:0 needs even sizes: with an odd one, the last row or
    column of a video is repeated.

    Args:
        path: Its suffix chooses the format.
        fps: Images per second, for images without times. The last image is shown for ``1 / fps`` seconds.
        live: Keep what was written even if the block ends with an error or the process is killed: see
            ``atomic.keeping``. Not for animations.

    Raises:
        VideoError: The suffix is not one of ``WRITABLE_SUFFIXES``, or ``LIVE_SUFFIXES``; this PyAV has no encoder for
            it; ``fps`` is not positive; nothing was written.
    """

    def __init__(self, path: str | os.PathLike[str], fps: Fraction | float = IMAGES_FPS, *, live: bool = False) -> None:
        self.path = Path(path)
        self.live = live
        self.count = 0
        """Images written so far."""
        check_suffix(path, live=live)
        real_number("fps", fps, VideoError, least=MIN_FPS, most=MAX_FPS)
        self.fps = Fraction(fps).limit_denominator(1001)  # 30000/1001 is the finest step in use
        self._encoding = encoding_for(self.path, self.fps)
        self._container: OutputContainer | None = None
        self._stream: VideoStream | None = None
        self._size_hw = (0, 0)
        self._first_time = self._last_time = 0.0
        self._held: VideoFrame | None = None  # the last image: how long it is shown is known with the next one

    def __enter__(self) -> VideoWriter:
        with ExitStack() as stack:
            unfinished = stack.enter_context((keeping if self.live else replacing)(self.path))
            place, options = str(unfinished.absolute()), self._container_options()
            self._container = stack.enter_context(av.open(place, "w", options=options))
            stack.push(self._finish)
            self._closing = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self._closing.__exit__(*error)

    def write(self, image: ImageSource, time: float | None = None) -> None:
        """Add an image, as ``read_image`` takes it.

        Args:
            image: An image of the size of the first one.
            time: When it is shown, in seconds; ``count / fps`` if None. The video begins with its first image, so only
                differences count: times from the middle of another video can be used unchanged.

        Raises:
            ImageError: It cannot be read.
            VideoError: Its size differs from that of the first; its time is not later than that of the one before; the
                writer is not open.
        """
        if self._container is None:
            raise VideoError(f"{self.path} is not open: write inside 'with VideoWriter(path, fps) as video:'")
        pixels = read_image(image)
        seconds = self._checked_time(time)
        height, width, _ = pixels.shape
        if self._stream is None:
            self._size_hw, self._first_time = (height, width), seconds
            is_420 = self._encoding.pix_fmt == "yuv420p"
            self._padding = ((0, height % 2 * is_420), (0, width % 2 * is_420), (0, 0))
            self._stream = self._new_stream(self._container, height, width)
        if (height, width) != self._size_hw:
            raise VideoError(
                f"image {self.count} for {self.path} is {width}×{height}, but image 0 was "
                f"{width_by_height(self._size_hw)}: expected one size. Resize them first"
            )
        frame = video_frame(np.pad(pixels, self._padding, mode="edge"), self._encoding.pix_fmt)
        frame.time_base = self._encoding.tick
        pts = round((seconds - self._first_time) / self._encoding.tick)
        if self._held is not None:
            pts = max(pts, (self._held.pts or 0) + self._encoding.least)  # times may be too close for the format
            self._encode(self._held, pts)
        frame.pts, self._held, self._last_time = pts, frame, seconds
        self.count += 1

    def _checked_time(self, time: float | None) -> float:
        name = f"the time of image {self.count} for {self.path}"
        seconds = float(self.count / self.fps) if time is None else real_number(name, time, VideoError)
        if self.count and seconds <= self._last_time:
            raise VideoError(
                f"image {self.count} for {self.path} is shown at {seconds:g} s, but the one before at "
                f"{self._last_time:g} s: expected times that increase. Write the images in their order"
            )
        return seconds

    def _container_options(self) -> dict[str, str]:
        suffix = self.path.suffix.lower()
        if self.live:
            return {"flush_packets": "1", **(CLUSTERS if suffix == ".mkv" else FRAGMENTS)}
        # GIF and WebP play once by default; how long a GIF's last image is shown is an option of its own.
        options = {".gif": {"loop": "0", "final_delay": str(round(100 / self.fps))}, ".webp": {"loop": "0"}}
        return options.get(suffix, {})

    def _new_stream(self, container: OutputContainer, height: int, width: int) -> VideoStream:
        encoding, ((_, row), (_, column), _) = self._encoding, self._padding
        options = {**encoding.options, **(LIVE_ENCODERS.get(encoding.encoder, {}) if self.live else {})}
        stream = container.add_stream(encoding.encoder, self.fps, options=options)
        assert isinstance(stream, VideoStream)
        stream.width, stream.height, stream.pix_fmt = width + column, height + row, encoding.pix_fmt
        stream.codec_context.time_base = encoding.tick
        if encoding.pix_fmt == "yuv420p":
            # BT.709, so that players do not guess: 1 in the first three enumerations; in the last, 1 is limited range.
            stream.colorspace = stream.color_primaries = stream.color_trc = stream.color_range = 1
        return stream

    def _encode(self, frame: VideoFrame, end: int) -> None:
        assert self._container is not None
        assert self._stream is not None
        frame.duration = end - (frame.pts or 0)
        self._container.mux(self._stream.encode(frame))

    def _finish(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._container is None or self._stream is None or self._held is None:
            if kind is None and not self.live:
                raise VideoError(f"no image was written to {self.path}: expected at least one")
        elif kind is None or self.live:
            self._encode(self._held, (self._held.pts or 0) + max(1, round(1 / self.fps / self._encoding.tick)))
            self._container.mux(self._stream.encode(None))
        self._container = self._held = None


def check_suffix(path: str | os.PathLike[str], *, live: bool = False) -> None:
    """Raise a VideoError unless ``VideoWriter`` writes files of such a name."""
    suffixes = LIVE_SUFFIXES if live else WRITABLE_SUFFIXES
    if Path(path).suffix.lower() not in suffixes:
        raise VideoError(f"cannot write a video to {path}: expected a name ending in {', '.join(suffixes)}")


def encoding_for(path: Path, fps: Fraction) -> Encoding:
    """The encoder for a file, and a step of time of which ``1 / fps`` is a multiple, if the format allows it.

    Raises:
        VideoError: This PyAV has no such encoder.
    """
    suffix = path.suffix.lower()
    encoder, options = first_of(path, ANIMATION_ENCODERS.get(suffix, ENCODERS))
    if suffix == ".gif":
        return Encoding(encoder, options, "pal8", Fraction(1, 100), least=2)  # players slow down shorter ones
    if suffix == ".webp":
        return Encoding(encoder, options, "bgra", Fraction(1, 1000))
    ticks = VIDEO_TICKS // fps.numerator * fps.numerator or VIDEO_TICKS
    return Encoding(encoder, options, "yuv420p", Fraction(1, ticks))


def first_of(path: Path, encoders: Encoders) -> tuple[str, dict[str, str]]:
    """The first encoder that this PyAV has, with its options."""
    for encoder, options in encoders.items():
        try:
            Codec(encoder, "w")
        except UnknownCodecError:
            continue
        return encoder, options
    raise VideoError(
        f"cannot write {path}: this PyAV has none of the encoders {', '.join(encoders)}. Install it from PyPI, "
        "pip install --force-reinstall av, or write another format"
    )


def video_frame(pixels: np.ndarray, pix_fmt: str) -> VideoFrame:
    """(height, width, 3) uint8 -> a frame for an encoder."""
    if pix_fmt == "pal8":
        image = Image.fromarray(pixels).quantize(256)
        colours = np.array(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
        palette = np.full((256, 4), 255, np.uint8)  # opaque; alpha comes first
        palette[: len(colours), 1:] = colours
        return VideoFrame.from_ndarray((np.asarray(image), palette), format="pal8")  # type: ignore[arg-type]
    frame = VideoFrame.from_ndarray(pixels)
    return frame.reformat(format=pix_fmt, dst_colorspace="ITU709" if pix_fmt == "yuv420p" else None)
