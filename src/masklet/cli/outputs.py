"""What the commands write."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path

from masklet import atomic
from masklet.errors import MaskletError


class OutputError(MaskletError):
    """A file that cannot be written."""


def naming(path: Path) -> AbstractContextManager[None]:
    """The system's complaints about a file that is written, as OutputErrors that name it."""
    return atomic.naming(path, OutputError)


def check_places(outputs: Iterable[tuple[str, Path | None]], inputs: Iterable[Path] = ()) -> None:
    """Refuse, before the work, what could not be written after it, or would take the place of something else.

    Args:
        outputs: Options, and the files they lead to.
        inputs: What is read.
    """
    taken = {path.resolve(): "is what is read" for path in inputs}
    folders = set()
    for option, path in outputs:
        if path is None:
            continue
        place = path.resolve()
        if place in taken:
            raise MaskletError(f"{option} {path} {taken[place]}: expected another name, or that would be lost")
        taken[place] = f"is written by {option}, too"
        with naming(path):
            if place.parent not in folders or os.path.isdir(path):  # folders of many files are tried once
                atomic.check_writable(path)
            folders.add(place.parent)
