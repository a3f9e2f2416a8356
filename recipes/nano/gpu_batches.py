"""Batches for ``gpu_train``: more than half real photos, the rest composed, made by worker processes."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
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
"""Images that a worker hands over together."""
SEED = 77
CHUNKS = 10**7
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
class Chunk:
    """Some examples as arrays. Tensors would travel in shared memory, of which containers have little."""

    pixels: NDArray[np.uint8]  # (examples, [frames,] 3, height, width)
    packed: NDArray[np.uint8]  # masks, eight of them in a byte along the width
    names: tuple[str, ...]


class Chunks(Dataset[Chunk]):
    """Chunks by number: a pure function of it."""

    def __init__(self, material: Material, stage: Stage) -> None:
        self.material = material
        self.stage = stage
        self.size = chunk_size(stage)
        self.composed = ComposedExamples(material.sources, SEED)

    def __len__(self) -> int:
        return CHUNKS

    def __getitem__(self, number: int) -> Chunk:
        rng = np.random.default_rng((SEED, number, self.stage.frames))
        made = [self._example(number, place, rng) for place in range(self.size)]
        pixels = np.stack([np.moveaxis(one.pixels, -1, -3) for one in made])
        masks = np.stack([one.masks for one in made])
        return Chunk(pixels, np.packbits(masks, axis=-1, bitorder="little"), tuple(one.name for one in made))

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


class Feed:
    """Iterates over batches, which a thread gathers from the workers; a context manager that ends both."""

    def __init__(self, material: Material, stage: Stage, *, workers: int, pin: bool) -> None:
        self.stage = stage
        self.pin = pin
        self.loader = DataLoader(
            Chunks(material, stage),
            batch_size=None,
            num_workers=workers,
            prefetch_factor=4 if workers else None,
            collate_fn=_unchanged,
            worker_init_fn=start_worker,
        )
        self.ready: queue.Queue[Batch | Exception] = queue.Queue(READY)
        self.is_closed = threading.Event()
        self.thread = threading.Thread(target=self._gather, daemon=True)

    def __enter__(self) -> Iterator[Batch]:
        self.thread.start()
        return iter(self._batches())

    def __exit__(self, *_: object) -> None:
        self.is_closed.set()
        while self.thread.is_alive():
            try:
                self.ready.get(timeout=0.1)  # the thread may wait for room
            except queue.Empty:
                self.thread.join(0.1)

    def _batches(self) -> Iterator[Batch]:
        while True:
            made = self.ready.get(timeout=120)
            if isinstance(made, Exception):
                raise made
            yield made
            for _ in range(MAX_REPEATS):
                if not self.ready.empty():
                    break
                yield made

    def _gather(self) -> None:
        count = self.stage.batch_size // chunk_size(self.stage)
        try:
            chunks: list[Chunk] = []
            for chunk in self.loader:
                chunks.append(chunk)
                if len(chunks) == count:
                    batch = batch_of(chunks)
                    self.ready.put(batch.pin_memory() if self.pin else batch)
                    chunks = []
                if self.is_closed.is_set():
                    return
        except Exception as error:  # shown where batches are used
            self.ready.put(error)


def batch_of(chunks: list[Chunk]) -> Batch:
    """One batch of several chunks."""
    pixels = torch.from_numpy(np.concatenate([chunk.pixels for chunk in chunks]))
    packed = np.concatenate([chunk.packed for chunk in chunks])
    targets = torch.from_numpy(np.unpackbits(packed, axis=-1, bitorder="little").view(bool))
    return Batch(pixels, targets, tuple(name for chunk in chunks for name in chunk.names))


def _unchanged(chunk: Any) -> Any:
    return chunk
