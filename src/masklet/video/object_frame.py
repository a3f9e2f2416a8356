"""One object in one frame: the tracker's result, and how it is stored."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from masklet.config import SizeHW
from masklet.video.spool import FrameSpool, Spool

FLOAT_BYTES = 4


@dataclass(frozen=True)
class ObjectFrame:
    """The result of one object in one frame, and everything that its memory is made of."""

    logits: Tensor  # (4h, 4w), -1024 everywhere where the object is absent
    iou_score: Tensor  # () predicted IoU, 0 to 1
    object_score: Tensor  # () logit: above 0 the object is in the frame
    pointer: Tensor  # (dim,)


@dataclass(frozen=True)
class ResultPacking:
    """``ObjectFrame`` as bytes, without loss, since a rewind must find exactly what was there.

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
        logits = value.logits.float().cpu().numpy()
        # Bytes of equal significance side by side: signs and exponents of neighbours are alike, fractions are not.
        planes = logits.reshape(-1, 1).view(np.uint8).T
        vector = torch.cat([value.iou_score.view(1), value.object_score.view(1), value.pointer])
        return zlib.compress(planes.tobytes(), level=1) + vector.float().cpu().numpy().tobytes()

    def unpack(self, data: bytes) -> ObjectFrame:  # noqa: D102
        split = len(data) - self.vector_bytes
        planes = np.frombuffer(zlib.decompress(data[:split]), np.uint8).reshape(FLOAT_BYTES, -1)
        logits = np.ascontiguousarray(planes.T).view(np.float32).reshape(self.size_hw)
        return ObjectFrame(torch.from_numpy(logits).to(self.device, self.dtype), *self.unpack_vector(data[split:]))

    def unpack_vector(self, data: bytes) -> tuple[Tensor, Tensor, Tensor]:
        """Predicted IoU, object score and pointer, from the last ``vector_bytes``."""
        vector = torch.from_numpy(np.frombuffer(data, np.float32).copy()).to(self.device, self.dtype)
        return vector[0], vector[1], vector[2:]


class ResultSpool(FrameSpool[ObjectFrame]):
    """The results of one object, packed in a spool."""

    def __init__(self, spool: Spool, packing: ResultPacking) -> None:
        super().__init__(spool, packing)
        self._result_packing = packing

    def pointer(self, frame: int) -> Tensor:
        """The object pointer of one frame, (dim,), without its mask."""
        return self._result_packing.unpack_vector(self.read(frame, last=self._result_packing.vector_bytes))[2]
