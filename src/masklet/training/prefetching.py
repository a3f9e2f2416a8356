"""Batches prepared ahead of time, by worker processes or by threads."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from masklet.errors import DataError, ImageError, VideoError
from masklet.training.batches import Batch, Examples
from masklet.training.config import Stage

T = TypeVar("T")

BATCHES_AHEAD = 2
"""Batches that each worker prepares ahead of time."""
PARENT_CHECK_S = 1.0
"""Interval at which a worker checks that the main process is still running."""


def prefetch(
    examples: Examples[Any], wanted: Sequence[tuple[Stage, int, range]], *, workers: int, pin_memory: bool = False
) -> Generator[Batch]:
    """Yields batches in order while workers prepare the next ones.

    Examples read from files are prepared by processes: decoding masks and JSON holds Python's lock, so threads would
    take turns. Others are prepared by threads, since they may use a GPU or what cannot be sent to another process.

    Args:
        examples: Source of the examples. Its attribute ``needs_processes``, if any, decides.
        wanted: Stage, step and indices of the examples of each batch.
        workers: Number of processes or threads.
        pin_memory: Copy batches to pinned memory, for a GPU.

    Raises:
        DataError, ImageError, VideoError: An example cannot be read.
    """
    if getattr(examples, "needs_processes", False):
        return _from_processes(examples, wanted, workers=workers, pin_memory=pin_memory)
    return _from_threads(examples, wanted, workers=workers)


@dataclass(frozen=True)
class _Sent:
    """A batch on its way from a worker, as arrays.

    Tensors would travel in shared memory, of which containers have little, and fail noisily when a run is interrupted.
    """

    pixels: NDArray[np.uint8]
    masks: NDArray[np.uint8]  # eight pixels of ``targets`` in a byte, along the width
    names: tuple[str, ...]
    checksums: tuple[str, ...]

    @classmethod
    def of(cls, batch: Batch) -> _Sent:
        masks = np.packbits(batch.targets.numpy(), axis=-1)
        return cls(batch.pixels.contiguous().numpy(), masks, batch.names, batch.checksums)

    def batch(self) -> Batch:
        targets = np.unpackbits(self.masks, axis=-1, count=self.pixels.shape[-1]).view(bool)
        return Batch(torch.from_numpy(self.pixels), torch.from_numpy(targets), self.names, self.checksums)


class _Batches(Dataset[Any]):
    """The batches of a run, by their position. An error of the data is returned, as its text would not survive."""

    def __init__(self, examples: Examples[Any], wanted: Sequence[tuple[Stage, int, range]]) -> None:
        self.examples = examples
        self.wanted = wanted

    def __len__(self) -> int:
        return len(self.wanted)

    def __getitem__(self, position: int) -> _Sent | Exception:
        stage, step, indices = self.wanted[position]
        try:
            batch = self.examples.batch(stage, [self.examples.example(stage, step, index) for index in indices])
            return _Sent.of(batch)
        except (DataError, ImageError, VideoError) as error:
            return error


def _from_processes(
    examples: Examples[Any], wanted: Sequence[tuple[Stage, int, range]], *, workers: int, pin_memory: bool
) -> Generator[Batch]:
    loader = DataLoader(
        _Batches(examples, wanted),
        batch_size=None,
        num_workers=min(workers, len(wanted)),
        prefetch_factor=BATCHES_AHEAD if wanted else None,
        collate_fn=_unchanged,
        worker_init_fn=start_worker,
    )
    for made in loader:
        if isinstance(made, Exception):
            raise made
        batch = made.batch()
        yield batch.pin_memory() if pin_memory else batch


def _unchanged(sent: Any) -> Any:
    return sent


def start_worker(_: int) -> None:
    """Initialise a worker process of a ``DataLoader``: it leaves signals to the main process, and ends with it.

    Otherwise, a worker whose main process was killed would wait forever for its batches to be read.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if (parent := multiprocessing.parent_process()) is not None:
        threading.Thread(target=_exit_with, args=(parent, os.getppid()), daemon=True).start()


def _exit_with(parent: BaseProcess, starter: int) -> None:
    # A fork server, Python 3.14's default, starts workers in place of the main process and ends with it.
    while os.getppid() == starter and parent.is_alive():
        time.sleep(PARENT_CHECK_S)
    os._exit(1)


def _from_threads(
    examples: Examples[T], wanted: Sequence[tuple[Stage, int, range]], *, workers: int
) -> Generator[Batch]:
    """Yields batches in order while worker threads prepare the next ones, at most two ahead.

    Args:
        examples: Source of the examples.
        wanted: Stage, step and indices of the examples of each batch.
        workers: Number of threads.
    """
    pending: deque[Future[Batch]] = deque()
    remaining = iter(wanted)
    pool = ThreadPoolExecutor(workers, thread_name_prefix="masklet-examples")
    try:
        while True:
            while len(pending) < 2 and (following := next(remaining, None)) is not None:
                stage, step, indices = following
                futures = [pool.submit(examples.example, stage, step, index) for index in indices]
                # Queued behind the examples it waits for, so it never takes the last thread from them.
                pending.append(pool.submit(_make_batch, examples, stage, futures))
            if not pending:
                return
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _make_batch(examples: Examples[T], stage: Stage, futures: Sequence[Future[T]]) -> Batch:
    return examples.batch(stage, [future.result() for future in futures])
