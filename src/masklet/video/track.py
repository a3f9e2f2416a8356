"""One object: its prompts, its results and its hypotheses."""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from torch import Tensor

from masklet.config import SizeHW
from masklet.engine import Engine
from masklet.errors import CheckpointError, PromptError
from masklet.numbers import whole_number
from masklet.video.frame_column import FrameColumn
from masklet.video.memory import ObjectMemory
from masklet.video.object_frame import ObjectFrame
from masklet.video.pathways import Pathway, final_rows
from masklet.video.policy import FrameRecord
from masklet.video.tracker import FramePrompt

Row: TypeAlias = ObjectMemory | Pathway
"""One hypothesis of an object, with the memory that it reads."""


@dataclass
class Track:
    """One object: its prompts, and its memory."""

    number: int
    """From 0, in the order in which objects were added. It chooses the colour; label images hold it plus 1."""
    bank: ObjectMemory
    conditioned: MutableMapping[int, Tensor]
    """Frames that were corrected since tracking last advanced, each conditioned on the memory from before."""
    clicks: dict[int, FramePrompt] = field(default_factory=dict)
    """Points and boxes of each prompted frame, which later clicks add to. Masks are not kept: they are results."""
    tracked_steps: FrameColumn[int] = field(default_factory=lambda: FrameColumn("q"))
    """Frames that tracking has reached, with its step: 1 forward, -1 backward."""
    other_banks: list[ObjectMemory] = field(default_factory=list)
    """Banks of rows after the first, for policies with several hypotheses. Prompted frames are in ``bank`` alone."""
    label: str | None = None
    """What it is, in a word, if that is known."""
    _final_rows: FrameColumn[int] | None = None

    @property
    def banks(self) -> list[ObjectMemory]:
        """The bank of each row."""
        return [self.bank, *self.other_banks]

    def rows(self, frame: int, step: int) -> Sequence[Row]:
        """The hypotheses that a frame continues."""
        if not self.other_banks:
            return [self.bank]
        ends = [(frame - step, row) for row, bank in enumerate(self.banks) if frame - step in bank]
        return [Pathway(self.banks, end, step) for end in ends or [(frame - step, 0)]]

    def final_row(self, frame: int) -> int:
        """The row of the hypothesis that is best at the end of what was tracked."""
        if not self.other_banks or all(frame not in bank for bank in self.other_banks):
            return 0
        if self._final_rows is None:
            self._final_rows = final_rows(self.banks)
        return self._final_rows.get(frame, 0)

    def result(self, frame: int) -> ObjectFrame:
        """The result of a frame, that of the best hypothesis at the end of what was tracked."""
        return self.banks[self.final_row(frame)][frame]

    def put(
        self, frame: int, kept: Sequence[tuple[ObjectFrame, Tensor, FrameRecord | None]], *, is_prompted: bool
    ) -> None:
        """Keep the results of a frame, one for each row, with their memory maps and records."""
        for bank, (result, memory, record) in zip(self.banks, kept, strict=False):
            bank.put(frame, result, memory, is_prompted=is_prompted, record=record)
        self.discard(frame, from_row=len(kept))

    def discard(self, frame: int, *, from_row: int = 0) -> None:
        """Forget a frame, or the rows of it from this one on."""
        for bank in self.banks[from_row:]:
            bank.discard(frame)
        self._final_rows = None

    def keep_maps(self, frames: set[int]) -> None:
        """Drop the maps of all other frames."""
        for bank in self.banks:
            bank.keep_maps(frames)

    def copy(self) -> Track:
        """An independent copy. Results that lie in a spool cannot be copied."""
        return replace(
            self,
            bank=self.bank.copy(),
            conditioned=dict(self.conditioned),
            clicks=dict(self.clicks),
            tracked_steps=self.tracked_steps.copy(),
            other_banks=[bank.copy() for bank in self.other_banks],
        )

    def clear(self) -> None:
        """Forget everything, and free the space in the spool."""
        for bank in self.banks:
            bank.clear()
        self.conditioned.clear()
        self._final_rows = None


def check_can_track(engine: Engine, max_objects: int, input_hw: SizeHW) -> int:
    """Check that objects can be tracked, ``max_objects`` in one batch, at this input size of the network.

    Raises:
        PromptError: ``max_objects`` is not a whole number from 1.
        CheckpointError: The model has no memory.
        ConfigError: The model cannot remember at this size.
    """
    max_objects = whole_number("max_objects", max_objects, PromptError, least=1)
    if not engine.config.has_memory:
        raise CheckpointError(
            "this model was saved without its memory (model_type sam2): it segments images and cannot track objects "
            "through videos. Load the whole checkpoint (sam2_video)"
        )
    if engine.config.perceiver is not None:
        engine.config.perceiver.check_input(input_hw)
    return max_objects
