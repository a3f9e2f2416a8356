"""A disk cache for the features of a frozen image encoder: each image is encoded once."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from masklet.atomic import replacing
from masklet.errors import ConfigError
from masklet.image import encoder_fingerprint
from masklet.model.neck import Features
from masklet.model.sam2 import Sam2Model
from masklet.training.batches import Batch
from masklet.training.config import TrainingConfig
from masklet.training.parameter_groups import TRAINABLE
from masklet.training.precision import autocast

_log = logging.getLogger(__name__)

GIGABYTE = 10**9
ABANDONED_S = 3600
"""Age in seconds after which an unfinished file belongs to no running process."""


class FeatureCache:
    """Replaces ``Sam2Model.encode`` while the encoder is not trained.

    File names are hashes of the encoder's weights and of the image's pixels (``Batch.checksums``), so runs, models and
    processes may share a folder. Maps are stored in float16 and also returned in float16 precision when they are new,
    so results do not depend on what the cache held before. When the folder is full, nothing is evicted, because all
    images of a data set are read equally often, and nothing is added.

    Args:
        folder: Folder of the cache; made if missing.
        model: The model that encodes new images.
        max_bytes: Maximum size of the folder.
    """

    def __init__(self, folder: Path, model: Sam2Model, *, max_bytes: float) -> None:
        self.model = model
        self.folder = folder / encoder_fingerprint(model)
        self.free_bytes = max_bytes - _bytes_in(folder)

    def __call__(self, batch: Batch) -> Features:
        """The features of all images, or of all frames of all clips."""
        images, device = batch.pixels.flatten(0, -4), batch.pixels.device
        checksums = batch.checksums or batch.with_checksums().checksums
        files = [self.folder / f"{name}.safetensors" for name in checksums]
        maps = [self._read(file) for file in files]
        if new := [index for index, cached in enumerate(maps) if cached is None]:
            # Always in full precision, since runs that compute in bfloat16 share the cache with others.
            with torch.no_grad(), autocast(device, "float32"):
                pixel_values = replace(batch, pixels=images[new]).pixel_values
                made = [m.half() for m in self.model.encode(pixel_values)]
            for row, index in enumerate(new):
                maps[index] = [m[row : row + 1].cpu().contiguous().clone() for m in made]
                self._write(files[index], maps[index])
        found = [m for m in maps if m is not None]
        levels = zip(*found, strict=True)
        # Converted before they are joined, since autocast to bfloat16 cannot join float16.
        to_join = ([one.to(device, self.model.dtype) for one in level] for level in levels)
        return Features(*map(torch.cat, to_join))

    def _read(self, file: Path) -> list[Tensor] | None:
        if not file.exists():
            return None
        try:
            tensors = load_file(file)
            return [tensors[f"maps.{level}"] for level in range(3)]
        except (SafetensorError, OSError, KeyError):
            _log.warning("%s is damaged: its image is encoded again", file)
            file.unlink(missing_ok=True)
            return None

    def _write(self, file: Path, maps: list[Tensor] | None) -> None:
        assert maps is not None
        size = sum(m.nbytes for m in maps)
        if size > self.free_bytes:
            if self.free_bytes > 0:
                _log.warning("%s is full: further images are encoded every time. Raise cache_gb", self.folder.parent)
            self.free_bytes = 0
            return
        try:
            with replacing(file) as unfinished:
                save_file({f"maps.{level}": m for level, m in enumerate(maps)}, unfinished)
        except (OSError, SafetensorError) as error:
            # The run can continue without the cache.
            _log.warning("nothing more is added to %s: %s", self.folder.parent, error)
            self.free_bytes = 0
            return
        self.free_bytes -= size


def cache_for(config: TrainingConfig) -> Callable[[Sam2Model], FeatureCache] | None:
    """A function that makes the feature cache of a model; None if none is configured.

    Raises:
        ConfigError: The run trains the image encoder.
    """
    if config.cache is None:
        return None
    trained = [name for stage in config.stages for name in TRAINABLE[stage.train]]
    adapted = [] if config.lora is None else [t for t in config.lora.targets if t.startswith(("*", "vision"))]
    if "image_encoder" in trained or adapted:
        raise ConfigError(
            "cache stores the features of a frozen image encoder, but this run trains the encoder: remove cache, or "
            "train decoder, frozen_encoder, memory, or lora with targets outside vision_encoder"
        )
    return partial(FeatureCache, Path(config.cache), max_bytes=config.cache_gb * GIGABYTE)


def _bytes_in(folder: Path) -> int:
    """Size of all features in the folder. Removes unfinished files that no running process can still be writing."""
    total = 0
    for file in folder.rglob("*.safetensors"):
        with suppress(FileNotFoundError):  # another run has just renamed it
            status = file.stat()
            if not file.name.startswith("."):
                total += status.st_size
            elif time.time() - status.st_mtime > ABANDONED_S:
                file.unlink()
    return total
