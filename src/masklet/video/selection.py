"""What a frame reads of many objects: selections that are checked, batched and put into columns. Runs without torch."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import compress
from typing import Any, Protocol, TypeVar

import numpy as np

from masklet.video.policy import Frames, MemorySelection, MemoryShape, check_selection

Key = TypeVar("Key", bound=Hashable)


class FramesWithMaps(Frames, Protocol):
    """The frames of one object that are done, and the memory maps that are held."""

    @property
    def maps(self) -> Mapping[int, Any]:
        """Memory maps by frame."""


def select_memory(policy: Any, frame: int, history: FramesWithMaps, *, step: int, can_rewind: bool) -> MemorySelection:
    """The memories of an object that a frame reads. All of them are held or can be computed again.

    Args:
        policy: The memory policy.
        frame: The frame to track.
        history: The object's frames.
        step: From one frame to the next.
        can_rewind: Whether earlier frames can be encoded again.

    Raises:
        ConfigError: The policy selects what cannot be read.
    """
    selection: MemorySelection = policy.select(frame, history, step=step)
    check_selection(selection, frame, history, policy)
    is_held = [entry[0] in history.maps for entry in selection.maps]
    # What is neither held nor can be computed again is left out, unless nothing would be left.
    if can_rewind or not any(is_held):
        return selection
    weights = selection.key_weights
    return replace(
        selection,
        maps=tuple(compress(selection.maps, is_held)),
        key_weights=None if weights is None else tuple(compress(weights, is_held)),
    )


def batches_of(selections: Mapping[Key, MemorySelection], most: int, *, fixed: bool) -> Iterator[list[Key]]:
    """Keys whose selections have one shape, at most ``most`` in a batch."""
    by_shape: dict[MemoryShape, list[Key]] = {}
    for key, selection in selections.items():
        by_shape.setdefault(selection.shape(fixed=fixed), []).append(key)
    for keys in by_shape.values():
        for start in range(0, len(keys), most):
            yield keys[start : start + most]


@dataclass(frozen=True)
class MemoryColumns:
    """The numbers that belong to the memories of a batch of objects, padded to one shape."""

    shape: MemoryShape
    map_slots: np.ndarray  # (objects, maps) int64, temporal slots
    pointer_distances: np.ndarray  # (objects, pointers) float32, in shares of the longest
    is_empty: np.ndarray  # (objects, maps + pointers) bool: padding
    map_weights: np.ndarray | None  # (objects, maps) float32; None if all are 1


def memory_columns(selections: Sequence[MemorySelection], *, fixed: bool) -> MemoryColumns:
    """The columns of selections of one shape, or of the fixed shape that they are padded to."""
    (shape,) = {selection.shape(fixed=fixed) for selection in selections}
    count = len(selections)
    columns = MemoryColumns(
        shape,
        np.zeros((count, shape.maps), np.int64),
        np.zeros((count, shape.pointers), np.float32),
        np.ones((count, shape.maps + shape.pointers), bool),
        np.ones((count, shape.maps), np.float32) if any(one.key_weights is not None for one in selections) else None,
    )
    for row, selection in enumerate(selections):
        maps, pointers = len(selection.maps), len(selection.pointers)
        columns.map_slots[row, :maps] = [slot for _, slot in selection.maps]
        columns.pointer_distances[row, :pointers] = [
            steps / selection.longest_distance for _, steps in selection.pointers
        ]
        columns.is_empty[row, :maps] = False
        columns.is_empty[row, shape.maps : shape.maps + pointers] = False
        if columns.map_weights is not None and selection.key_weights is not None:
            columns.map_weights[row, :maps] = selection.key_weights
    return columns
