"""Which frames' memories a frame reads."""

from __future__ import annotations

from collections.abc import Container, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from masklet.errors import ConfigError, PromptError

MAX_POINTERS = 16
"""Frames, this one included, whose object pointers are read."""
MAX_PROMPTED = 8
"""Prompted frames that are read, unless the caller asks for another number."""


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


class MemoryPolicy(Protocol):
    """Chooses the frames whose memories a frame reads. Implement it to try another kind of memory."""

    def __call__(self, frame: int, prompted: Iterable[int], available: Container[int], *, step: int) -> MemorySelection:
        """Select what ``frame`` reads of one object.

        Args:
            frame: The frame to track.
            prompted: Frames in which the object was prompted.
            available: All frames with a result of the object.
            step: From one frame to the next; negative when tracking backward.

        Returns:
            At least one frame with a memory map.
        """

    def keeps(self, frame: int, prompted: set[int], *, step: int) -> set[int]:
        """Frames whose maps ``frame`` or its neighbours, in either direction, may read."""


@dataclass(frozen=True)
class PaperPolicy:
    """All prompted frames or the nearest, the last tracked frames, and the pointers of both.

    Source: SAM 2, section 4; the choice of the nearest prompted frames is the reference's.
    """

    num_maskmem: int = 7
    max_prompted: int | None = None
    length: int | None = None  # frames of the video, if known: distances in time are relative to a short video's length

    def __post_init__(self) -> None:
        if self.max_prompted is not None and self.max_prompted < 1:
            raise PromptError(f"max_prompted is {self.max_prompted}: expected at least 1 frame, or None for all")

    @property
    def max_pointers(self) -> int:
        """Frames, this one included, whose pointers are read."""
        return MAX_POINTERS if self.length is None else min(MAX_POINTERS, self.length)

    def __call__(self, frame: int, prompted: Iterable[int], available: Container[int], *, step: int) -> MemorySelection:
        """See ``MemoryPolicy``. Frames between two steps are not read."""
        selected = self.nearest(frame, set(prompted))
        earlier = {b: frame - b * step for b in range(1, max(self.num_maskmem, self.max_pointers))}
        # A prompted frame that is not among the nearest is read as a tracked one.
        tracked = {b: f for b, f in earlier.items() if f in available and f not in selected}
        pointers = [(f, (frame - f) / step) for f in sorted(selected) if (frame - f) / step >= 0]
        pointers += [(f, b) for b, f in tracked.items() if b < self.max_pointers]
        return MemorySelection(
            maps=tuple((f, self.num_maskmem - 1) for f in sorted(selected))
            + tuple((f, b - 1) for b, f in tracked.items() if b < self.num_maskmem),
            pointers=tuple(pointers),
            max_pointers=self.max_pointers,
            num_maskmem=self.num_maskmem,
        )

    def keeps(self, frame: int, prompted: set[int], *, step: int) -> set[int]:
        """See ``MemoryPolicy``."""
        reach = self.num_maskmem * abs(step)
        return self.nearest(frame, prompted) | set(range(frame - reach, frame + reach + 1))

    def nearest(self, frame: int, prompted: set[int]) -> set[int]:
        """At most ``max_prompted`` prompted frames: the nearest on either side first, then by distance."""
        if self.max_prompted is None or len(prompted) <= self.max_prompted:
            return prompted
        before = sorted((f for f in prompted if f < frame), reverse=True)[:1]
        after = sorted(f for f in prompted if f >= frame)[:1]
        first = before + after
        rest = sorted(prompted - set(first), key=lambda f: (abs(f - frame), f))
        return set((first + rest)[: self.max_prompted])


def make_policy(
    policy: str | MemoryPolicy, *, num_maskmem: int, max_prompted: int | None, length: int | None = None
) -> MemoryPolicy:
    """The policy of a name, or the policy itself.

    Args:
        policy: ``"paper"``, or an object.
        num_maskmem: Temporal slots of the model.
        max_prompted: See ``PaperPolicy``. An object has its own.
        length: See ``PaperPolicy``.

    Raises:
        ConfigError: There is no policy of this name; the object is not a policy; ``max_prompted`` was changed beside an
            object.
        PromptError: ``max_prompted`` is less than 1.
    """
    if policy == "paper":
        return PaperPolicy(num_maskmem, max_prompted, length)
    if isinstance(policy, str) or not (callable(policy) and hasattr(policy, "keeps")):
        raise ConfigError(f"policy is {policy!r}: expected 'paper' or a memory policy (masklet.video.policy)")
    if max_prompted != MAX_PROMPTED:
        raise ConfigError(
            f"max_prompted is {max_prompted}, but policy is an object: expected policy='paper', or the limit in the "
            "object, as in PaperPolicy(max_prompted=3)"
        )
    return policy


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
