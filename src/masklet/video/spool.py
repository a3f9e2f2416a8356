"""Bytes put away in memory up to a limit, and in a temporary file beyond it."""

from __future__ import annotations

import io
import tempfile
import weakref
from typing import IO

from masklet.errors import SpoolError

Place = tuple[int, int]
"""Where something lies, and its length."""


class Spool:
    """Keeps what is put into it; room that is given back is used again. The temporary file goes with the object.

    Args:
        limit_bytes: Held in memory before all of it moves to a file.
    """

    def __init__(self, limit_bytes: int = 16 * 2**20) -> None:
        self._limit = limit_bytes
        self._file: IO[bytes] = io.BytesIO()
        self._end = 0
        self._free: list[Place] = []

    def put(self, data: bytes) -> Place:
        """Put away; what comes back finds it again.

        Raises:
            SpoolError: No room; what was put away before is still there.
        """
        fitting = next((place for place in self._free if place[1] >= len(data)), None)
        start = self._end if fitting is None else fitting[0]
        try:
            if start + len(data) > self._limit and isinstance(self._file, io.BytesIO):
                self._move_to_disk(self._file)
            self._file.seek(start)
            _write(self._file, data)
        except OSError as error:
            raise SpoolError(
                f"cannot keep past masks in {tempfile.gettempdir()}: {error}. Make room there, or set TMPDIR to a "
                "folder that has some; what was tracked so far is kept"
            ) from error
        if fitting is None:
            self._end += len(data)
        else:
            self._free.remove(fitting)
            self._free += [(start + len(data), fitting[1] - len(data))] if fitting[1] > len(data) else []
        return start, len(data)

    def read(self, place: Place, last: int | None = None) -> bytes:
        """What ``put`` put there; or its last so many bytes.

        Raises:
            SpoolError: It is gone.
        """
        start, length = place
        wanted = length if last is None else last
        try:
            self._file.seek(start + length - wanted)
            data = self._file.read(wanted)
        except OSError as error:
            raise SpoolError(f"cannot read past masks in {tempfile.gettempdir()}: {error}") from error
        if len(data) < wanted:
            raise SpoolError(
                f"past masks in {tempfile.gettempdir()} are gone: somebody else changed the temporary file"
            )
        return data

    def free(self, place: Place) -> None:
        """Give back room; what was there is lost."""
        start, length = place
        for other in [free for free in self._free if sum(free) == start or free[0] == sum(place)]:
            self._free.remove(other)
            start, length = min(start, other[0]), length + other[1]
        self._free.append((start, length))

    def _move_to_disk(self, held: io.BytesIO) -> None:
        # Without a buffer, so that a disk that is full says so now. Until all of it is there, memory has it.
        file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115
        try:
            _write(file, held.getvalue())
        except OSError:
            file.close()
            raise
        self._file = file
        weakref.finalize(self, file.close)


def _write(file: IO[bytes], data: bytes) -> None:
    rest = memoryview(data)
    while rest:  # files without a buffer may take a part
        rest = rest[file.write(rest) :]
