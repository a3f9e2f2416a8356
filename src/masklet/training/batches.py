"""What a training step learns from: examples, batches of them, and threads that prepare batches ahead of time."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from masklet.processing import IMAGE_MEAN, IMAGE_STD
from masklet.training.config import Stage
from masklet.training.prompts import MASK_STRIDE

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Example:
    """An image or a clip, and the objects to segment in it.

    In an image, and in the first frame of a clip, each mask fills a cell (see ``fills_a_cell``).
    """

    name: str
    pixels: Pixels  # ([frames,] height, width, 3) RGB
    masks: Mask  # ([frames,] objects, height, width)


@dataclass(frozen=True)
class Batch:
    """Images or clips of one size, with equally many objects each."""

    pixel_values: Tensor  # (batch, [frames,] 3, height, width), normalised
    targets: Tensor  # (batch, [frames,] objects, height, width) bool
    names: tuple[str, ...]  # of the images or clips

    @classmethod
    def from_examples(cls, examples: Sequence[Example]) -> Batch:
        """Stacks examples of one size and object count."""
        pixels = torch.from_numpy(np.stack([example.pixels for example in examples])).movedim(-1, -3)
        targets = torch.from_numpy(np.stack([example.masks for example in examples]))
        return cls.from_pixels(pixels, targets, tuple(example.name for example in examples))

    @classmethod
    def from_pixels(cls, pixels: Tensor, targets: Tensor, names: tuple[str, ...]) -> Batch:
        """Normalises (batch, [frames,] 3, height, width) uint8 pixels on their device."""
        mean, std = (torch.tensor(values, device=pixels.device).view(3, 1, 1) for values in (IMAGE_MEAN, IMAGE_STD))
        return cls((pixels.float() / 255 - mean) / std, targets, names)

    def split(self, count: int) -> list[Batch]:
        """``count`` batches of equal size, in order."""
        size = len(self.names) // count
        slices = [slice(start, start + size) for start in range(0, len(self.names), size)]
        return [Batch(self.pixel_values[part], self.targets[part], self.names[part]) for part in slices]

    def to(self, device: torch.device) -> Batch:
        """The same batch on ``device``."""
        return Batch(self.pixel_values.to(device), self.targets.to(device), self.names)


T = TypeVar("T")


class Examples(Protocol[T]):
    """A source of examples.

    Both methods are pure functions of their arguments: a resumed run, and a run on more processes, gets the same
    examples. Any thread may call them.
    """

    def example(self, stage: Stage, step: int, index: int) -> T:
        """The example at position ``index`` in the batch of step ``step``."""

    def batch(self, stage: Stage, examples: Sequence[T]) -> Batch:
        """Makes a batch of what ``example`` returned."""


def prefetch(examples: Examples[T], wanted: Sequence[tuple[Stage, int, range]], *, workers: int) -> Generator[Batch]:
    """Yields batches in order while worker threads prepare the next ones, at most two ahead.

    Args:
        examples: Source of the examples.
        wanted: For each batch its stage, its step and the indices of its examples.
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


def fills_a_cell(masks: Mask) -> Mask:
    """Whether each mask fills at least half of some cell of the network's mask grid: (..., height, width) to (...)."""
    *leading, height, width = masks.shape
    cells = masks.reshape(*leading, height // MASK_STRIDE, MASK_STRIDE, width // MASK_STRIDE, MASK_STRIDE)
    return (cells.mean((-3, -1), dtype=np.float32) >= 0.5).any((-2, -1))


def sample_objects(available: int, wanted: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Random indices of ``wanted`` objects; an object is repeated only if there are too few."""
    chosen = rng.permutation(available)[:wanted]
    return np.concatenate([chosen, rng.integers(0, available, wanted - len(chosen))])
