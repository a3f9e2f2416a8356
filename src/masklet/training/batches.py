"""What a step learns from: examples, functions of the step and their place in its batch, and batches of them."""

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
from masklet.training.worlds import Pixels

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Example:
    """An image, or a clip, and the objects that are asked for in it."""

    name: str
    pixels: Pixels  # ([frames,] height, width, 3) RGB
    masks: Mask  # ([frames,] objects, height, width); in an image or first frame each fills a cell


@dataclass(frozen=True)
class Batch:
    """Images, or clips, and the objects that are asked for in them."""

    pixel_values: Tensor  # (batch, [frames,] 3, height, width), normalised
    targets: Tensor  # (batch, [frames,] objects, height, width) bool; in an image or first frame each fills a cell
    names: tuple[str, ...]  # of images or clips

    @classmethod
    def of(cls, examples: Sequence[Example]) -> Batch:
        """Examples of one size and as many objects each."""
        pixels = torch.from_numpy(np.stack([example.pixels for example in examples])).movedim(-1, -3)
        targets = torch.from_numpy(np.stack([example.masks for example in examples]))
        return cls.of_pixels(pixels, targets, tuple(example.name for example in examples))

    @classmethod
    def of_pixels(cls, pixels: Tensor, targets: Tensor, names: tuple[str, ...]) -> Batch:
        """(batch, [frames,] 3, height, width) uint8 pixels, normalised where they are."""
        mean, std = (torch.tensor(values, device=pixels.device).view(3, 1, 1) for values in (IMAGE_MEAN, IMAGE_STD))
        return cls((pixels.float() / 255 - mean) / std, targets, names)

    def split(self, parts: int) -> list[Batch]:
        """As many batches of a part of the images or clips."""
        size = len(self.names) // parts
        cuts = [slice(start, start + size) for start in range(0, len(self.names), size)]
        return [Batch(self.pixel_values[cut], self.targets[cut], self.names[cut]) for cut in cuts]

    def to(self, device: torch.device) -> Batch:
        """The same on a device."""
        return Batch(self.pixel_values.to(device), self.targets.to(device), self.names)


T = TypeVar("T")


class Examples(Protocol[T]):
    """Where examples come from. A resumed run, and a run on more processes, must see the same ones."""

    def example(self, stage: Stage, step: int, place: int) -> T:
        """What one place of a step's batch is made of: a function of these numbers, on any thread."""

    def batch(self, stage: Stage, examples: Sequence[T]) -> Batch:
        """The batch of those, on any thread."""


def prepared(examples: Examples[T], wanted: Sequence[tuple[Stage, int, range]], *, workers: int) -> Generator[Batch]:
    """Batches in order, made by threads while earlier ones are learned from.

    Args:
        examples: What to make them of.
        wanted: For each batch its stage, its step and the places of its examples.
        workers: Threads.
    """
    coming: deque[Future[Batch]] = deque()
    todo = iter(wanted)
    pool = ThreadPoolExecutor(workers, thread_name_prefix="masklet-examples")
    try:
        while True:
            while len(coming) < 2 and (following := next(todo, None)) is not None:
                stage, step, places = following
                made = [pool.submit(examples.example, stage, step, place) for place in places]
                # Queued behind the examples that it waits for, so that it cannot keep a thread from them.
                coming.append(pool.submit(_together, examples, stage, made))
            if not coming:
                return
            yield coming.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _together(examples: Examples[T], stage: Stage, made: Sequence[Future[T]]) -> Batch:
    return examples.batch(stage, [example.result() for example in made])


def fills_a_cell(masks: Mask) -> Mask:
    """(..., height, width) to (...): whether there is a cell of the network's masks that is filled by half or more."""
    *leading, height, width = masks.shape
    cells = masks.reshape(*leading, height // MASK_STRIDE, MASK_STRIDE, width // MASK_STRIDE, MASK_STRIDE)
    return (cells.mean((-3, -1), dtype=np.float32) >= 0.5).any((-2, -1))


def drawn(there_are: int, objects: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Which objects are asked for: different ones as far as there are."""
    chosen = rng.permutation(there_are)[:objects]
    return np.concatenate([chosen, rng.integers(0, there_are, objects - len(chosen))])
