"""What a memory policy chooses from: the candidates of each row of an object, read from the device once a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from masklet.engine.base import ABSENT_LOGIT
from masklet.masks.boxes import profile_boxes
from masklet.model.mask_decoder import DecodedMasks
from masklet.model.neck import Features
from masklet.video.object_frame import ObjectFrame
from masklet.video.policy import Box, Candidates, Choice, FrameRecord, History


@dataclass(frozen=True)
class RowOutput:
    """What the network predicts for one row of an object."""

    candidates: Candidates
    pointers: Tensor  # (candidates, dim)

    def result(self, candidate: int) -> ObjectFrame:
        """The result of a frame if this candidate is chosen. An absent object has no mask."""
        found = self.candidates
        logits = found.logits[candidate]
        return ObjectFrame(
            # Cloned, since views would keep the tensors of the whole batch alive.
            logits.clone() if found.object_score > 0 else torch.full_like(logits, ABSENT_LOGIT),
            logits.new_tensor(found.iou_scores[candidate]),
            logits.new_tensor(found.object_score),
            self.pointers[candidate].clone(),
        )


def row_outputs(decoded: DecodedMasks, features: Features, histories: Sequence[History]) -> list[RowOutput]:
    """The candidates of each row of a batch, (rows, 1, candidates, ...)."""
    assert decoded.object_pointers is not None
    logits, pointers = decoded.logits[:, 0], decoded.object_pointers[:, 0]
    iou_scores = decoded.iou_scores[:, 0].float().cpu().tolist()
    object_scores = decoded.object_scores[:, 0, 0].float().cpu().tolist()
    boxes, areas = measure(logits.flatten(0, 1))
    count = logits.shape[1]
    outputs = []
    for row, history in enumerate(histories):
        own = slice(row * count, (row + 1) * count)
        candidates = Candidates(
            history,
            tuple(iou_scores[row]),
            object_scores[row],
            tuple(boxes[own]),
            tuple(areas[own]),
            logits[row],
            features,
        )
        outputs.append(RowOutput(candidates, pointers[row]))
    return outputs


def candidates_of_result(result: ObjectFrame, features: Features, history: History) -> Candidates:
    """The only candidate of a prompted frame."""
    boxes, areas = measure(result.logits[None])
    scores = result.iou_score.item(), result.object_score.item()
    return Candidates(
        history, (scores[0],), scores[1], tuple(boxes), tuple(areas), result.logits[None], features, is_prompted=True
    )


def record_of(candidates: Candidates, choice: Choice, step: int) -> FrameRecord:
    """What is remembered of a choice. An absent object has no box and no area."""
    is_visible = candidates.object_score > 0
    return FrameRecord(
        candidates.iou_scores[choice.candidate],
        candidates.object_score,
        candidates.boxes[choice.candidate] if is_visible else (0.0, 0.0, 0.0, 0.0),
        candidates.areas[choice.candidate] if is_visible else 0,
        candidates.is_prompted,
        step,
        choice.row,
        dict(choice.notes),
    )


def measure(logits: Tensor) -> tuple[list[Box], list[int]]:
    """The box and the area of each mask of (masks, h, w) logits, in cells."""
    inside = logits > 0
    profiles = torch.cat([inside.any(1), inside.any(2)], dim=1).cpu().numpy()
    boxes = profile_boxes(*np.split(profiles, [logits.shape[2]], axis=1))
    return [tuple(box) for box in boxes.tolist()], inside.sum((1, 2)).cpu().tolist()
