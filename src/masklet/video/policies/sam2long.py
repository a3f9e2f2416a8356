"""SAM2Long: several pathways, of which the best one is known late."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from masklet.video.policies.memories import SlotPolicy, frames_that_pass, visible_pointers
from masklet.video.policy import Candidates, Choice, FrameRecord, History, MemorySelection

LEAST_IOU = 1e-6
"""Below this, the logarithm of a predicted IoU no longer falls."""


@dataclass(frozen=True, kw_only=True)
class Sam2LongPolicy(SlotPolicy):
    """Tracks an object along several pathways, and decides between them later.

    - In each frame every pathway proposes its candidates. The ``hypotheses`` candidates with the highest sums of log
      predicted IoU along their pathway stay.
    - In an uncertain frame, where no pathway has an object score beyond ±``certain_score``, candidates with a predicted
      IoU that equals a better one's to two decimals wait until all others have been taken: pathways stay diverse.
    - A pathway reads its last frames with a predicted IoU above ``memory_iou`` and the object in them. The keys of
      their maps are multiplied by weights, from ``key_weights[0]`` for the lowest object score to ``key_weights[1]``
      for the highest.

    A prompt is certain: all pathways restart there.

    Source: SAM2Long (arXiv 2410.16268), section 3.
    """

    hypotheses: int = 3
    memory_iou: float = 0.3
    certain_score: float = 2.0
    key_weights: tuple[float, float] = (0.95, 1.05)

    def choose(self, frame: int, rows: Sequence[Candidates], *, step: int) -> Sequence[Choice]:
        """See ``MemoryPolicy``. Notes the sum of each row, and what it read."""
        if rows[0].is_prompted:
            return [Choice(0, notes={"sum": 0.0, "passed": self._read(rows[0].history, frame, step)})]
        proposed = [
            (self._sum(row.history, frame - step) + math.log(max(iou, LEAST_IOU)), number, index)
            for number, row in enumerate(rows)
            for index, iou in enumerate(row.iou_scores)
        ]
        proposed.sort(key=lambda entry: (-entry[0], *entry[1:]))
        if all(abs(row.object_score) <= self.certain_score for row in rows):
            proposed = distinct_first(proposed, rows)
        kept = sorted(proposed[: self.hypotheses], key=lambda entry: (-entry[0], *entry[1:]))
        read = [self._read(row.history, frame, step) for row in rows]
        return [Choice(index, row, {"sum": total, "passed": read[row]}) for total, row, index in kept]

    def _sum(self, history: History, frame: int) -> float:
        return history.record(frame).notes.get("sum", 0.0) if frame in history else 0.0

    def select(self, frame: int, history: History, *, step: int) -> MemorySelection:
        """See ``MemoryPolicy``."""
        prompted = self.prompted(frame, history.prompted)
        read = self._read(history, frame, step)
        pointers = visible_pointers(history, frame, step, self.max_pointers, but=prompted)
        scores = [history.record(other).object_score for other in read]
        return self.selection(frame, step, prompted, read, pointers, self._weights(scores))

    def _read(self, history: History, frame: int, step: int) -> list[int]:
        return frames_that_pass(history, frame, step, self._passes, self.num_maskmem - 1)

    def _passes(self, _: int, record: FrameRecord) -> bool:
        return record.iou_score > self.memory_iou and record.is_visible

    def _weights(self, scores: Sequence[float]) -> list[float]:
        """Evenly spaced weights in the order of the scores; 1 for a single frame."""
        low, high = self.key_weights
        if len(scores) < 2:
            return [1.0] * len(scores)
        order = sorted(range(len(scores)), key=lambda index: (scores[index], -index))
        weights = [0.0] * len(scores)
        for rank, index in enumerate(order):
            weights[index] = low + (high - low) * rank / (len(scores) - 1)
        return weights


def distinct_first(
    proposed: Sequence[tuple[float, int, int]], rows: Sequence[Candidates]
) -> list[tuple[float, int, int]]:
    """The same, but each predicted IoU, to two decimals, once before any of them again."""
    seen: set[float] = set()
    first: list[tuple[float, int, int]] = []
    again: list[tuple[float, int, int]] = []
    for entry in proposed:
        rounded = round(rows[entry[1]].iou_scores[entry[2]], 2)
        (again if rounded in seen else first).append(entry)
        seen.add(rounded)
    return first + again
