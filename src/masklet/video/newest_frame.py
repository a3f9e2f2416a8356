"""Holds the newest frame of live video between the thread that receives frames and the one that takes them."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from time import monotonic

from av.video.frame import VideoFrame

from masklet.errors import VideoError


@dataclass(frozen=True)
class Received:
    """A decoded frame, not yet converted to pixels: most are dropped."""

    index: int
    time: float
    frame: VideoFrame


class Newest:
    """Holds the newest frame, for one thread that puts frames and one that takes them."""

    def __init__(self, patience: float) -> None:
        self.patience = patience
        """Seconds without a sign of life from the reader after which it counts as hanging in a system call."""
        self.received = 0
        self.dropped = 0
        self.reconnects = 0
        self.is_closed = False
        self.alive_at = monotonic()
        """When the reader last gave a sign of life, or will give the next."""
        self._newest: Received | None = None
        self._is_ended = False
        self._error: BaseException | None = None
        # Reentrant, since a signal handler may call close() while the same thread holds it.
        self._changed = threading.Condition(threading.RLock())

    def put(self, frame: VideoFrame, time: float) -> None:
        """Replace the frame, which is dropped if nobody took it."""
        with self._changed:
            if self.is_closed:
                return
            self.dropped += self._newest is not None
            self._newest = Received(self.received, time, frame)
            self.received += 1
            self._changed.notify_all()

    def drop(self) -> None:
        """Count a frame that was not decoded."""
        with self._changed:
            self.received += 1
            self.dropped += 1

    def end(self, error: BaseException | None = None) -> None:
        """No more frames come; ``error`` is raised once the last has been taken."""
        with self._changed:
            self._is_ended, self._error = True, error
            self._changed.notify_all()

    def close(self) -> None:
        """No more frames will be taken."""
        with self._changed:
            self.is_closed, self._newest = True, None
            self._changed.notify_all()

    def pause(self, seconds: float) -> None:
        """Sleep until ``close``, or for this long at most."""
        self.alive_at = monotonic() + seconds
        with self._changed:
            self._changed.wait_for(lambda: self.is_closed, seconds)

    def wait(self, name: str) -> Received | None:
        """The newest frame, which stays; None after the last one and after ``close``.

        Raises:
            VideoError: The reader failed, or hangs.
        """
        with self._changed:
            while self._newest is None and not (self._is_ended or self.is_closed):
                left = self.alive_at + self.patience - monotonic()
                if left <= 0:
                    raise VideoError(f"{name} does not respond: check that the camera is connected, and try again")
                self._changed.wait(left)
            if self._newest is None and self._error is not None and not self.is_closed:
                raise self._error
            return self._newest

    def take(self, name: str) -> Received | None:
        """As ``wait``, and removes the frame."""
        with self._changed:
            received, self._newest = self.wait(name), None
            return received
