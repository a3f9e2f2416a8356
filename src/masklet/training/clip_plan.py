"""What the simulated user does on clips, drawn before anything is computed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from masklet.training.prompts import PromptRates, first_clicks, noisy_boxes, uniform

MAX_GAP = 3
"""Largest difference between the numbers of consecutive frames."""
OCCASIONS = 2
"""Corrections may happen in the first frame and in one later frame."""
CLICK, BOX, MASK = "click", "box", "mask"


@dataclass(frozen=True)
class ClipPlan:
    """The prompts and corrections of a batch of clips.

    The clips share the numbers of their frames and the frame that is corrected, so that all objects read memories of
    the same frames, in one batch.
    """

    numbers: list[int]
    """Number of each frame, rising from 0. With gaps, short clips also use the temporal encodings of older memories."""
    corrected: int | None
    """Index of the frame after the first that is corrected, if any."""
    kinds: list[str]
    """Kind of the first prompt of each object of each clip: ``click``, ``box`` or ``mask``."""
    clicks: Tensor  # (clips, objects, 1, 2)
    boxes: Tensor  # (clips, objects, 2, 2)
    draws: Tensor  # (clips, objects, occasions, rounds, 3) random numbers from 0 to 1, for corrections

    def groups(self) -> Iterator[tuple[str, list[int]]]:
        """Each kind that occurs, with the rows (objects, clip by clip) that are prompted so."""
        for kind in (CLICK, BOX, MASK):
            if rows := [row for row, own in enumerate(self.kinds) if own == kind]:
                yield kind, rows

    def of_clip(self, clip: int) -> ClipPlan:
        """The plan of one clip alone."""
        one, objects = slice(clip, clip + 1), self.clicks.shape[1]
        kinds = self.kinds[clip * objects : (clip + 1) * objects]
        return ClipPlan(self.numbers, self.corrected, kinds, self.clicks[one], self.boxes[one], self.draws[one])


def draw_plan(targets: Tensor, *, rounds: int, prompts: PromptRates, generator: torch.Generator) -> ClipPlan:
    """Draws a plan.

    Args:
        targets: (clips, frames, objects, height, width) bool; in the first frame each mask covers a cell.
        rounds: Number of decodings of each object in the first frame. In half of the batches another frame is corrected
            as well.
        prompts: Rates of first prompts.
        generator: Source of randomness, on the CPU.
    """
    clips, frames, objects = targets.shape[:3]
    first = targets[:, 0]
    return ClipPlan(
        numbers=_frame_numbers(frames, generator),
        corrected=_corrected_frame(frames, rounds, generator),
        kinds=[_kind(prompts, generator) for _ in range(clips * objects)],
        clicks=first_clicks(first, generator)[:, :, None],
        boxes=noisy_boxes(first, generator).unflatten(-1, (2, 2)),
        draws=uniform((clips, objects, OCCASIONS, rounds, 3), generator),
    )


def _kind(prompts: PromptRates, generator: torch.Generator) -> str:
    if prompts.draws_mask(generator):
        return MASK
    return BOX if float(uniform((), generator)) < prompts.box_share else CLICK


def _frame_numbers(frames: int, generator: torch.Generator) -> list[int]:
    """Rising from 0, with gaps in half of the cases."""
    gaps = torch.randint(1, MAX_GAP + 1, (frames - 1,), generator=generator, device=generator.device)
    if float(uniform((), generator)) < 0.5:
        gaps = torch.ones_like(gaps)
    return [0, *gaps.cumsum(0).tolist()]


def _corrected_frame(frames: int, rounds: int, generator: torch.Generator) -> int | None:
    """The frame after the first that is corrected, if any."""
    frame = int(torch.randint(1, frames, (), generator=generator, device=generator.device))
    return frame if rounds > 1 and float(uniform((), generator)) < 0.5 else None
