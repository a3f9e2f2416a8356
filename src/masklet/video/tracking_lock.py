"""One generator of a session tracks at a time."""

from __future__ import annotations

from threading import Lock

from masklet.errors import SessionError

STILL_TRACKING = (
    "this session is being tracked already: finish the loop over its track(), resume_tracking() or everything(), or "
    "call close() on what it returned, before starting another"
)


class TrackingLock:
    """A generator holds it, as a context manager, until it ends, is closed or is garbage-collected."""

    def __init__(self) -> None:
        self._lock = Lock()

    def check(self) -> None:
        """Raise a SessionError if a generator holds it."""
        if self._lock.locked():
            raise SessionError(STILL_TRACKING)

    def __enter__(self) -> None:
        if not self._lock.acquire(blocking=False):
            raise SessionError(STILL_TRACKING)

    def __exit__(self, *error: object) -> None:
        self._lock.release()
