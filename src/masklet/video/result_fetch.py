"""Results on their way from the device: one copy for a frame, and packing in a worker.

The copy goes to pinned memory and is waited for only when somebody needs it. What the spool stores is compressed in a
thread meanwhile.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock

import numpy as np
import torch
from torch import Tensor

from masklet.config import SizeHW
from masklet.masks import upscaled_chunks
from masklet.video.logit_bytes import FLOAT_BYTES
from masklet.video.object_frame import DeferredResult, ObjectFrame

THREADS = 4
"""Threads that pack results, at most. Compression runs without Python's lock."""


@dataclass(frozen=True)
class HostResults:
    """The results of a frame in host memory."""

    logits: np.ndarray
    """(objects, 4h, 4w) float32."""
    vectors: np.ndarray
    """(objects, 2 + dim) float32: predicted IoU, object score and pointer."""
    masks: np.ndarray | None
    """(objects, height, width) bool at the video's size."""


class Fetch:
    """One copy of a frame's results to the host.

    Args:
        results: On the device.
        size_hw: Size of the video, for masks of its size; None to leave them out.
    """

    def __init__(self, results: Sequence[ObjectFrame], size_hw: SizeHW | None) -> None:
        logits = torch.stack([one.logits for one in results]).float()
        scores = torch.stack([score for one in results for score in (one.iou_score, one.object_score)]).view(-1, 2)
        vectors = torch.cat([scores, torch.stack([one.pointer for one in results])], 1).float()
        parts = [vectors.view(torch.uint8).flatten(), logits.view(torch.uint8).flatten()]
        self._vectors_shape, self._logits_shape = tuple(vectors.shape), tuple(logits.shape)
        self._mask_shape = None if size_hw is None else (len(results), *size_hw)
        if size_hw is not None:
            parts += [(chunk > 0).view(torch.uint8).flatten() for chunk in upscaled_chunks(logits, size_hw)]
        self._copy = start_copy(torch.cat(parts))
        self._host: HostResults | None = None
        self._lock = Lock()

    def result(self) -> HostResults:
        """Wait for the copy. Threads may call it concurrently."""
        with self._lock:
            if self._host is None:
                self._host = self._unpack(self._copy())
            return self._host

    def _unpack(self, copied: Tensor) -> HostResults:
        lengths = [FLOAT_BYTES * math.prod(shape) for shape in (self._vectors_shape, self._logits_shape)]
        # Copies, since pinned memory is scarce, and results may be kept. NumPy's stay in this thread.
        vectors, logits, inside = (part.copy() for part in np.split(copied.numpy(), np.cumsum(lengths)))
        return HostResults(
            logits.view(np.float32).reshape(self._logits_shape),
            vectors.view(np.float32).reshape(self._vectors_shape),
            None if self._mask_shape is None else inside.view(bool).reshape(self._mask_shape),
        )


def start_copy(values: Tensor) -> Callable[[], Tensor]:
    """Start to copy values to the host. The function that is returned waits for them."""
    if values.device.type != "cuda":
        return values.cpu
    pinned = torch.empty(values.shape, dtype=values.dtype, device="cpu", pin_memory=True)
    pinned.copy_(values, non_blocking=True)
    done = torch.cuda.Event()
    done.record(torch.cuda.current_stream(values.device))

    def wait() -> Tensor:
        done.synchronize()
        return pinned

    return wait


class PackingWorker:
    """Packs the results of a video in threads."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="masklet-packing")
        self._deferred: list[DeferredResult] = []

    def defer(self, deferred: DeferredResult) -> None:
        """Note a result that is still on the device."""
        self._deferred.append(deferred)

    def fetch(self, results: Sequence[ObjectFrame], size_hw: SizeHW | None) -> Fetch:
        """Fetch the results of a frame, and pack those that were deferred."""
        fetch = Fetch(results, size_hw)
        rows = {id(result): row for row, result in enumerate(results)}
        packing = [one for one in self._deferred if id(one.value) in rows]
        self._deferred = [one for one in self._deferred if id(one.value) not in rows and one.is_wanted]
        # Few tasks: each one that is handed over may wait for Python's lock.
        for number in range(min(THREADS, len(packing))):
            share = packing[number::THREADS]
            packed = self._pool.submit(_pack_rows, share, fetch, [rows[id(one.value)] for one in share])
            for place, one in enumerate(share):
                one.packed = packed, place
        return fetch

    def flush(self) -> None:
        """Fetch what nobody asked for."""
        if waiting := [one.value for one in self._deferred if one.is_wanted]:
            self.fetch(waiting, None)
        self._deferred = []


def _pack_rows(deferred: Sequence[DeferredResult], fetch: Fetch, rows: Sequence[int]) -> list[bytes]:
    host = fetch.result()
    return [
        one.packing.pack_arrays(host.logits[row], host.vectors[row]) for one, row in zip(deferred, rows, strict=True)
    ]
