"""One number for each frame, kept compactly."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterator, MutableMapping
from typing import TypeVar

Number = TypeVar("Number", int, float)


class FrameColumn(MutableMapping[int, Number]):
    """A mapping from frames to numbers that iterates in the order of the frames.

    It is a pair of sorted arrays: 16 bytes a frame, where a dict of objects takes ten times as much. Frames usually
    come in order, so they are appended.

    Args:
        typecode: ``"q"`` for whole numbers or ``"d"`` for floats, as in ``array``.
    """

    def __init__(self, typecode: str) -> None:
        self._frames = array("q")
        self._values: array[Number] = array(typecode)

    def __len__(self) -> int:
        return len(self._frames)

    def __iter__(self) -> Iterator[int]:
        return iter(self._frames)

    def __contains__(self, frame: object) -> bool:
        # Asked many times in every frame of a video, so without a call of ``_find``.
        frames = self._frames
        return isinstance(frame, int) and (row := bisect_left(frames, frame)) < len(frames) and frames[row] == frame

    def __getitem__(self, frame: int) -> Number:
        row, is_there = self._find(frame)
        if not is_there:
            raise KeyError(frame)
        return self._values[row]

    def __setitem__(self, frame: int, value: Number) -> None:
        row, is_there = self._find(frame)
        if is_there:
            self._values[row] = value
        else:
            self._frames.insert(row, frame)
            self._values.insert(row, value)

    def __delitem__(self, frame: int) -> None:
        row, is_there = self._find(frame)
        if not is_there:
            raise KeyError(frame)
        del self._frames[row], self._values[row]

    def copy(self) -> FrameColumn[Number]:
        """An independent copy."""
        copied: FrameColumn[Number] = FrameColumn(self._values.typecode)
        copied._frames, copied._values = self._frames[:], self._values[:]
        return copied

    def _find(self, frame: int) -> tuple[int, bool]:
        """The row where a frame is or belongs, and whether it is there."""
        row = bisect_left(self._frames, frame)
        return row, row < len(self._frames) and self._frames[row] == frame
