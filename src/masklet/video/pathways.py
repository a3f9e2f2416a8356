"""Several hypotheses of one object: pathways through the results that are kept of each frame.

Each frame has a result for each row. A result continues one of the rows of the frame before, its parent. A pathway is
the chain of parents of a result, and reads the memories along it.

Source: SAM2Long (arXiv 2410.16268), section 3.2, "constrained tree memory".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor

from masklet.video.frame_column import FrameColumn
from masklet.video.memory import ObjectMemory
from masklet.video.object_frame import ObjectFrame
from masklet.video.policy import HISTORY_STEPS, FrameRecord


def parent_of(banks: Sequence[ObjectMemory], frame: int, row: int) -> tuple[int, int] | None:
    """The frame and the row that a result continues; None if it has no parent, or that is gone."""
    record = banks[row].records.get(frame)
    if record is None or not record.step or (before := frame - record.step) not in banks[0]:
        return None
    return before, record.parent if before in banks[record.parent] else 0


def final_rows(banks: Sequence[ObjectMemory]) -> FrameColumn[int]:
    """The row of each frame on the pathway that is best where tracking ended, for rows other than 0.

    Tracking may have ended in several places, forward and backward: each frame belongs to the last frame after it.
    """
    parents = {frame - banks[0].records[frame].step for frame in banks[0].records}
    seen: set[int] = set()
    rows: FrameColumn[int] = FrameColumn("q")
    for end in sorted(banks[0].records.keys() - parents, reverse=True):
        place: tuple[int, int] | None = (end, 0)
        while place is not None and place[0] not in seen:
            seen.add(place[0])
            if place[1]:
                rows[place[0]] = place[1]
            place = parent_of(banks, *place)
    return rows


class Pathway:
    """The memory and the history along one pathway. It reads like an ``ObjectMemory``.

    Args:
        banks: The bank of each row.
        end: The frame and the row of its last result.
        step: Step of tracking. For frames that the chain does not reach with this step, row 0 is read.
    """

    def __init__(self, banks: Sequence[ObjectMemory], end: tuple[int, int], step: int) -> None:
        self.banks = banks
        self.prompted = banks[0].prompted
        self.maps: Mapping[int, Tensor] = PathwayMaps(self)
        self._step = step
        self._rows = dict([end])
        self._first: tuple[int, int] | None = end  # the earliest of them, whose parent is not looked up yet

    def bank_of(self, frame: int) -> ObjectMemory:
        """The bank that holds the result of a frame on this pathway."""
        if frame in self.prompted:
            return self.banks[0]
        self._extend_to(frame)
        return self.banks[self._rows.get(frame, 0)]

    def _extend_to(self, frame: int) -> None:
        while frame not in self._rows and self._first is not None and len(self._rows) <= HISTORY_STEPS:
            before = parent_of(self.banks, *self._first)
            self._first = before if before is not None and before[0] == self._first[0] - self._step else None
            if self._first is not None:
                self._rows[self._first[0]] = self._first[1]

    def __contains__(self, frame: object) -> bool:
        return frame in self.banks[0]

    def __getitem__(self, frame: int) -> ObjectFrame:
        return self.bank_of(frame)[frame]

    def pointer(self, frame: int) -> Tensor:
        """The object pointer of one frame, (dim,)."""
        return self.bank_of(frame).pointer(frame)

    def record(self, frame: int) -> FrameRecord:
        """See ``History``."""
        return self.bank_of(frame).records[frame]

    def before(self, frame: int, *, step: int) -> Iterator[tuple[int, FrameRecord]]:
        """See ``History``."""
        for earlier in range(frame - step, frame - (HISTORY_STEPS + 1) * step, -step):
            if earlier in self.banks[0].records:
                yield earlier, self.bank_of(earlier).records[earlier]


class PathwayMaps(Mapping[int, Tensor]):
    """The memory maps along a pathway."""

    def __init__(self, pathway: Pathway) -> None:
        self._pathway = pathway

    def __getitem__(self, frame: int) -> Tensor:
        return self._pathway.bank_of(frame).maps[frame]

    def __contains__(self, frame: object) -> bool:
        return isinstance(frame, int) and frame in self._pathway and frame in self._pathway.bank_of(frame).maps

    def __iter__(self) -> Iterator[int]:
        return (frame for frame in self._pathway.banks[0].maps if frame in self)

    def __len__(self) -> int:
        return sum(1 for _ in self)
