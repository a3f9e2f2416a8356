"""One object in one frame: the tracker's result, and how it is stored."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from masklet.config import SizeHW
from masklet.video.logit_bytes import FLOAT_BYTES, pack_logits, unpack_logits
from masklet.video.spool import FrameSpool, Spool

MAX_DEFERRED = 4
"""Results of one object that may wait to be packed; with more, the oldest is waited for."""


@dataclass(frozen=True)
class ObjectFrame:
    """The result of one object in one frame, and everything that its memory is made of."""

    logits: Tensor  # (4h, 4w), -1024 everywhere where the object is absent
    iou_score: Tensor  # () predicted IoU, 0 to 1
    object_score: Tensor  # () logit: above 0 the object is in the frame
    pointer: Tensor  # (dim,)


@dataclass(frozen=True)
class ResultPacking:
    """``ObjectFrame`` as bytes, without loss: see ``logit_bytes``.

    Logits are compressed. The scores and the pointer follow uncompressed, so that they can be read alone.
    """

    size_hw: SizeHW  # of logits
    dim: int  # of pointers
    dtype: torch.dtype
    device: torch.device

    @property
    def vector_bytes(self) -> int:
        """The length of the uncompressed end."""
        return FLOAT_BYTES * (2 + self.dim)

    def pack(self, value: ObjectFrame) -> bytes:  # noqa: D102
        vector = torch.cat([value.iou_score.view(1), value.object_score.view(1), value.pointer])
        return self.pack_arrays(value.logits.float().cpu().numpy(), vector.float().cpu().numpy())

    def pack_arrays(self, logits: np.ndarray, vector: np.ndarray) -> bytes:
        """Pack logits (4h, 4w), and a vector of predicted IoU, object score and pointer; float32."""
        return pack_logits(logits) + vector.tobytes()

    def unpack(self, data: bytes) -> ObjectFrame:  # noqa: D102
        split = len(data) - self.vector_bytes
        logits = unpack_logits(data[:split], self.size_hw)
        return ObjectFrame(torch.from_numpy(logits).to(self.device, self.dtype), *self.unpack_vector(data[split:]))

    def unpack_vector(self, data: bytes) -> tuple[Tensor, Tensor, Tensor]:
        """Predicted IoU, object score and pointer, from the last ``vector_bytes``."""
        vector = torch.from_numpy(np.frombuffer(data, np.float32).copy()).to(self.device, self.dtype)
        return vector[0], vector[1], vector[2:]


@dataclass
class DeferredResult:
    """A result on the device that is packed in a worker, see ``result_fetch``."""

    value: ObjectFrame
    packing: ResultPacking
    packed: tuple[Future[list[bytes]], int] | None = None
    """Results that are packed together, and the place of this one among them."""
    is_wanted: bool = True
    """False once it was replaced or deleted."""

    @property
    def is_packed(self) -> bool:
        """Whether its bytes are ready."""
        return self.packed is not None and self.packed[0].done()

    def wait(self) -> bytes:
        """Its bytes. If no worker was given it, it is packed now."""
        if self.packed is None:
            return self.packing.pack(self.value)
        packed, place = self.packed
        return packed.result()[place]


class Deferring(Protocol):
    """What packs results later."""

    def defer(self, deferred: DeferredResult) -> None:
        """Take a result, and fill in ``packed``."""


class ResultSpool(FrameSpool[ObjectFrame]):
    """The results of one object, packed in a spool.

    Args:
        spool: May be shared with others.
        packing: How results are stored.
        worker: Packs results in the background; None to pack each when it is set.
    """

    def __init__(self, spool: Spool, packing: ResultPacking, worker: Deferring | None = None) -> None:
        super().__init__(spool, packing)
        self.file = spool
        self._result_packing = packing
        self._worker = worker
        self._deferred: dict[int, DeferredResult] = {}

    def __len__(self) -> int:
        return super().__len__() + sum(not super(ResultSpool, self).__contains__(frame) for frame in self._deferred)

    def __iter__(self) -> Iterator[int]:
        yield from (frame for frame in super().__iter__() if frame not in self._deferred)
        yield from self._deferred

    def __contains__(self, frame: object) -> bool:
        return frame in self._deferred or super().__contains__(frame)

    def __getitem__(self, frame: int) -> ObjectFrame:
        return self._deferred[frame].value if frame in self._deferred else super().__getitem__(frame)

    def __setitem__(self, frame: int, value: ObjectFrame) -> None:
        if self._worker is None:
            super().__setitem__(frame, value)
            return
        self._withdraw(frame)
        self._deferred[frame] = DeferredResult(value, self._result_packing)
        self._worker.defer(self._deferred[frame])
        for other, deferred in list(self._deferred.items()):
            if deferred.is_packed or len(self._deferred) > MAX_DEFERRED:
                self._store(other)

    def __delitem__(self, frame: int) -> None:
        was_deferred = self._withdraw(frame)
        if super().__contains__(frame) or not was_deferred:
            super().__delitem__(frame)

    def read(self, frame: int, last: int | None = None) -> bytes:  # noqa: D102
        self._store(frame)
        return super().read(frame, last)

    def packed_bytes(self, frame: int) -> int:  # noqa: D102
        self._store(frame)
        return super().packed_bytes(frame)

    def _store(self, frame: int) -> None:
        """Put a result that was deferred into the spool. It stays deferred if that fails."""
        if (deferred := self._deferred.get(frame)) is not None:
            packed = deferred.wait()
            place = self._spool.put(packed)
            self._withdraw(frame)
            self._place_at(frame, place)

    def _withdraw(self, frame: int) -> bool:
        deferred = self._deferred.pop(frame, None)
        if deferred is not None:
            deferred.is_wanted = False
        return deferred is not None

    @property
    def least_bytes(self) -> int:
        """The length of the shortest packed result."""
        return self._result_packing.vector_bytes + 1

    def pointer(self, frame: int) -> Tensor:
        """The object pointer of one frame, (dim,), without its mask."""
        if frame in self._deferred:
            return self._deferred[frame].value.pointer
        return self._result_packing.unpack_vector(self.read(frame, last=self._result_packing.vector_bytes))[2]
