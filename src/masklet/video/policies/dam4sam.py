"""DAM4SAM: a memory of its own for frames with distractors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from statistics import median
from typing import ClassVar

from masklet.video.policies.kalman import box_iou
from masklet.video.policies.memories import SlotPolicy, frames_that_pass, visible_pointers, with_neighbour
from masklet.video.policy import Box, Candidates, Choice, FrameRecord, History, MemorySelection


@dataclass(frozen=True, kw_only=True)
class Dam4SamPolicy(SlotPolicy):
    """Keeps recent frames for the object's current appearance, and frames in which a distractor was distinguished.

    - *Recent*: the neighbour, and every ``recent_every``-th frame, if the object was in it.
    - *Distractors*: the last ``distractor_frames`` frames in which an alternative candidate differed: the box of the
      chosen mask has an IoU of at most ``alternative_iou`` with the box of both masks together. The chosen mask must be
      reliable: predicted IoU above ``reliable_iou``, and an area within ``area_change`` of the median of the last ten.
      They carry the time code of prompted frames.

    Frames without the object are never read.

    Source: DAM4SAM (arXiv 2411.17576), section 3.
    """

    recent_every: int = 5
    recent_frames: int = 3
    distractor_frames: int = 3
    reliable_iou: float = 0.8
    area_change: float = 0.2
    alternative_iou: float = 0.7
    areas: int = 10

    hypotheses: ClassVar[int] = 1

    def choose(self, frame: int, rows: Sequence[Candidates], *, step: int) -> Sequence[Choice]:
        """See ``MemoryPolicy``: the candidate of the highest predicted IoU. Notes distractors."""
        (found,) = rows
        notes = {
            "distractor": self.has_distractor(found, frame, step),
            "distractors": self._distractors(found.history, frame, step),
            "recent": self._on_the_grid(found.history, frame, step),
        }
        return [Choice(found.best, notes=notes)]

    def has_distractor(self, found: Candidates, frame: int, step: int) -> bool:
        """Whether an alternative differs from a reliable mask."""
        best = found.best
        if found.is_prompted or found.object_score <= 0 or found.iou_scores[best] <= self.reliable_iou:
            return False
        seen = (record.area for _, record in found.history.before(frame, step=step) if record.is_visible)
        usual = median(areas) if (areas := list(islice(seen, self.areas))) else found.areas[best]
        if abs(found.areas[best] - usual) > self.area_change * usual:
            return False
        others = [index for index in range(len(found.boxes)) if index != best and found.areas[index]]
        own = found.boxes[best]
        return any(box_iou(own, around(own, found.boxes[index])) <= self.alternative_iou for index in others)

    def select(self, frame: int, history: History, *, step: int) -> MemorySelection:
        """See ``MemoryPolicy``."""
        prompted = self.prompted(frame, history.prompted)
        certain = sorted({*prompted, *self._distractors(history, frame, step)})
        recent, neighbour = self._on_the_grid(history, frame, step), frame - step
        if neighbour in history and history.record(neighbour).is_visible:
            recent = with_neighbour(recent, history, frame, step)
        recent = [other for other in recent if other not in (*certain, *history.prompted)]
        most = min(self.recent_frames, self.num_maskmem - 1)
        pointers = visible_pointers(history, frame, step, self.max_pointers, but=certain)
        return self.selection(frame, step, certain, recent[:most], pointers)

    def _distractors(self, history: History, frame: int, step: int) -> list[int]:
        """The last frames in which a distractor was distinguished from the object."""
        return frames_that_pass(history, frame, step, told_apart, self.distractor_frames, note="distractors")

    def _on_the_grid(self, history: History, frame: int, step: int) -> list[int]:
        """The last frames with the object among every ``recent_every``-th."""

        def passes(other: int, record: FrameRecord) -> bool:
            return record.is_visible and other // abs(step) % self.recent_every == 0

        # Some of them may be read as distractors.
        most = self.recent_frames + self.distractor_frames
        return frames_that_pass(history, frame, step, passes, most, note="recent")


def told_apart(_: int, record: FrameRecord) -> bool:
    """Whether a distractor was distinguished from the object in a frame."""
    return bool(record.notes.get("distractor"))


def around(first: Box, second: Box) -> Box:
    """The box of two masks together."""
    return min(first[0], second[0]), min(first[1], second[1]), max(first[2], second[2]), max(first[3], second[3])
