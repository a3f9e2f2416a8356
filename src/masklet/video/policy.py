"""Memory policies: which memories a frame reads, and which of the candidate masks is kept."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from masklet.errors import ConfigError, PromptError
from masklet.numbers import shown, whole_number

if TYPE_CHECKING:
    from torch import Tensor

    from masklet.model.neck import Features

Box = tuple[float, float, float, float]
"""x0, y0, x1, y1: edges, in cells of the mask logits."""

MAX_POINTERS = 16
"""Frames, this one included, whose object pointers are read."""
MAX_REACH = 10_000
"""Frames on either side whose maps are kept for another step; with a large step these are not all."""
MAX_PROMPTED = 8
"""Prompted frames that are read, unless the caller asks for another number."""
HISTORY_STEPS = 1_000
"""Steps that a policy can walk back. What is older, it has to note."""


@dataclass(frozen=True)
class MemoryShape:
    """The number of memory maps and of pointers: objects of one shape share a batch."""

    maps: int
    pointers: int


@dataclass(frozen=True)
class MemorySelection:
    """The frames whose memory a frame reads, in any order."""

    maps: tuple[tuple[int, int], ...]  # (frame, temporal slot): the last slot is that of prompted frames
    pointers: tuple[tuple[int, float], ...]  # (frame, distance in steps)
    max_pointers: int  # what distances are measured in
    num_maskmem: int  # temporal slots
    key_weights: tuple[float, ...] | None = None  # one for each map: what its keys are multiplied by; None for 1

    @property
    def longest_distance(self) -> int:
        """The distance of a pointer that counts as 1."""
        return max(self.max_pointers - 1, 1)

    def shape(self, *, fixed: bool) -> MemoryShape:
        """Its shape, or the fixed shape that it is padded to.

        Args:
            fixed: Round up, so that all selections with about as many prompted frames have the same shape.
        """
        if not fixed:
            return MemoryShape(len(self.maps), len(self.pointers))
        # The number of prompted frames grows one by one. Powers of two give few shapes and little padding.
        num_prompted = sum(slot == self.num_maskmem - 1 for _, slot in self.maps)
        padded = 1 << max(num_prompted - 1, 0).bit_length()
        return MemoryShape(self.num_maskmem - 1 + padded, self.max_pointers - 1 + padded)


@dataclass(frozen=True)
class FrameRecord:
    """What a policy knows of an object in a frame that is done. Saved sessions hold it as JSON."""

    iou_score: float
    """Predicted IoU, 0 to 1."""
    object_score: float
    """Logit: above 0 the object is in the frame."""
    box: Box
    """Zeros if the mask is empty."""
    area: int
    """Area of the mask, in cells of its logits."""
    is_prompted: bool = False
    step: int = 0
    """From the frame before, when it was tracked; 0 in a prompted frame that tracking had not reached."""
    parent: int = 0
    """The row of that frame which this one continues."""
    notes: Mapping[str, Any] = field(default_factory=dict)
    """What the policy noted, see ``Choice``."""

    @property
    def is_visible(self) -> bool:
        """Whether the object is in the frame."""
        return self.object_score > 0


class Frames(Protocol):
    """The frames of one object that are done."""

    prompted: set[int]
    """Frames in which the object was prompted."""

    def __contains__(self, frame: object, /) -> bool:
        """Whether a frame has a result."""


class History(Frames, Protocol):
    """The frames of one object that are done, along one row, with their records. Policies do not change it."""

    def record(self, frame: int) -> FrameRecord:
        """The record of a frame with a result. There are none if the policy does not choose."""

    def before(self, frame: int, *, step: int) -> Iterator[tuple[int, FrameRecord]]:
        """Walk back: the frames one step before ``frame``, two steps … with a record, ``HISTORY_STEPS`` at most."""


@dataclass(frozen=True)
class Candidates:
    """The candidate masks of one row of an object. In a prompted frame there is one, the result of the prompt."""

    history: History
    """History of the row."""
    iou_scores: tuple[float, ...]
    """Predicted IoU of each candidate, 0 to 1."""
    object_score: float
    """Logit: above 0 the object is in the frame. All candidates of a row share it."""
    boxes: tuple[Box, ...]
    """Box of each candidate; zeros for an empty one."""
    areas: tuple[int, ...]
    """Area of each candidate, in cells of its logits."""
    logits: Tensor
    """(candidates, 4h, 4w)"""
    features: Features
    """Features of the frame, with a batch of 1."""
    is_prompted: bool = False

    @property
    def best(self) -> int:
        """The candidate of the highest predicted IoU, the first of several."""
        return max(range(len(self.iou_scores)), key=lambda index: self.iou_scores[index])


@dataclass(frozen=True)
class Choice:
    """One candidate that is kept."""

    candidate: int
    row: int = 0
    notes: Mapping[str, Any] = field(default_factory=dict)
    """For later frames: anything that JSON holds. Saved with the session."""


Choose = Callable[..., Sequence[Choice]]
"""See ``MemoryPolicy.choose``."""


class MemoryPolicy(Protocol):
    """Chooses what a frame reads, and which candidate it keeps. Implement it to try another kind of memory.

    A policy has no state of its own: what it knows of earlier frames is the history, which holds what it noted. So
    going back to any frame gives the same masks as if tracking had never left it, and one policy serves all objects.
    """

    @property
    def hypotheses(self) -> int:
        """The largest number of rows of an object: paths through the video that are tracked beside each other."""

    @property
    def choose(self) -> Choose | None:
        """None to keep the candidate of the highest predicted IoU, without a history; otherwise a method.

        It is called as ``choose(frame, rows, step=step)``, where ``rows`` holds the ``Candidates`` of each row, and
        returns a ``Choice`` for each row of the next frame, from 1 to ``hypotheses``, the best one first: that is the
        frame's result. In a prompted frame it is called for its notes, with one row of one candidate.
        """

    def select(self, frame: int, history: History, *, step: int) -> MemorySelection:
        """Select what ``frame`` reads of one row of an object.

        Args:
            frame: The frame to track.
            history: History of the row.
            step: From one frame to the next; negative when tracking backward.

        Returns:
            At least one frame with a memory map.
        """

    def keeps(self, frame: int, history: History, *, step: int) -> set[int]:
        """Frames whose maps ``frame`` or its neighbours, in either direction, may read.

        All other maps are dropped. A session makes them again when they are read; a stream forgets the frames.
        """


@dataclass(frozen=True)
class PaperPolicy:
    """All prompted frames or the nearest, the last tracked frames, and the pointers of both.

    Source: SAM 2, section 4; the choice of the nearest prompted frames is the reference's.
    """

    num_maskmem: int = 7
    max_prompted: int | None = None
    length: int | None = None  # frames of the video, if known: distances in time are relative to a short video's length

    hypotheses: ClassVar[int] = 1
    choose: ClassVar[Choose | None] = None

    def __post_init__(self) -> None:
        object.__setattr__(
            self, "num_maskmem", whole_number("num_maskmem", self.num_maskmem, ConfigError, least=1, most=1024)
        )
        for name in ("max_prompted", "length"):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, whole_number(name, value, PromptError, least=1))

    @property
    def max_pointers(self) -> int:
        """Frames, this one included, whose pointers are read."""
        return MAX_POINTERS if self.length is None else min(MAX_POINTERS, self.length)

    def select(self, frame: int, history: Frames, *, step: int) -> MemorySelection:
        """See ``MemoryPolicy``. Frames between two steps are not read."""
        selected = self.nearest(frame, history.prompted)
        earlier = {b: frame - b * step for b in range(1, max(self.num_maskmem, self.max_pointers))}
        # A prompted frame that is not among the nearest is read as a tracked one.
        tracked = {b: f for b, f in earlier.items() if f in history and f not in selected}
        pointers = [(f, (frame - f) / step) for f in sorted(selected) if (frame - f) / step >= 0]
        pointers += [(f, b) for b, f in tracked.items() if b < self.max_pointers]
        return MemorySelection(
            maps=tuple((f, self.num_maskmem - 1) for f in sorted(selected))
            + tuple((f, b - 1) for b, f in tracked.items() if b < self.num_maskmem),
            pointers=tuple(pointers),
            max_pointers=self.max_pointers,
            num_maskmem=self.num_maskmem,
        )

    def keeps(self, frame: int, history: Frames, *, step: int) -> set[int]:
        """See ``MemoryPolicy``."""
        reach = min(self.num_maskmem * abs(step), MAX_REACH)
        read = {frame + b * step for b in range(-self.num_maskmem, self.num_maskmem + 1)}
        return self.nearest(frame, history.prompted) | read | set(range(frame - reach, frame + reach + 1))

    def nearest(self, frame: int, prompted: Collection[int]) -> set[int]:
        """At most ``max_prompted`` prompted frames: the nearest on either side first, then by distance."""
        prompted = set(prompted)
        if self.max_prompted is None or len(prompted) <= self.max_prompted:
            return prompted
        before = sorted((f for f in prompted if f < frame), reverse=True)[:1]
        after = sorted(f for f in prompted if f >= frame)[:1]
        first = before + after
        rest = sorted(prompted - set(first), key=lambda f: (abs(f - frame), f))
        return set((first + rest)[: self.max_prompted])


def check_selection(selection: MemorySelection, frame: int, available: Container[int], policy: Any) -> None:
    """Refuse a selection that cannot be read.

    Raises:
        ConfigError: It has no memory map, or frames without a result.
    """
    name = type(policy).__name__
    if not selection.maps:
        raise ConfigError(
            f"the memory policy {name} selects no frame for frame {frame}: expected at least one frame with a memory "
            "map, such as a prompted one"
        )
    if unknown := {f for f, _ in (*selection.maps, *selection.pointers) if f not in available}:
        raise ConfigError(
            f"the memory policy {name} selects frame {min(unknown)} for frame {frame}: expected frames with a result"
        )
    weights = selection.key_weights
    if weights is not None and len(weights) != len(selection.maps):
        raise ConfigError(
            f"the memory policy {name} gives {len(weights)} key weights for {len(selection.maps)} maps in frame "
            f"{frame}: expected one for each map, or None"
        )


def check_choices(choices: Sequence[Choice], rows: Sequence[Candidates], frame: int, policy: Any) -> None:
    """Refuse choices that name no candidate, or too many of them.

    Raises:
        ConfigError: There are none, or more than ``policy.hypotheses``; a candidate does not exist; its notes cannot be
            saved.
    """
    name = type(policy).__name__
    if not 1 <= len(choices) <= policy.hypotheses:
        raise ConfigError(
            f"the memory policy {name} keeps {len(choices)} candidates of frame {frame}: expected 1 to "
            f"{policy.hypotheses}, its hypotheses"
        )
    for one in choices:
        if not (0 <= one.row < len(rows) and 0 <= one.candidate < len(rows[one.row].iou_scores)):
            raise ConfigError(
                f"the memory policy {name} chooses candidate {one.candidate} of row {one.row} in frame {frame}: "
                f"expected one of {len(rows)} rows with {len(rows[0].iou_scores)} candidates"
            )
        try:
            json.dumps(one.notes, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"the memory policy {name} notes {shown(dict(one.notes))} for frame {frame}: expected what JSON holds, "
                f"to be saved with the session ({error})"
            ) from error
