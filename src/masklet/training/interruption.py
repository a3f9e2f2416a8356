"""Signals that end a run: it is saved at the last complete step, whether by Ctrl-C or by a scheduler's SIGTERM."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Terminated(SystemExit):
    """The process was asked to end by SIGTERM. Programs exit with status 143, as after the signal itself."""

    def __init__(self) -> None:
        super().__init__(128 + signal.SIGTERM)


class StopSignals:
    """Remembers SIGINT and SIGTERM until the run can stop.

    Args:
        may_raise: Whether the state is whole at this moment, so that an exception may interrupt the work.
    """

    def __init__(self, may_raise: Callable[[], bool]) -> None:
        self.may_raise = may_raise
        self._received: type[BaseException] | None = None
        self._is_interruptible = False

    @property
    def is_requested(self) -> bool:
        """Whether a signal has arrived."""
        return self._received is not None

    def check(self) -> None:
        """Raises KeyboardInterrupt or Terminated if a signal has arrived."""
        if self._received is not None:
            raise self._received

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """A block that a signal may interrupt immediately. Elsewhere a signal waits for the next ``check``."""
        self._is_interruptible = True
        try:
            yield
        finally:
            self._is_interruptible = False

    @contextmanager
    def handled(self) -> Iterator[None]:
        """Receives the signals. Outside the main thread, where Python cannot, nothing changes."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._receive) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _receive(self, number: int, _: FrameType | None) -> None:
        is_second = self._received is not None
        self._received = KeyboardInterrupt if number == signal.SIGINT else Terminated
        # A second Ctrl-C does not wait: something may hang.
        if is_second or (self._is_interruptible and self.may_raise()):
            self.check()
