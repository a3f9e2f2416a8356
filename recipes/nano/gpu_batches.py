"""Batches for ``gpu_train``: more than half real photos, the rest composed, made by worker processes.

Workers write into memory that they share with the main process. Batches that travelled through pipes would cost more
time under Python's lock than a training step has.
"""

from __future__ import annotations

import math
import mmap
import queue
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from masklet.training.batches import Batch, Example
from masklet.training.config import Stage
from masklet.training.prefetching import start_worker
from recipes.nano.annotated import FAMILY_SHARES, AnnotatedPhotos, panned
from recipes.nano.examples import ComposedExamples
from recipes.nano.sources import Sources

REAL_SHARE = sum(FAMILY_SHARES.values())
"""Share of photos in a batch of images."""
PANNED_SHARE = 0.5
"""Share of photos, seen by a moving camera, in a batch of clips."""
EXAMPLES_PER_CHUNK = 8
"""Images that a worker makes before it looks for other work."""
SEED = 77
CHUNKS = 10**7
CHUNKS_AHEAD = 4
"""Chunks that are asked of each worker ahead of time."""
READY = 3
"""Batches that wait in the main process."""
MAX_REPEATS = 2
"""Times that a batch is used again, with other prompts, while the next one is not there yet."""


@dataclass(frozen=True)
class Material:
    """What batches are made of."""

    sources: Sources
    photos: AnnotatedPhotos

    @classmethod
    def from_sources(cls, sources: Sources) -> Material:
        """The same sources as photos of their own and as material for compositions."""
        return cls(sources, AnnotatedPhotos.from_sources(sources))


@dataclass(frozen=True)
class PackedBatch:
    """A batch whose masks hold eight pixels in a byte, until they are on the device."""

    pixels: Tensor  # (batch, [frames,] 3, height, width) uint8
    masks: Tensor  # (batch, [frames,] objects, height, width / 8) uint8, the first pixel in the lowest bit
    names: tuple[str, ...]

    def pin_memory(self) -> PackedBatch:
        """The same batch in pinned memory, from which a GPU copies without waiting."""
        return replace(self, pixels=self.pixels.pin_memory(), masks=self.masks.pin_memory())

    def copied(self) -> PackedBatch:
        """The same batch in memory of its own."""
        return replace(self, pixels=self.pixels.clone(), masks=self.masks.clone())

    def to(self, device: torch.device) -> Batch:
        """The batch on ``device``, unpacked there."""
        pixels, masks = (tensor.to(device, non_blocking=True) for tensor in (self.pixels, self.masks))
        return Batch(pixels, unpacked(masks), self.names)


def unpacked(masks: Tensor) -> Tensor:
    """(..., width / 8) uint8 to (..., width) bool, like ``np.unpackbits`` in the order ``little``."""
    places = torch.arange(8, dtype=torch.uint8, device=masks.device)
    return (masks[..., None] >> places & 1).bool().flatten(-2)


class Slots:
    """Room for some batches of a stage, shared with processes that are forked after it was made."""

    def __init__(self, stage: Stage, count: int) -> None:
        leading = (count, stage.batch_size, *((stage.frames,) if stage.frames > 1 else ()))
        size = stage.input_size
        assert size is not None
        self.pixels = _shared((*leading, 3, size, size))
        self.masks = _shared((*leading, stage.objects, size, size // 8))

    def write(self, slot: int, first: int, examples: Sequence[Example]) -> None:
        """Writes examples to a batch, from its position ``first`` on."""
        for place, example in enumerate(examples, first):
            self.pixels[slot, place] = np.moveaxis(example.pixels, -1, -3)
            self.masks[slot, place] = np.packbits(example.masks, axis=-1, bitorder="little")

    def batch(self, slot: int, names: tuple[str, ...]) -> PackedBatch:
        """A batch, which is overwritten later."""
        return PackedBatch(torch.from_numpy(self.pixels[slot]), torch.from_numpy(self.masks[slot]), names)


def _shared(shape: tuple[int, ...]) -> NDArray[np.uint8]:
    # Anonymous memory, since containers have little of the named shared memory that tensors would travel in.
    return np.frombuffer(mmap.mmap(-1, math.prod(shape)), np.uint8).reshape(shape)


class Chunks(Dataset[tuple[str, ...]]):
    """Parts of batches by number. Reading one writes it into its slot, and gives the names of its examples."""

    def __init__(self, material: Material, stage: Stage, *, ahead: int) -> None:
        self.material = material
        self.stage = stage
        self.size = chunk_size(stage)
        self.per_batch = stage.batch_size // self.size
        # A chunk is asked for ``ahead`` chunks before the one that the main process waits for, which is the last of a
        # batch at most. No slot is asked for again before its batch was taken.
        self.slots = Slots(stage, 1 + math.ceil(ahead / self.per_batch))
        self.composed = ComposedExamples(material.sources, SEED)

    def __len__(self) -> int:
        return CHUNKS

    def __getitem__(self, number: int) -> tuple[str, ...]:
        examples = self.examples(number)
        batch, part = divmod(number, self.per_batch)
        self.slots.write(self.slot(batch), part * self.size, examples)
        return tuple(example.name for example in examples)

    def slot(self, batch: int) -> int:
        """The slot of a batch by its number."""
        return batch % len(self.slots.pixels)

    def examples(self, number: int) -> list[Example]:
        """The examples of a chunk: a pure function of its number."""
        rng = np.random.default_rng((SEED, number, self.stage.frames))
        return [self._example(number, place, rng) for place in range(self.size)]

    def _example(self, number: int, place: int, rng: np.random.Generator) -> Example:
        stage = self.stage
        if stage.frames == 1 and rng.random() < REAL_SHARE:
            return self.material.photos.draw(rng, stage.input_size, stage.objects)
        if stage.frames > 1 and rng.random() < PANNED_SHARE and (clip := self._panned(rng)) is not None:
            return clip
        batch = self.composed.batch(stage, [self.composed.example(stage, number, place)])
        return Example("composed", np.moveaxis(batch.pixels[0].numpy(), -3, -1), batch.targets[0].numpy())

    def _panned(self, rng: np.random.Generator) -> Example | None:
        families = self.material.photos.families
        family = families[int(rng.integers(len(families)))]
        pairs = self.material.photos.by_family[family]
        pair = pairs[int(rng.integers(len(pairs)))]
        return panned(pair, rng, self.stage.input_size, self.stage.objects, self.stage.frames, name=family)


def chunk_size(stage: Stage) -> int:
    """Examples in a chunk: the batch is a whole number of chunks."""
    wanted = max(1, EXAMPLES_PER_CHUNK // stage.frames)
    return max(size for size in range(1, wanted + 1) if stage.batch_size % size == 0)


def in_workers(items: Dataset[Any], workers: int, *, ahead: int = 2) -> Iterator[Any]:
    """The items of a data set in order, made by forked processes, which start at once; without, by this one."""
    return iter(
        DataLoader(
            items,
            batch_size=None,
            num_workers=workers,
            prefetch_factor=ahead if workers else None,
            collate_fn=_unchanged,
            worker_init_fn=start_worker,
            multiprocessing_context="fork" if workers else None,
        )
    )


def _unchanged(item: Any) -> Any:
    return item


class Feed:
    """Iterates over batches, which a thread takes from worker processes. They start at once; ``close`` ends them."""

    def __init__(self, material: Material, stage: Stage, *, workers: int, pin: bool) -> None:
        self.pin = pin
        self.chunks = Chunks(material, stage, ahead=workers * CHUNKS_AHEAD)
        self.ready: queue.Queue[PackedBatch | Exception] = queue.Queue(READY)
        self.is_closed = threading.Event()
        self.thread = threading.Thread(target=self._gather, daemon=True)
        self.made: Iterator[tuple[str, ...]] | None = in_workers(self.chunks, workers, ahead=CHUNKS_AHEAD)

    def __iter__(self) -> Iterator[PackedBatch]:
        # Not before the first batch is wanted: until then the main process needs its time for other things.
        self.thread.start()
        while True:
            made = self.ready.get(timeout=120)
            if isinstance(made, Exception):
                raise made
            yield made
            for _ in range(MAX_REPEATS):
                if not self.ready.empty():
                    break
                yield made

    def __enter__(self) -> Feed:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the workers. May be called again."""
        self.is_closed.set()
        while self.thread.is_alive():
            try:
                self.ready.get(timeout=0.1)  # the thread may wait for room
            except queue.Empty:
                self.thread.join(0.1)
        self.made = None  # the last reference: a DataLoader ends its workers with its iterator

    def _gather(self) -> None:
        made = self.made
        assert made is not None
        try:
            for number in range(CHUNKS // self.chunks.per_batch):
                names: tuple[str, ...] = ()
                for _ in range(self.chunks.per_batch):
                    names += next(made)
                    if self.is_closed.is_set():
                        return
                batch = self.chunks.slots.batch(self.chunks.slot(number), names)
                self.ready.put(batch.pin_memory() if self.pin else batch.copied())
        except Exception as error:  # shown where batches are used
            self.ready.put(error)
