"""What is remembered of an object, and which of it a frame reads.

Source: SAM 2 (arXiv 2408.00714), section 4, "memory bank".
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from masklet.engine import Engine
from masklet.errors import PromptError
from masklet.model.memory_attention import Memory
from masklet.model.neck import Features
from masklet.video.spool import Place, Spool

MAX_POINTERS = 16
"""Frames, this one included, whose object pointers are read."""


@dataclass(frozen=True)
class ObjectFrame:
    """One object in one frame: the result, and all that its memory is made of."""

    logits: Tensor  # (4h, 4w), -1024 everywhere where the object is absent
    iou: Tensor  # () predicted IoU, 0 to 1
    score: Tensor  # () logit: above 0 the object is in the frame
    pointer: Tensor  # (dim,)


@dataclass(frozen=True)
class MemoryShape:
    """Room for memory maps and pointers: objects of one shape share a batch."""

    maps: int
    pointers: int


@dataclass(frozen=True)
class MemorySelection:
    """The frames whose memory a frame reads. Slots and distances follow from the frames; order does not matter."""

    maps: tuple[tuple[int, int], ...]  # (frame, temporal slot): the last slot is that of prompted frames
    pointers: tuple[tuple[int, float], ...]  # (frame, distance in steps)
    max_pointers: int  # what distances are measured in
    num_maskmem: int  # temporal slots

    def shape(self, *, fixed: bool) -> MemoryShape:
        """What it fills; or, fixed, the room that it and all others with about as many prompted frames need."""
        if not fixed:
            return MemoryShape(len(self.maps), len(self.pointers))
        # Prompted frames come and go one by one, so their room doubles: few shapes, and little of it empty.
        num_prompted = sum(slot == self.num_maskmem - 1 for _, slot in self.maps)
        room = 1 << max(num_prompted - 1, 0).bit_length()
        return MemoryShape(self.num_maskmem - 1 + room, self.max_pointers - 1 + room)


class MemoryPolicy(Protocol):
    """Which frames' memories a frame reads: what to write to try out another kind of memory."""

    def __call__(self, frame: int, prompted: Iterable[int], seen: Container[int], *, step: int) -> MemorySelection:
        """What ``frame`` reads of an object, going on by ``step`` frames, back if < 0.

        Args:
            frame: The one that is tracked.
            prompted: Frames whose memory is that of a prompt.
            seen: All frames with a result.
            step: From one frame to the next.
        """

    def keeps(self, frame: int, prompted: set[int], *, step: int) -> set[int]:
        """Frames around ``frame`` that it or its neighbours, either way, may read the maps of."""


@dataclass(frozen=True)
class PaperPolicy:
    """All prompted frames, or the nearest; the last tracked ones; and pointers of both.

    Source: SAM 2, section 4; the choice of the nearest prompted frames is the reference's.
    """

    num_maskmem: int = 7
    max_prompted: int | None = None
    length: int | None = None  # frames of the video, where known: in a short one, distances count for more

    def __post_init__(self) -> None:
        if self.max_prompted is not None and self.max_prompted < 1:
            raise PromptError(f"max_prompted is {self.max_prompted}: expected at least 1 frame, or None for all")

    @property
    def max_pointers(self) -> int:
        """Frames, this one included, whose pointers are read."""
        return MAX_POINTERS if self.length is None else min(MAX_POINTERS, self.length)

    def __call__(self, frame: int, prompted: Iterable[int], seen: Container[int], *, step: int) -> MemorySelection:
        """See ``MemoryPolicy``. Frames between two steps were not tracked and count for nothing."""
        selected = self.nearest(frame, set(prompted))
        back = {b: frame - b * step for b in range(1, max(self.num_maskmem, self.max_pointers))}
        # A prompted frame that is too far to be read as one still counts as a frame that was tracked.
        passed = {b: f for b, f in back.items() if f in seen and f not in selected}
        pointers = [(f, (frame - f) / step) for f in sorted(selected) if (frame - f) / step >= 0]
        pointers += [(f, b) for b, f in passed.items() if b < self.max_pointers]
        return MemorySelection(
            maps=tuple((f, self.num_maskmem - 1) for f in sorted(selected))
            + tuple((f, b - 1) for b, f in passed.items() if b < self.num_maskmem),
            pointers=tuple(pointers),
            max_pointers=self.max_pointers,
            num_maskmem=self.num_maskmem,
        )

    def keeps(self, frame: int, prompted: set[int], *, step: int) -> set[int]:
        """See ``MemoryPolicy``."""
        reach = self.num_maskmem * abs(step)
        return self.nearest(frame, prompted) | set(range(frame - reach, frame + reach + 1))

    def nearest(self, frame: int, prompted: set[int]) -> set[int]:
        """At most ``max_prompted`` of them: the nearest on either side first, then by distance."""
        if self.max_prompted is None or len(prompted) <= self.max_prompted:
            return prompted
        before = sorted((f for f in prompted if f < frame), reverse=True)[:1]
        after = sorted(f for f in prompted if f >= frame)[:1]
        first = before + after
        rest = sorted(prompted - set(first), key=lambda f: (abs(f - frame), f))
        return set((first + rest)[: self.max_prompted])


class ObjectMemory:
    """The bank of one object.

    Of every frame the result is kept, packed into a spool if there is one. A memory map is a function of the frame and
    its result, so maps are a cache: those that a frame nearby may read are held, others are made again when needed.
    """

    def __init__(self, spool: Spool | None) -> None:
        self.spool = spool
        self.prompted: set[int] = set()
        self.maps: dict[int, Tensor] = {}  # (h*w, memory_dim) bfloat16 each
        self._frames: dict[int, ObjectFrame | Packed] = {}

    @property
    def tracked(self) -> set[int]:
        """Frames with a result of the tracker's own."""
        return self._frames.keys() - self.prompted

    def __contains__(self, frame: object) -> bool:
        return frame in self._frames

    def __getitem__(self, frame: int) -> ObjectFrame:
        seen = self._frames[frame]
        if isinstance(seen, ObjectFrame):
            return seen
        assert self.spool is not None
        return seen.unpack(self.spool)

    def pointer(self, frame: int) -> Tensor:
        """The object pointer of one frame, (dim,)."""
        seen = self._frames[frame]
        if isinstance(seen, ObjectFrame):
            return seen.pointer
        assert self.spool is not None
        return seen.small_parts(self.spool)[2]

    def put(self, frame: int, seen: ObjectFrame, memory: Tensor, *, is_prompted: bool) -> None:
        """Keep a result, in the place of an earlier one."""
        kept = seen if self.spool is None else Packed.pack(seen, self.spool)
        self.discard(frame)
        self._frames[frame] = kept
        self.maps[frame] = memory
        if is_prompted:
            self.prompted.add(frame)

    def packed(self, frame: int) -> bytes:
        """A result as it lies in the spool."""
        assert self.spool is not None
        return self.spool.read(self._place(frame))

    def packed_bytes(self, frame: int) -> int:
        """How long that is."""
        return self._place(frame)[1]

    def _place(self, frame: int) -> Place:
        seen = self._frames[frame]
        assert isinstance(seen, Packed)
        return seen.place

    def restore(self, frame: int, packed: bytes, like: PackedAs, *, is_prompted: bool) -> None:
        """Put a packed result back; its map is made when a frame reads it."""
        assert self.spool is not None
        self._frames[frame] = Packed(self.spool.put(packed), like)
        if is_prompted:
            self.prompted.add(frame)

    def drop_maps(self, keep: set[int]) -> None:
        """Let go of the maps of all other frames."""
        self.maps = {frame: memory for frame, memory in self.maps.items() if frame in keep}

    def forget(self, keep: set[int], latest: int) -> None:
        """For videos that never come back: let go of all other frames, and of all masks but the latest."""
        self.drop_maps(keep)
        self.prompted &= keep
        for frame, seen in list(self._frames.items()):
            if frame not in keep:
                del self._frames[frame]
            elif frame != latest and isinstance(seen, ObjectFrame):
                self._frames[frame] = replace(seen, logits=seen.logits[:0].clone())

    def discard(self, frame: int) -> None:
        """Forget one frame, prompted or not."""
        seen = self._frames.pop(frame, None)
        if isinstance(seen, Packed):
            assert self.spool is not None
            self.spool.free(seen.place)
        self.maps.pop(frame, None)
        self.prompted.discard(frame)

    def discard_all(self) -> None:
        """Forget the object."""
        for frame in list(self._frames):
            self.discard(frame)

    def tensor_bytes(self) -> int:
        """Size of the tensors held; what lies in the spool is not counted."""
        tensors = list(self.maps.values())
        for seen in self._frames.values():
            tensors += [seen.pointer, seen.logits] if isinstance(seen, ObjectFrame) else []
        return sum(t.untyped_storage().nbytes() for t in tensors)


@dataclass(frozen=True)
class PackedAs:
    """What packed results do not say of themselves: the same for all of a video."""

    size_hw: tuple[int, int]  # of logits
    dim: int  # of pointers
    dtype: torch.dtype
    device: torch.device


@dataclass(frozen=True, slots=True)
class Packed:
    """An ``ObjectFrame`` that lies in a spool, compressed without loss: a rewind must find what was there.

    Predicted IoU, score and pointer come last and as they are, so that they can be read alone.
    """

    place: Place
    like: PackedAs

    @classmethod
    def pack(cls, seen: ObjectFrame, spool: Spool) -> Packed:
        """Compress and put away."""
        values = seen.logits.float().cpu().numpy()
        # Bytes of equal rank side by side: signs and exponents of neighbours are alike, fractions are not.
        planes = values.reshape(-1, 1).view(np.uint8).T
        small = torch.cat([seen.iou.view(1), seen.score.view(1), seen.pointer]).float().cpu().numpy()
        place = spool.put(zlib.compress(planes.tobytes(), level=1) + small.tobytes())
        like = PackedAs(values.shape, len(seen.pointer), seen.logits.dtype, seen.logits.device)
        return cls(place, like)

    def small_parts(self, spool: Spool) -> tuple[Tensor, Tensor, Tensor]:
        """Predicted IoU, score and pointer."""
        values = np.frombuffer(spool.read(self.place, last=self._small_bytes), np.float32).copy()
        small = torch.from_numpy(values).to(self.like.device, self.like.dtype)
        return small[0], small[1], small[2:]

    def unpack(self, spool: Spool) -> ObjectFrame:
        """Read all of it back."""
        data = spool.read(self.place)[: -self._small_bytes]
        planes = np.frombuffer(zlib.decompress(data), np.uint8).reshape(4, -1)
        values = np.ascontiguousarray(planes.T).view(np.float32).reshape(self.like.size_hw)
        return ObjectFrame(torch.from_numpy(values).to(self.like.device, self.like.dtype), *self.small_parts(spool))

    @property
    def _small_bytes(self) -> int:
        return 4 * (2 + self.like.dim)


def gather_memory(
    engine: Engine,
    features: Features,
    banks: Sequence[ObjectMemory],
    selections: Sequence[MemorySelection],
    *,
    fixed_shapes: bool,
) -> Memory:
    """What a frame reads of a batch of objects; the maps of the selected frames must be there.

    Args:
        engine: Of a model with memory.
        features: Of the frame.
        banks: One an object.
        selections: One an object, of one shape.
        fixed_shapes: Pad to the shape of the selections with slots that are empty.
    """
    (shape,) = {selection.shape(fixed=fixed_shapes) for selection in selections}
    config = engine.config
    cells, memory_dim = math.prod(features.map_hw), config.memory_encoder.output_channels
    like = features.stride16
    no_map, no_pointer = like.new_zeros(cells, memory_dim), like.new_zeros(config.hidden_size)
    rows = []
    for bank, selection in zip(banks, selections, strict=True):
        own_maps = [bank.maps[frame].to(like.dtype) for frame, _ in selection.maps]
        own_pointers = [bank.pointer(frame) for frame, _ in selection.pointers]
        missing_maps, missing_pointers = shape.maps - len(own_maps), shape.pointers - len(own_pointers)
        longest = max(selection.max_pointers - 1, 1)
        rows.append(
            (
                torch.stack([*own_maps, *[no_map] * missing_maps]),
                torch.tensor([slot for _, slot in selection.maps] + [0] * missing_maps),
                torch.stack([*own_pointers, *[no_pointer] * missing_pointers])
                if shape.pointers
                else no_pointer[None, :0],
                torch.tensor([distance / longest for _, distance in selection.pointers] + [0.0] * missing_pointers),
                torch.tensor(
                    [False] * len(own_maps)
                    + [True] * missing_maps
                    + [False] * len(own_pointers)
                    + [True] * missing_pointers
                ),
            )
        )
    maps, slots, pointers, distances, is_empty = (
        torch.stack(column).to(like.device) for column in zip(*rows, strict=True)
    )
    return Memory(maps, slots, pointers, distances, is_empty if fixed_shapes else None)
