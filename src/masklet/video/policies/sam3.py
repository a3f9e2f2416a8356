"""The memory filter of SAM 3."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from masklet.video.policies.memories import SlotPolicy, frames_that_pass, with_neighbour
from masklet.video.policy import Candidates, Choice, FrameRecord, History, MemorySelection


@dataclass(frozen=True, kw_only=True)
class Sam3Policy(SlotPolicy):
    """Reads only frames in which the object was clearly visible.

    A frame's score is max(0, 2σ(object score) − 1) · predicted IoU. Walking back from the frame, the last
    ``max_pointers − 1`` frames with a score above ``least_score`` are listed, and the neighbour in any case. The last
    six maps of the list, and all its pointers, are read; their codes in time count the list, not the frames.

    Source: SAM 3 (arXiv 2511.16719), the tracker's memory selection.
    """

    max_prompted: int = 4
    least_score: float = 0.01

    hypotheses: ClassVar[int] = 1

    def choose(self, frame: int, rows: Sequence[Candidates], *, step: int) -> Sequence[Choice]:
        """See ``MemoryPolicy``: the candidate of the highest predicted IoU. Notes the frames before that are listed."""
        return [Choice(rows[0].best, notes={"passed": self._listed(rows[0].history, frame, step)})]

    def score(self, record: FrameRecord) -> float:
        """How clearly the object was visible, 0 to 1."""
        # 2σ(x) − 1 = tanh(x / 2), which does not overflow.
        return max(0.0, math.tanh(record.object_score / 2)) * record.iou_score

    def select(self, frame: int, history: History, *, step: int) -> MemorySelection:
        """See ``MemoryPolicy``."""
        prompted = self.prompted(frame, history.prompted)
        listed = with_neighbour(self._listed(history, frame, step), history, frame, step)
        listed = listed[: max(self.max_pointers - 1, 1)]
        pointers = [(other, rank) for rank, other in enumerate(listed, start=1)]
        return self.selection(frame, step, prompted, listed[: self.num_maskmem - 1], pointers)

    def _listed(self, history: History, frame: int, step: int) -> list[int]:
        return frames_that_pass(history, frame, step, self._passes, self.max_pointers - 1)

    def _passes(self, _: int, record: FrameRecord) -> bool:
        return self.score(record) > self.least_score
