"""Checks and errors for the files that commands write; ``-`` is the standard output."""

from __future__ import annotations

import io
import os
import shutil
import sys
import time
from collections.abc import Iterable
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from masklet import atomic
from masklet.errors import ImageError, MaskletError

if TYPE_CHECKING:
    from PIL.Image import Image

STANDARD = Path("-")
"""Names the standard output where an output is expected, and the standard input where an input is."""
STALE_SECONDS = 3600
"""Unfinished files that nothing has written to for this long were left by a process that was killed."""


class OutputError(MaskletError):
    """A file cannot be written."""


def naming(path: Path) -> AbstractContextManager[None]:
    """Turns system errors about writing a file into OutputErrors that name it."""
    return atomic.naming(path, OutputError)


def check_places(outputs: Iterable[tuple[str, Path | None]], inputs: Iterable[Path] = ()) -> None:
    """Checks, before the work starts, that the outputs are writable and overwrite neither inputs nor each other.

    Args:
        outputs: Options, and the files they name.
        inputs: Files that are read.
    """
    taken = {path.resolve(): "is an input" for path in inputs if path != STANDARD}
    folders = set()
    for option, path in outputs:
        if path is None:
            continue
        place = path if path == STANDARD else path.resolve()
        if place in taken:
            raise MaskletError(f"{option} {path} {taken[place]}, which would be overwritten: expected another name")
        taken[place] = f"is also written by {option}"
        if path == STANDARD:
            continue
        with naming(path):
            if place.parent not in folders or os.path.isdir(path):  # a folder of many files is checked once
                atomic.check_writable(path)
            folders.add(place.parent)


def check_image_suffix(option: str, path: Path | None) -> None:
    """Refuses an image of an unknown format, and binary data on a terminal."""
    from PIL import Image

    if path == STANDARD:
        if sys.stdout.isatty():
            raise MaskletError(f"{option} - would write an image to the terminal: redirect it to a file or a program")
    elif path is not None and Image.registered_extensions().get(path.suffix.lower()) not in Image.SAVE:
        raise ImageError(
            f"{option} {path}: expected a name that ends in .png, .jpg or the suffix of another image format"
        )


def write_image(path: Path, image: Image) -> None:
    """Writes an image in the format of its name, or as PNG to the standard output."""
    from PIL import Image

    file = io.BytesIO()
    with atomic.naming(path, OutputError, ValueError, OverflowError):  # too large for the format
        image.save(file, "PNG" if path == STANDARD else Image.registered_extensions()[path.suffix.lower()])
    write(path, file.getvalue())


def write(path: Path, content: bytes) -> None:
    """Writes a file completely or not at all; or to the standard output."""
    if path == STANDARD:
        # Not named: a closed pipe is no error.
        sys.stdout.buffer.write(content)
        sys.stdout.buffer.flush()
        return
    with naming(path), atomic.replacing(path) as unfinished:
        unfinished.write_bytes(content)


def remove_stale(folder: Path) -> None:
    """Removes unfinished files that killed processes left in a folder. Files that may be in use are kept."""
    for path in folder.glob(".unfinished-????????*"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > STALE_SECONDS:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
