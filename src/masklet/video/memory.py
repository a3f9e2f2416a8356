"""The memory bank of an object, and what a frame reads of it.

Source: SAM 2 (arXiv 2408.00714), section 4, "memory bank".
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import replace
from itertools import takewhile
from typing import Protocol

import torch
from torch import Tensor

from masklet.engine import Engine
from masklet.model.memory_attention import Memory
from masklet.model.neck import Features
from masklet.video.history import RecordPacking
from masklet.video.object_frame import ObjectFrame, ResultSpool
from masklet.video.policy import HISTORY_STEPS, FrameRecord, MemorySelection
from masklet.video.selection import memory_columns
from masklet.video.spool import FrameSpool

HELD_POINTERS = 20
"""Pointers of one object that are not read from the spool again."""


class ReadableMemory(Protocol):
    """What a frame reads memories from: the bank of an object, or one of its pathways (``masklet.video.pathways``)."""

    @property
    def maps(self) -> Mapping[int, Tensor]:
        """The memory maps that are there, by frame: (h*w, memory_dim) each."""

    def pointer(self, frame: int) -> Tensor:
        """The object pointer of one frame, (dim,)."""


class ObjectMemory:
    """The memory bank of one object.

    The result of every frame is kept. A memory map is a function of the frame and its result, so maps are a cache:
    those that nearby frames may read are held, others are computed again when they are needed.

    A bank is also the history that memory policies read (``masklet.video.policy.History``).

    Args:
        spool: Where results are kept; in memory if None.
    """

    def __init__(self, spool: ResultSpool | None = None) -> None:
        self.spool = spool
        self.prompted: set[int] = set()
        self.records: MutableMapping[int, FrameRecord] = (
            {} if spool is None else FrameSpool(spool.file, RecordPacking())
        )
        self.maps: dict[int, Tensor] = {}  # (h*w, memory_dim) bfloat16 each
        self._results: MutableMapping[int, ObjectFrame] = {} if spool is None else spool
        self._no_logits: Tensor | None = None  # in the place of masks that were dropped
        self._pointers: OrderedDict[int, Tensor] = OrderedDict()  # the last that were read from the spool

    @property
    def frames(self) -> list[int]:
        """Frames with a result, in order."""
        return sorted(self._results)

    @property
    def tracked(self) -> set[int]:
        """Frames with a result that is not that of a prompt."""
        return self._results.keys() - self.prompted

    def __contains__(self, frame: object) -> bool:
        return frame in self._results

    def __getitem__(self, frame: int) -> ObjectFrame:
        return self._results[frame]

    def pointer(self, frame: int) -> Tensor:
        """The object pointer of one frame, (dim,)."""
        if self.spool is None:
            return self._results[frame].pointer
        if frame not in self._pointers:
            self._pointers[frame] = self.spool.pointer(frame)
        self._pointers.move_to_end(frame)
        while len(self._pointers) > HELD_POINTERS:
            self._pointers.popitem(last=False)
        return self._pointers[frame]

    def record(self, frame: int) -> FrameRecord:
        """The record of a frame, see ``History``."""
        return self.records[frame]

    def before(self, frame: int, *, step: int) -> Iterator[tuple[int, FrameRecord]]:
        """See ``History``."""
        for earlier in range(frame - step, frame - (HISTORY_STEPS + 1) * step, -step):
            if earlier in self.records:
                yield earlier, self.records[earlier]

    def put(
        self, frame: int, result: ObjectFrame, memory: Tensor, *, is_prompted: bool, record: FrameRecord | None = None
    ) -> None:
        """Keep a result, its memory map and its record, if there is one, in the place of an earlier one."""
        self._results[frame] = result
        self._pointers.pop(frame, None)
        self.maps[frame] = memory
        if record is not None:
            self.records[frame] = record
        if is_prompted:
            self.prompted.add(frame)
        else:
            self.prompted.discard(frame)

    def keep_maps(self, frames: set[int]) -> None:
        """Drop the maps of all other frames."""
        self.maps = {frame: memory for frame, memory in self.maps.items() if frame in frames}

    def forget_all_but(self, frames: set[int], latest: int) -> None:
        """Drop all other frames, and all masks but the latest: for videos that cannot go back."""
        self.keep_maps(frames)
        self.prompted &= frames
        for frame in self._results.keys() - frames:
            del self._results[frame]
        # Frames come in order, so the oldest records are the first.
        old = takewhile(lambda frame: frame < latest - HISTORY_STEPS, self.records)
        for frame in [other for other in old if other not in frames]:
            del self.records[frame]
        for frame, result in self._results.items():
            if frame != latest and len(result.logits):
                if self._no_logits is None:
                    self._no_logits = result.logits[:0].clone()
                self._results[frame] = replace(result, logits=self._no_logits)

    def discard(self, frame: int) -> None:
        """Forget one frame, prompted or not."""
        if frame in self._results:
            del self._results[frame]
        self.records.pop(frame, None)
        self.maps.pop(frame, None)
        self._pointers.pop(frame, None)
        self.prompted.discard(frame)

    def clear(self) -> None:
        """Forget all frames."""
        self._results.clear()
        self.records.clear()
        self.maps.clear()
        self._pointers.clear()
        self.prompted.clear()

    def copy(self) -> ObjectMemory:
        """An independent copy. Results that lie in a spool cannot be copied."""
        assert self.spool is None
        copied = ObjectMemory()
        copied.prompted, copied.maps, copied._results = set(self.prompted), dict(self.maps), dict(self._results)
        copied.records = dict(self.records)
        return copied

    def tensor_bytes(self) -> int:
        """The size of the tensors in memory; what lies in the spool is not counted."""
        tensors = list(self.maps.values())
        if self.spool is None:
            tensors += [tensor for result in self._results.values() for tensor in (result.pointer, result.logits)]
        return sum(tensor.untyped_storage().nbytes() for tensor in tensors)


def gather_memory(
    engine: Engine,
    features: Features,
    banks: Sequence[ReadableMemory],
    selections: Sequence[MemorySelection],
    *,
    fixed_shapes: bool,
) -> Memory:
    """What a frame reads of a batch of objects. The maps of the selected frames must be there.

    Args:
        engine: Engine of a model with memory.
        features: Features of the frame.
        banks: One for each object.
        selections: One for each object, all of one shape.
        fixed_shapes: Pad to the fixed shape of the selections with empty slots.
    """
    columns = memory_columns(selections, fixed=fixed_shapes)
    like = features.stride16
    no_map = like.new_zeros(
        engine.config.tokens_per_memory(features.map_hw), engine.config.memory_encoder.output_channels
    )
    no_pointer = like.new_zeros(engine.config.hidden_size)
    maps, pointers = [], []
    for bank, selection in zip(banks, selections, strict=True):
        maps.append(_pad([bank.maps[frame].to(like.dtype) for frame, _ in selection.maps], columns.shape.maps, no_map))
        of_bank = [bank.pointer(frame) for frame, _ in selection.pointers]
        pointers.append(_pad(of_bank, columns.shape.pointers, no_pointer))
    weights = columns.map_weights
    return Memory(
        maps=torch.stack([torch.stack(row) for row in maps]),
        map_slots=torch.from_numpy(columns.map_slots).to(like.device),
        pointers=torch.stack(
            [torch.stack(row) if row else no_pointer.new_zeros(0, len(no_pointer)) for row in pointers]
        ),
        pointer_distances=torch.from_numpy(columns.pointer_distances).to(like.device),
        is_empty=torch.from_numpy(columns.is_empty).to(like.device) if fixed_shapes else None,
        map_weights=None if weights is None else torch.from_numpy(weights).to(like.device),
    )


def _pad(values: list[Tensor], length: int, padding: Tensor) -> list[Tensor]:
    return values + [padding] * (length - len(values))
