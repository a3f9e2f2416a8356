"""The memories that a batch of objects reads, in fixed places on the device that are updated in place.

From one frame to the next, one map and one pointer of each object are new. Only these are written; the order of the
places does not matter, since attention does not depend on the order of keys.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from masklet.engine import Engine
from masklet.model.memory_attention import Memory
from masklet.model.neck import Features
from masklet.video.policy import MemorySelection, MemoryShape

MAX_BATCHES = 8
"""Batches of objects whose places are kept. Those read longest ago are dropped first."""


class Bank(Protocol):
    """The memory bank of an object, as far as it is read."""

    @property
    def maps(self) -> Mapping[int, Tensor]:
        """(tokens, memory_dim) of each frame."""

    def pointer(self, frame: int) -> Tensor:
        """(dim,): the same tensor each time."""


@dataclass
class Places:
    """Places for one kind of memory: a row for each object."""

    held: Tensor  # (objects, places, ...)
    sources: list[list[Tensor | None]] = field(init=False)
    """The tensor that each place holds a copy of. A source is recognised by identity."""

    def __post_init__(self) -> None:
        objects, places = self.held.shape[:2]
        self.sources = [[None] * places for _ in range(objects)]

    def assign(self, wanted: Sequence[Sequence[tuple[Tensor, float]]]) -> tuple[Writes, list[list[float | None]]]:
        """Find a place for everything that is wanted.

        Args:
            wanted: Tensors of each object, with a number that belongs to them in this frame.

        Returns:
            What has to be written, and the number of each place; None where it is empty.
        """
        writes, numbers = Writes(), []
        for row, (sources, entries) in enumerate(zip(self.sources, wanted, strict=True)):
            place_of = {id(source): place for place, source in enumerate(sources) if source is not None}
            staying = {place_of[id(tensor)] for tensor, _ in entries if id(tensor) in place_of}
            free = [place for place in range(len(sources)) if place not in staying]
            of_row: list[float | None] = [None] * len(sources)
            for tensor, number in entries:
                place = place_of.get(id(tensor))
                if place is None:
                    place = free.pop(0)
                    sources[place] = tensor
                    writes.add(row, place, tensor)
                of_row[place] = number
            for place in free:
                sources[place] = None
            numbers.append(of_row)
        return writes, numbers


@dataclass
class Writes:
    """Copies into places."""

    rows: list[int] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    tensors: list[Tensor] = field(default_factory=list)

    def add(self, row: int, place: int, tensor: Tensor) -> None:
        """One more."""
        self.rows.append(row)
        self.places.append(place)
        self.tensors.append(tensor)

    def write(self, held: Tensor, rows: Tensor, places: Tensor) -> None:
        """Write all of them at once; the indices are those of this object, on the device."""
        if self.tensors:
            held[rows, places] = torch.stack(self.tensors).to(held.dtype)


class MemorySlots:
    """The places of a video's objects, by batch."""

    def __init__(self) -> None:
        self._batches: OrderedDict[object, tuple[Places, Places]] = OrderedDict()

    def read(
        self, engine: Engine, features: Features, banks: Sequence[Bank], selections: Sequence[MemorySelection]
    ) -> Memory:
        """What a frame reads of a batch of objects, as ``gather_memory`` gives it.

        Places that are not filled yet are marked as empty. Once all are, there is no mask: attention is faster.
        """
        shape, is_full = slots_of(selections)
        maps, pointers = self._places(engine, features, banks, shape)
        map_writes, times = maps.assign(
            [[(bank.maps[f], slot) for f, slot in s.maps] for bank, s in zip(banks, selections, strict=True)]
        )
        pointer_writes, distances = pointers.assign(
            [
                [(bank.pointer(f), steps / s.longest_distance) for f, steps in s.pointers]
                for bank, s in zip(banks, selections, strict=True)
            ]
        )
        parts = [map_writes.rows, map_writes.places, pointer_writes.rows, pointer_writes.places]
        parts.append([int(number or 0) for row in times for number in row])
        parts.append([number is None for row, other in zip(times, distances, strict=True) for number in (*row, *other)])
        filled = [number or 0.0 for row in distances for number in row]
        *indices, map_slots, is_empty, pointer_distances = upload(engine, parts, filled)
        map_writes.write(maps.held, *indices[:2])
        pointer_writes.write(pointers.held, *indices[2:])
        return Memory(
            maps=maps.held,
            map_slots=map_slots.view(len(banks), shape.maps),
            pointers=pointers.held,
            pointer_distances=pointer_distances.view(len(banks), -1),
            is_empty=None if is_full else is_empty.view(len(banks), -1) > 0,
        )

    def _places(
        self, engine: Engine, features: Features, banks: Sequence[Bank], shape: MemoryShape
    ) -> tuple[Places, Places]:
        key = (tuple(map(id, banks)), shape, features.map_hw)
        if key not in self._batches:
            config, objects = engine.config, len(banks)
            tokens, memory_dim = config.tokens_per_memory(features.map_hw), config.memory_encoder.output_channels
            like = features.stride16
            dtype = like.dtype if config.is_edgetam else torch.bfloat16  # see ``stored_maps``
            self._batches[key] = (
                Places(like.new_zeros(objects, shape.maps, tokens, memory_dim, dtype=dtype)),
                Places(like.new_zeros(objects, shape.pointers, config.hidden_size)),
            )
        self._batches.move_to_end(key)
        while len(self._batches) > MAX_BATCHES:
            self._batches.popitem(last=False)
        return self._batches[key]


def slots_of(selections: Sequence[MemorySelection]) -> tuple[MemoryShape, bool]:
    """The places that a batch needs, and whether all of them are filled.

    Memories fill up over the first frames, with places for all that will come. From then on there are as many as are
    filled: the number of prompted frames need not be padded any more.
    """
    exact = {selection.shape(fixed=False) for selection in selections}
    if len(exact) == 1 and all(map(_is_filled, selections)):
        return exact.pop(), True
    fixed = [selection.shape(fixed=True) for selection in selections]
    return MemoryShape(max(shape.maps for shape in fixed), max(shape.pointers for shape in fixed)), False


def _is_filled(selection: MemorySelection) -> bool:
    """Whether as many tracked frames are read as ever will be."""
    prompted = {frame for frame, slot in selection.maps if slot == selection.num_maskmem - 1}
    tracked_pointers = sum(frame not in prompted for frame, _ in selection.pointers)
    is_full = len(selection.maps) - len(prompted) == selection.num_maskmem - 1
    return is_full and tracked_pointers == selection.max_pointers - 1


def upload(engine: Engine, integers: Sequence[Sequence[int]], floats: Sequence[float]) -> list[Tensor]:
    """Copy numbers to the engine's device, in one piece and without waiting for it.

    Returns:
        An int64 tensor for each sequence of integers, and a float32 one.
    """
    whole = np.array([number for part in integers for number in part], np.int64).view(np.uint8)
    copied = engine.stage(np.concatenate([whole, np.array(floats, np.float32).view(np.uint8)]))
    of_integers, of_floats = copied.to(engine.device, non_blocking=True).tensor_split((len(whole),))
    return [
        *of_integers.view(torch.int64).split([len(part) for part in integers]),
        of_floats.view(torch.float32),
    ]
