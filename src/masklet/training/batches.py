"""What a training step learns from: examples, and batches of them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from masklet.datasets.scenes import Mask, Pixels
from masklet.processing import IMAGE_MEAN, IMAGE_STD
from masklet.training.config import Stage
from masklet.training.prompts import MASK_STRIDE


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
    """Images or clips of one size, with equally many objects each.

    Pixels are bytes until the device has them: a quarter of the size of normalised values.
    """

    pixels: Tensor  # (batch, [frames,] 3, height, width) uint8
    targets: Tensor  # (batch, [frames,] objects, height, width) bool
    names: tuple[str, ...]  # of the images or clips
    checksums: tuple[str, ...] = ()  # of each image, for a cache of features

    @classmethod
    def from_examples(cls, examples: Sequence[Example]) -> Batch:
        """Stacks examples of one size and object count."""
        pixels = torch.from_numpy(np.stack([example.pixels for example in examples])).movedim(-1, -3)
        targets = torch.from_numpy(np.stack([example.masks for example in examples]))
        return cls(pixels, targets, tuple(example.name for example in examples))

    @property
    def pixel_values(self) -> Tensor:
        """(batch, [frames,] 3, height, width) float32, normalised on the device of the pixels."""
        mean, std = (
            torch.tensor(values, dtype=torch.float32, device=self.pixels.device).view(3, 1, 1)
            for values in (IMAGE_MEAN, IMAGE_STD)
        )
        return (self.pixels.float() / 255 - mean) / std

    def with_checksums(self) -> Batch:
        """The same batch with the checksum of each image."""
        images = self.pixels.flatten(0, -4).cpu().contiguous().numpy()
        digests = (hashlib.blake2b(image.tobytes(), digest_size=16) for image in images)
        side = f"{self.pixels.shape[-2]}x{self.pixels.shape[-1]}"
        return replace(self, checksums=tuple(f"{digest.hexdigest()}-{side}" for digest in digests))

    def split(self, count: int) -> list[Batch]:
        """``count`` batches of equal size, in order."""
        size = len(self.names) // count
        images = len(self.checksums) // len(self.names)  # of each clip
        return [
            Batch(
                self.pixels[start : start + size],
                self.targets[start : start + size],
                self.names[start : start + size],
                self.checksums[start * images : (start + size) * images],
            )
            for start in range(0, len(self.names), size)
        ]

    def to(self, device: torch.device) -> Batch:
        """The same batch on ``device``. A copy from pinned memory to a GPU runs beside other work."""
        pixels, targets = (tensor.to(device, non_blocking=True) for tensor in (self.pixels, self.targets))
        return replace(self, pixels=pixels, targets=targets)

    def pin_memory(self) -> Batch:
        """The same batch in pinned memory, from which a GPU copies without waiting."""
        return replace(self, pixels=self.pixels.pin_memory(), targets=self.targets.pin_memory())


T = TypeVar("T")


class Examples(Protocol[T]):
    """A source of examples.

    Both methods are pure functions of their arguments: a resumed run, and a run on more processes, gets the same
    examples. Any thread may call them, and worker processes if ``needs_processes`` is set.
    """

    def example(self, stage: Stage, step: int, index: int) -> T:
        """The example at position ``index`` in the batch of step ``step``."""

    def batch(self, stage: Stage, examples: Sequence[T]) -> Batch:
        """Makes a batch of what ``example`` returned."""


def fills_a_cell(masks: Mask) -> Mask:
    """Whether each mask fills at least half of some cell of the network's mask grid: (..., height, width) to (...)."""
    *leading, height, width = masks.shape
    cells = masks.reshape(*leading, height // MASK_STRIDE, MASK_STRIDE, width // MASK_STRIDE, MASK_STRIDE)
    return (cells.mean((-3, -1), dtype=np.float32) >= 0.5).any((-2, -1))


def sample_objects(available: int, wanted: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Random indices of ``wanted`` objects; an object is repeated only if there are too few."""
    chosen = rng.permutation(available)[:wanted]
    return np.concatenate([chosen, rng.integers(0, available, wanted - len(chosen))])
