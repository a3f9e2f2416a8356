"""Free memory goes back to the system.

glibc's allocator keeps what threads free, in gaps between what they still use: sessions of many users, tracked in turn
by several threads, took three times the memory of what they hold.
"""

from __future__ import annotations

import ctypes
import sys
import threading
import time

INTERVAL_S = 2.0
"""Least time between two calls: one takes some milliseconds, during which other threads may have to wait for memory."""


class HeapTrimmer:
    """Returns free memory, now and then. Does nothing where the allocator is not glibc's."""

    def __init__(self) -> None:
        self._trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
        self._lock = threading.Lock()
        self._last = -INTERVAL_S

    def __call__(self) -> None:
        """Returns free memory if the last time is long enough ago."""
        if self._trim is None or not self._lock.acquire(blocking=False):
            return
        try:
            if time.monotonic() - self._last >= INTERVAL_S:
                self._trim(0)
                self._last = time.monotonic()
        finally:
            self._lock.release()
