"""Encoded images on disk: those dropped from memory, and those from before a restart."""

from __future__ import annotations

import logging
import os
import threading
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

from masklet.errors import CheckpointError
from masklet.image import EncodedImage, encoder_fingerprint
from masklet.segmenter import Segmenter

logger = logging.getLogger(__name__)
SUFFIX = ".safetensors"


class EncodedFiles:
    """A folder of encoded images with a budget in bytes. Several processes may share it.

    Args:
        folder: Folder of the files.
        budget: Bytes of all files. The least recently used ones are deleted.
        sam: The model. Files of other models are ignored.
    """

    def __init__(self, folder: Path, budget: int, sam: Segmenter) -> None:
        self.folder = folder
        self.budget = budget
        self.sam = sam
        engine = sam.engine
        # All that an encoded image depends on, so that masks are the same to the bit.
        parts = encoder_fingerprint(engine.model), engine.name, engine.device.type, engine.dtype, engine.products
        self._model = sha256(repr((*parts, sam.image_processor.config)).encode()).hexdigest()[:16]
        self._lock = threading.Lock()

    def path(self, media_id: str, frame: int, source: Path) -> Path:
        """The file of an image or of a frame of a video. The name changes when ``source`` does."""
        state = source.stat()
        content = sha256(repr((self._model, frame, state.st_size, state.st_mtime_ns)).encode()).hexdigest()[:32]
        return self.folder / f"{media_id}-{content}{SUFFIX}"

    def load(self, path: Path) -> EncodedImage | None:
        """An encoded image, without its pixels; None if it is not there. A damaged file is deleted."""
        try:
            os.utime(path)
            return self.sam.load_image(path)
        except FileNotFoundError:
            return None
        except (OSError, CheckpointError) as error:
            logger.warning("an encoded image cannot be read, and is encoded again: %s", error)
            with suppress(OSError):
                path.unlink()
            return None

    def save(self, path: Path, image: EncodedImage) -> None:
        """Saves an encoded image. Failures are only logged, since the server works without the file."""
        size = sum(tensor.nbytes for tensor in image.features)
        if size > self.budget or path.exists():
            return
        try:
            with self._lock:
                self._make_room(size)
                image.save(path)
        except (OSError, CheckpointError) as error:
            logger.warning("an encoded image cannot be kept: %s", error)

    def forget(self, media_id: str) -> None:
        """Deletes the files of an image or a video."""
        for path in self.folder.glob(f"{media_id}-*{SUFFIX}"):
            path.unlink(missing_ok=True)

    def _make_room(self, size: int) -> None:
        """Deletes files until there is room for one more."""
        states = []
        for path in self.folder.glob(f"*{SUFFIX}"):
            with suppress(FileNotFoundError):  # another process has just deleted it
                state = path.stat()
                states.append((state.st_mtime_ns, state.st_size, path))
        total = size + sum(one[1] for one in states)
        for _, one_size, path in sorted(states):
            if total <= self.budget:
                return
            path.unlink(missing_ok=True)
            total -= one_size
