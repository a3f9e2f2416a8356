"""SAMURAI: a motion model helps to choose the mask and the memories."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from masklet.video.policies.kalman import BoxFilter, box_iou, has_area
from masklet.video.policies.memories import SlotPolicy, frames_that_pass, with_neighbour
from masklet.video.policy import Candidates, Choice, FrameRecord, History, MemorySelection


@dataclass(frozen=True, kw_only=True)
class SamuraiPolicy(SlotPolicy):
    """A Kalman filter predicts the box of an object, and candidates that agree with it are preferred.

    - After ``stable_frames`` frames in a row with a predicted IoU above ``stable_iou``, the candidate of the highest
      ``motion_weight`` · IoU with the predicted box + (1 − ``motion_weight``) · predicted IoU is chosen; before, that
      of the highest predicted IoU. A chosen candidate below ``stable_iou`` restarts the count, and does not correct
      the filter.
    - A tracked frame's map is read if its predicted IoU, its object score and its motion score (the IoU of its box with
      the predicted one) are above ``memory_iou``, ``memory_object`` and ``memory_motion``. The nearest such frames
      are read, and the neighbour in any case; codes in time count them. Pointers are those of the paper's policy.

    A prompt restarts the filter, since it may move the object anywhere.

    Source: SAMURAI (arXiv 2411.11922), section 4.
    """

    motion_weight: float = 0.15
    stable_frames: int = 15
    stable_iou: float = 0.3
    memory_iou: float = 0.5
    memory_object: float = 0.0
    memory_motion: float = 0.0

    hypotheses: ClassVar[int] = 1

    def choose(self, frame: int, rows: Sequence[Candidates], *, step: int) -> Sequence[Choice]:
        """See ``MemoryPolicy``. Notes the filter, the number of stable frames, the motion score, and what was read."""
        (found,) = rows
        choice = self._choice(found, frame, step)
        passed = self._read(found.history, frame, step)
        return [Choice(choice.candidate, notes={**choice.notes, "passed": passed})]

    def _choice(self, found: Candidates, frame: int, step: int) -> Choice:
        state = None if found.is_prompted else self._state(found.history, frame - step, step)
        if state is None:
            return self._start(found)
        motion, stable = state
        predicted = motion.predict()
        is_stable = stable >= self.stable_frames
        scores = [box_iou(predicted.box, box) for box in found.boxes]
        weighted = [
            self.motion_weight * score + (1 - self.motion_weight) * iou
            for score, iou in zip(scores, found.iou_scores, strict=True)
        ]
        best = max(range(len(weighted)), key=weighted.__getitem__) if is_stable else found.best
        box, is_good = found.boxes[best], found.iou_scores[best] > self.stable_iou and found.object_score > 0
        if is_good and has_area(box):
            predicted, stable = predicted.update(box), stable + 1
        else:
            stable = 0
        return Choice(best, notes=_notes(predicted, stable, scores[best] if is_stable else None))

    def _start(self, found: Candidates) -> Choice:
        """The choice of a frame before which nothing is known."""
        best = found.best
        if not has_area(found.boxes[best]):
            return Choice(best)
        return Choice(best, notes=_notes(BoxFilter.start(found.boxes[best]), 1, None))

    def _state(self, history: History, frame: int, step: int) -> tuple[BoxFilter, int] | None:
        """The filter and the count of stable frames after a frame, in steps of this tracking."""
        if frame not in history or "filter" not in (record := history.record(frame)).notes:
            return None
        motion, noted_step = BoxFilter.from_json(record.notes["filter"]), record.step or step
        return motion if noted_step == step else motion.with_step(step / noted_step), record.notes["stable"]

    def select(self, frame: int, history: History, *, step: int) -> MemorySelection:
        """See ``MemoryPolicy``."""
        prompted = self.prompted(frame, history.prompted)
        read = with_neighbour(self._read(history, frame, step), history, frame, step)[: self.num_maskmem - 1]
        backs = range(1, self.max_pointers)
        near = [(other, back) for back in backs if (other := frame - back * step) in history]
        pointers = [entry for entry in near if entry[0] not in prompted]
        return self.selection(frame, step, prompted, read, pointers)

    def _read(self, history: History, frame: int, step: int) -> list[int]:
        return frames_that_pass(history, frame, step, self._passes, self.num_maskmem - 1)

    def _passes(self, _: int, record: FrameRecord) -> bool:
        motion = record.notes.get("motion")
        return (
            record.iou_score > self.memory_iou
            and record.object_score > self.memory_object
            and (motion is None or motion > self.memory_motion)
        )


def _notes(motion: BoxFilter, stable: int, score: float | None) -> dict[str, Any]:
    return {"filter": motion.to_json(), "stable": stable, "motion": score}
