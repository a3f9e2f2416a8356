"""Files that are either whole or not there."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Write a file whole or not at all.

    Yields a path beside ``path``, with its suffix. When the block ends well, what was written there takes the place of
    ``path``; when it fails, nothing is left of it. Missing folders are made.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".unfinished-{secrets.token_hex(4)}-{path.name}")
    try:
        yield unfinished
        if unfinished.stat().st_mode & 0o077 == 0:  # safetensors writes files that only their owner may read
            unfinished.chmod(0o644)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
