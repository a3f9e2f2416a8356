"""What the commands write."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from masklet.errors import MaskletError


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """The system's complaints about a file that is written, as MaskletErrors that name it."""
    try:
        yield
    except OSError as error:
        raise MaskletError(f"cannot write {path}: {error.strerror or error}") from error
