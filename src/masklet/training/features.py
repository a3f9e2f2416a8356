"""Features of images whose encoder is frozen, kept on disk: each image is encoded once."""

from __future__ import annotations

import hashlib
import logging
import time
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from masklet.atomic import replacing
from masklet.image import encoder_fingerprint
from masklet.model.neck import Features
from masklet.model.sam2 import Sam2Model

_log = logging.getLogger(__name__)

ABANDONED_S = 3600
"""A file that was begun so long ago is nobody's."""


class FeatureCache:
    """Stands in for ``Sam2Model.encode`` while the encoder does not learn.

    A file is called after the encoder's weights and the image's pixels, so that it can be no other's: runs, models
    and processes may share a folder. Maps are kept in float16, and given back so when they are made as well: a run does
    not depend on what was there before it. When the folder is full, nothing is thrown out, since all images of a data
    set are read as often, but nothing is added.

    Args:
        folder: Made if missing.
        model: The one that is asked when an image is new.
        max_bytes: What the folder may grow to.
    """

    def __init__(self, folder: Path, model: Sam2Model, *, max_bytes: float) -> None:
        self.model = model
        self.folder = folder / encoder_fingerprint(model)
        self.room = max_bytes - _bytes_in(folder)

    def __call__(self, pixel_values: Tensor) -> Features:
        """(batch, 3, height, width) to three maps."""
        files = [self._file(image) for image in pixel_values]
        maps = [self._read(file) for file in files]
        if new := [index for index, found in enumerate(maps) if found is None]:
            # As exact as can be, whatever this run multiplies in: another may read it.
            with torch.no_grad(), torch.autocast(pixel_values.device.type, enabled=False):
                made = [m.half() for m in self.model.encode(pixel_values[new])]
            for place, index in enumerate(new):
                maps[index] = [m[place : place + 1].cpu().contiguous().clone() for m in made]
                self._write(files[index], maps[index])
        found = [m for m in maps if m is not None]
        levels = zip(*found, strict=True)
        return Features(*(torch.cat(level).to(pixel_values.device, self.model.dtype) for level in levels))

    def _file(self, image: Tensor) -> Path:
        pixels = image.cpu().contiguous()
        name = hashlib.blake2b(pixels.numpy().tobytes(), digest_size=16)
        name.update(str(tuple(pixels.shape)).encode())
        return self.folder / f"{name.hexdigest()}.safetensors"

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
        if size > self.room:
            if self.room > 0:
                _log.warning("%s is full: further images are encoded every time. Raise cache_gb", self.folder.parent)
            self.room = 0
            return
        try:
            with replacing(file) as unfinished:
                save_file({f"maps.{level}": m for level, m in enumerate(maps)}, unfinished)
        except (OSError, SafetensorError) as error:
            # A run can do without.
            _log.warning("nothing more is added to %s: %s", self.folder.parent, error)
            self.room = 0
            return
        self.room -= size


def _bytes_in(folder: Path) -> int:
    """Of all features. Files that nobody finished are no features, and go once no run can still be writing them."""
    taken = 0
    for file in folder.rglob("*.safetensors"):
        with suppress(FileNotFoundError):  # another run has just renamed it
            status = file.stat()
            if not file.name.startswith("."):
                taken += status.st_size
            elif time.time() - status.st_mtime > ABANDONED_S:
                file.unlink()
    return taken
