"""Writes images as a video file."""

from __future__ import annotations

import os
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.container import OutputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from masklet.atomic import replacing
from masklet.errors import VideoError
from masklet.images.reading import ImageSource, read_image
from masklet.video.frames import width_by_height
from masklet.video.readers import IMAGES_FPS

WRITABLE_SUFFIXES = (".mkv", ".mov", ".mp4")
ENCODERS = {"libx264": {"crf": "18"}, "libopenh264": {"b": "8M"}, "mpeg4": {"qmin": "2", "qmax": "4"}}
"""Encoders, the preferred first, each with options for a quality close to the original."""


class VideoWriter:
    """Writes images of one size as a video for every player: H.264 if PyAV has it, else MPEG-4; 8 bits, 4:2:0.

    A context manager: ``with VideoWriter("out.mp4", video.fps) as out: out.write(image)``. The file appears when the
    block ends without an error, and otherwise not at all. 4:2:0 needs even sizes: with an odd one, the last row or
    column is repeated.

    Args:
        path: Its suffix chooses the format.
        fps: Images per second.

    Raises:
        VideoError: The suffix is not one of ``WRITABLE_SUFFIXES``; ``fps`` is not positive; nothing was written.
    """

    def __init__(self, path: str | os.PathLike[str], fps: Fraction | float = IMAGES_FPS) -> None:
        self.path = Path(path)
        self.count = 0
        """Images written so far."""
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

    def __enter__(self) -> VideoWriter:
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
            ImageError: It cannot be read.
            VideoError: Its size differs from that of the first; the writer is not open.
        """
        if self._container is None:
            raise VideoError(f"{self.path} is not open: write inside 'with VideoWriter(path, fps) as video:'")
        pixels = read_image(image)
        height, width, _ = pixels.shape
        if self._stream is None:
            self._size_hw = (height, width)
            self._stream = self._new_stream(self._container, height + height % 2, width + width % 2)
        if (height, width) != self._size_hw:
            raise VideoError(
                f"image {self.count} for {self.path} is {width}×{height}, but image 0 was "
                f"{width_by_height(self._size_hw)}: expected one size. Resize them first"
            )
        pixels = np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        frame = VideoFrame.from_ndarray(pixels).reformat(format="yuv420p", dst_colorspace="ITU709")
        frame.pts = self.count
        self._container.mux(self._stream.encode(frame))
        self.count += 1

    def _new_stream(self, container: OutputContainer, height: int, width: int) -> VideoStream:
        encoder = next(name for name in ENCODERS if name in av.codecs_available)
        stream = container.add_stream(encoder, self.fps, options=ENCODERS[encoder])
        assert isinstance(stream, VideoStream)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        # BT.709, so that players do not guess: 1 in the first three enumerations; in the last, 1 is limited range.
        stream.colorspace = stream.color_primaries = stream.color_trc = stream.color_range = 1
        return stream

    def _finish(self, kind: type[BaseException] | None, *_: object) -> None:
        container, self._container = self._container, None
        if kind is not None:
            return
        if container is None or self._stream is None:
            raise VideoError(f"no image was written to {self.path}: expected at least one")
        container.mux(self._stream.encode(None))
