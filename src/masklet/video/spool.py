"""Values kept outside of Python's objects: in memory up to a limit, and in a temporary file beyond it."""

from __future__ import annotations

import io
import tempfile
import weakref
from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Protocol, TypeVar

import numpy as np

from masklet.errors import SpoolError
from masklet.video.frame_column import FrameColumn

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Place = tuple[int, int]
"""The offset of stored bytes, and their length."""
Value = TypeVar("Value")


class Spool:
    """Stores bytes. Space that is freed is used again, and the temporary file is deleted with the object.

    A spool is not thread-safe: use it from one thread at a time.

    Args:
        limit_bytes: Held in memory before all of it moves to a file.
    """

    def __init__(self, limit_bytes: int = 16 * 2**20) -> None:
        self._limit = limit_bytes
        self._file: IO[bytes] = io.BytesIO()
        self._end = 0
        self._free: dict[int, int] = {}  # start to length, of space that can be used again
        self._free_starts: dict[int, int] = {}  # end to start, of the same

    @property
    def memory_bytes(self) -> int:
        """What lies in memory."""
        return self._end if isinstance(self._file, io.BytesIO) else 0

    def put(self, data: bytes) -> Place:
        """Store bytes.

        Returns:
            What ``read`` and ``free`` take.

        Raises:
            SpoolError: The disk is full. What was stored before is still there.
        """
        fitting = next((place for place in self._free.items() if place[1] >= len(data)), None)
        start = self._end if fitting is None else fitting[0]
        try:
            if start + len(data) > self._limit and isinstance(self._file, io.BytesIO):
                self._move_to_disk(self._file)
            self._file.seek(start)
            _write(self._file, data)
        except OSError as error:
            raise SpoolError(
                f"cannot store tracked masks in {tempfile.gettempdir()}: {error}. Free space there, or set TMPDIR to a "
                "folder on another disk; what was tracked so far is kept"
            ) from error
        if fitting is None:
            self._end += len(data)
        else:
            self._take(start)
            if fitting[1] > len(data):
                self._give(start + len(data), fitting[1] - len(data))
        return start, len(data)

    def read(self, place: Place, last: int | None = None) -> bytes:
        """Read what ``put`` stored, or its last bytes.

        Args:
            place: From ``put``.
            last: How many bytes to read, from the end; all if None.

        Raises:
            SpoolError: The temporary file cannot be read, or was changed by another program.
        """
        start, length = place
        wanted = length if last is None else last
        try:
            self._file.seek(start + length - wanted)
            data = self._file.read(wanted)
        except OSError as error:
            raise SpoolError(f"cannot read tracked masks from {tempfile.gettempdir()}: {error}") from error
        if len(data) < wanted:
            raise SpoolError(
                f"tracked masks in {tempfile.gettempdir()} are gone: another program changed the temporary file"
            )
        return data

    def free(self, place: Place) -> None:
        """Give back the space of what ``put`` stored."""
        start, length = place
        if (before := self._free_starts.get(start)) is not None:
            start, length = before, self._take(before) + length
        if start + length in self._free:
            length += self._take(start + length)
        self._give(start, length)

    def _give(self, start: int, length: int) -> None:
        self._free[start], self._free_starts[start + length] = length, start

    def _take(self, start: int) -> int:
        length = self._free.pop(start)
        del self._free_starts[start + length]
        return length

    def _move_to_disk(self, held: io.BytesIO) -> None:
        # Unbuffered, so that a full disk is noticed now. Memory keeps everything until all of it is written.
        file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115
        try:
            _write(file, held.getvalue())
        except OSError:
            file.close()
            raise
        self._file = file
        weakref.finalize(self, file.close)


class Packing(Protocol[Value]):
    """How values become bytes, without loss."""

    def pack(self, value: Value) -> bytes:
        """A value as bytes."""

    def unpack(self, data: bytes) -> Value:
        """The value that ``pack`` was given."""


@dataclass(frozen=True)
class TensorPacking:
    """Tensors of one shape as their float32 values."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    def pack(self, value: Tensor) -> bytes:  # noqa: D102
        return value.float().cpu().numpy().tobytes()

    def unpack(self, data: bytes) -> Tensor:  # noqa: D102
        import torch

        values = torch.from_numpy(np.frombuffer(data, np.float32).copy())
        return values.view(self.shape).to(self.device, self.dtype)


class FrameSpool(MutableMapping[int, Value]):
    """A mapping from frames to values that lie packed in a spool; 32 bytes a frame stay in memory.

    Args:
        spool: May be shared with others.
        packing: How values are stored.
    """

    def __init__(self, spool: Spool, packing: Packing[Value]) -> None:
        self._spool = spool
        self._packing = packing
        self._starts: FrameColumn[int] = FrameColumn("q")
        self._lengths: FrameColumn[int] = FrameColumn("q")

    def __len__(self) -> int:
        return len(self._starts)

    def __iter__(self) -> Iterator[int]:
        return iter(self._starts)

    def __contains__(self, frame: object) -> bool:
        return frame in self._starts

    def __getitem__(self, frame: int) -> Value:
        return self._packing.unpack(self.read(frame))

    def __setitem__(self, frame: int, value: Value) -> None:
        self.write(frame, self._packing.pack(value))

    def __delitem__(self, frame: int) -> None:
        self._spool.free(self._place(frame))
        del self._starts[frame], self._lengths[frame]

    def clear(self) -> None:
        """Delete all values, without unpacking them."""
        for frame in list(self):
            del self[frame]

    def read(self, frame: int, last: int | None = None) -> bytes:
        """A packed value, or its last bytes."""
        return self._spool.read(self._place(frame), last)

    def write(self, frame: int, packed: bytes) -> None:
        """Store a value that is packed already."""
        self._place_at(frame, self._spool.put(packed))

    def _place_at(self, frame: int, place: Place) -> None:
        """A value lies in a place now. An earlier one is deleted only here, so that it survives a full disk."""
        if frame in self._starts:
            FrameSpool.__delitem__(self, frame)
        self._starts[frame], self._lengths[frame] = place

    def packed_bytes(self, frame: int) -> int:
        """The length of a packed value."""
        return self._lengths[frame]

    def _place(self, frame: int) -> Place:
        return self._starts[frame], self._lengths[frame]


def _write(file: IO[bytes], data: bytes) -> None:
    rest = memoryview(data)
    while rest:  # unbuffered files may write fewer bytes than they are given
        rest = rest[file.write(rest) :]
