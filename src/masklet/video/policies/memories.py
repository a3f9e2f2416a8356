"""What the policies beside the paper's have in common: prompted frames, and chosen frames read in the order of time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

from masklet.errors import ConfigError, PromptError
from masklet.numbers import whole_number
from masklet.video.policy import MAX_POINTERS, FrameRecord, History, MemorySelection


@dataclass(frozen=True, kw_only=True)
class SlotPolicy(ABC):
    """Base of policies: how many memories a frame reads, and what their time codes mean."""

    num_maskmem: int = 7
    """Temporal slots of the model: the last is that of prompted frames, the others count frames back."""
    max_prompted: int = 8
    """Prompted frames that are read: the first one, and the nearest."""
    length: int | None = None
    """Frames of the video, if known: distances in time are relative to a short video's length."""

    def __post_init__(self) -> None:
        object.__setattr__(
            self, "num_maskmem", whole_number("num_maskmem", self.num_maskmem, ConfigError, least=2, most=1024)
        )
        object.__setattr__(self, "max_prompted", whole_number("max_prompted", self.max_prompted, PromptError, least=1))
        if self.length is not None:
            object.__setattr__(self, "length", whole_number("length", self.length, PromptError, least=1))

    @property
    def max_pointers(self) -> int:
        """Frames, this one included, whose pointers are read."""
        return MAX_POINTERS if self.length is None else min(MAX_POINTERS, self.length)

    @abstractmethod
    def select(self, frame: int, history: History, *, step: int) -> MemorySelection:
        """See ``MemoryPolicy``."""

    def keeps(self, frame: int, history: History, *, step: int) -> set[int]:
        """See ``MemoryPolicy``: what the next frame reads, this one again, or the one before it, backward."""
        kept = {frame}
        for other in (frame, frame + step):
            selection = self.select(other, history, step=step)
            kept |= {read for read, _ in (*selection.maps, *selection.pointers)}
        return kept

    def prompted(self, frame: int, prompted: Iterable[int]) -> list[int]:
        """The first prompted frame and the nearest others, in order, ``max_prompted`` together.

        The first prompt is what the object is, and no later one takes its place.
        """
        first, *others = sorted(prompted)
        nearest = sorted(others, key=lambda other: (abs(other - frame), other))[: self.max_prompted - 1]
        return sorted([first, *nearest])

    def selection(
        self,
        frame: int,
        step: int,
        prompted: Sequence[int],
        read: Sequence[int],
        pointers: Sequence[tuple[int, float]],
        key_weights: Sequence[float] | None = None,
    ) -> MemorySelection:
        """What a frame reads.

        Args:
            frame: The frame.
            step: Step of tracking.
            prompted: Prompted frames. Their pointers are read if they lie before the frame, as in the paper's policy.
            read: Other frames whose maps are read, nearest first. Their slots count them, not the frames between.
            pointers: Other frames, each with its distance.
            key_weights: Weights of ``read``; prompted frames have 1.
        """
        of_prompted = [(other, (frame - other) / step) for other in prompted if (frame - other) / step >= 0]
        weights = None if key_weights is None else (*(1.0,) * len(prompted), *key_weights)
        return MemorySelection(
            maps=tuple((other, self.num_maskmem - 1) for other in prompted)
            + tuple((other, rank) for rank, other in enumerate(read)),
            pointers=(*of_prompted, *pointers),
            max_pointers=self.max_pointers,
            num_maskmem=self.num_maskmem,
            key_weights=weights,
        )


Test = Callable[[int, FrameRecord], bool]
"""Whether a frame passes."""


def frames_that_pass(
    history: History, frame: int, step: int, passes: Test, most: int, *, note: str = "passed"
) -> list[int]:
    """The nearest frames before ``frame`` that pass and are not prompted, nearest first.

    Args:
        history: Walked back.
        frame: Where the walk begins.
        step: Step of tracking.
        passes: The condition.
        most: How many are wanted.
        note: The name under which ``choose`` noted this list in each frame. The walk ends at the first note, so that an
            object that was away for a long time costs no more, and its last sight is remembered.
    """
    found: list[int] = []
    for earlier, record in history.before(frame, step=step):
        if earlier not in history.prompted and earlier in history and passes(earlier, record):
            found.append(earlier)
        if record.step == step and note in record.notes:
            noted = record.notes[note]
            found += [one for one in noted if one in history and one not in history.prompted]
            break
        if len(found) >= most:
            break
    return found[:most]


def with_neighbour(read: list[int], history: History, frame: int, step: int) -> list[int]:
    """These frames, and before them the neighbour of ``frame`` if it is not prompted."""
    neighbour = frame - step
    is_read = neighbour not in history or neighbour in history.prompted or neighbour in read
    return read if is_read else [neighbour, *read]


def visible_pointers(
    history: History, frame: int, step: int, most: int, *, but: Sequence[int]
) -> list[tuple[int, float]]:
    """The frames less than ``most`` steps before ``frame`` with the object in them, and their distances."""
    near = islice(history.before(frame, step=step), most - 1)
    return [
        (other, (frame - other) / step)
        for other, record in near
        if other in history and other not in but and record.is_visible and (frame - other) / step < most
    ]
