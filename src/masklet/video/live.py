"""Live video: the newest frame of a camera or of a network stream."""

from __future__ import annotations

import math
import os
import threading
import weakref
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from av.video.frame import VideoFrame

from masklet.errors import VideoError
from masklet.video.address import read_address
from masklet.video.frames import width_by_height
from masklet.video.live_reader import LiveReader
from masklet.video.newest_frame import Newest
from masklet.video.pixels import upright_pixels
from masklet.video.readers import Frame

SAME_SHAPE = 0.02
"""Relative difference of aspect ratios up to which frames of another size are resized."""
CLOSING_SECONDS = 1.0
"""How long ``close`` waits for the thread, which may be in a call that cannot be interrupted."""


class LiveVideo:
    """The newest frames of a camera or a network stream. Frames that are not taken in time are dropped, never delayed.

    An iterator and a context manager::

        live = sam.stream()
        with masklet.LiveVideo("rtsp://192.168.1.20/stream") as camera:
            for frame in camera:
                prompts = {"cup": {"points": [(210, 350)]}} if live.count == 0 else None
                result = live.push(frame.image, prompts, time=frame.time)

    A thread receives the frames and holds only the newest. Each ``Frame`` has its number among those received, so gaps
    are dropped frames, and its time in seconds since the first, by the clock of the source. When the source fails, the
    thread connects again, and numbers and times continue. A stream keeps its memory, too: if the scene has changed in
    the meantime, prompt the objects again.

    Args:
        address: A camera: ``0`` for the first of this machine, ``/dev/video0``, or a name as FFmpeg's ``avfoundation``
            or ``dshow`` takes it. A URL: RTSP, RTMP, HTTP, HLS, TCP, UDP. Or a video file, which is played at its own
            rate, for testing. A file ends the iteration; other sources do not end.
        timeout: Seconds to wait for a connection, and for each frame.
        reconnect: Seconds without a frame after which a source that worked before is given up. 0 never reconnects,
            ``math.inf`` tries forever.
        format: FFmpeg's name of the format, if it cannot be detected.
        options: FFmpeg's options, such as ``{"video_size": "1280x720"}`` for a camera.

    Raises:
        VideoError: The source cannot be opened, or sends no frame in time; while iterating, it was given up, or its
            frames have another aspect ratio. Messages do not show passwords.
    """

    def __init__(
        self,
        address: str | int | os.PathLike[str],
        *,
        timeout: float = 10.0,
        reconnect: float = 60.0,
        format: str | None = None,
        options: Mapping[str, str] | None = None,
    ) -> None:
        if not (timeout > 0 and math.isfinite(timeout)):
            raise VideoError(f"timeout is {timeout}: expected a positive number of seconds")
        if not reconnect >= 0:
            raise VideoError(f"reconnect is {reconnect}: expected a number of seconds, 0 to give up at once")
        source = read_address(os.fspath(address) if isinstance(address, os.PathLike) else str(address))
        source = replace(source, format=format or source.format, options={**source.options, **(options or {})})
        self.name = source.name
        """For messages: the address without passwords."""
        self._newest = Newest(patience=3 * timeout)
        self._finalizer = weakref.finalize(self, self._newest.close)
        reader = LiveReader(source, self._newest, timeout=timeout, reconnect=reconnect)
        self._thread = threading.Thread(target=reader.run, name="masklet-live", daemon=True)
        self._thread.start()
        try:
            first = self._newest.wait(self.name)
            assert first is not None  # nobody else can have closed it
            self.size_hw: tuple[int, int] = upright_pixels(first.frame).shape[:2]
            """(height, width) of all frames."""
        except BaseException:  # Ctrl-C among them
            self.close()
            raise
        self.fps = reader.fps
        """Frames per second, as the source states it."""

    def __repr__(self) -> str:
        return f"LiveVideo({self.name!r}, {self.received} received, {self.dropped} dropped)"

    @property
    def received(self) -> int:
        """Frames received so far."""
        return self._newest.received

    @property
    def dropped(self) -> int:
        """Received frames that were dropped because a newer one came before they were taken."""
        return self._newest.dropped

    @property
    def reconnects(self) -> int:
        """How often the source was connected again."""
        return self._newest.reconnects

    def __iter__(self) -> LiveVideo:
        return self

    def __next__(self) -> Frame:
        """Wait for a frame that is newer than the last."""
        received = self._newest.take(self.name)
        if received is None:
            raise StopIteration
        return Frame(received.index, received.time, self._pixels(received.frame))

    def _pixels(self, frame: VideoFrame) -> np.ndarray:
        """The frame at the size of the first: cameras may change size when they are set up again."""
        pixels = upright_pixels(frame)
        height, width = pixels.shape[:2]
        if (height, width) == self.size_hw:
            return pixels
        ratio = (width * self.size_hw[0]) / (height * self.size_hw[1])
        if abs(ratio - 1) > SAME_SHAPE:
            raise VideoError(
                f"{self.name} now sends {width_by_height(pixels.shape)} instead of {width_by_height(self.size_hw)}, "
                "which has another aspect ratio: open it again, and prompt the objects in a new stream"
            )
        resized: Any = VideoFrame.from_ndarray(pixels).reformat(self.size_hw[1], self.size_hw[0])
        return resized.to_ndarray()

    def stop(self) -> None:
        """End an iteration, from another thread or from a signal handler."""
        self._newest.close()

    def close(self) -> None:
        """As ``stop``, and wait for the thread. A thread that hangs ends within the timeout."""
        self._finalizer()
        if self._thread is not threading.current_thread():
            self._thread.join(CLOSING_SECONDS)

    def __enter__(self) -> LiveVideo:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
