"""Checks and errors for the files that commands write."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path

from masklet import atomic
from masklet.errors import MaskletError


class OutputError(MaskletError):
    """A file cannot be written."""


def naming(path: Path) -> AbstractContextManager[None]:
    """Turns the system's errors about a file that is written into OutputErrors that name it."""
    return atomic.naming(path, OutputError)


def check_places(outputs: Iterable[tuple[str, Path | None]], inputs: Iterable[Path] = ()) -> None:
    """Checks, before the work starts, that the outputs are writable and overwrite neither inputs nor each other.

    Args:
        outputs: Options, and the files they name.
        inputs: Files that are read.
    """
    taken = {path.resolve(): "is an input" for path in inputs}
    folders = set()
    for option, path in outputs:
        if path is None:
            continue
        place = path.resolve()
        if place in taken:
            raise MaskletError(f"{option} {path} {taken[place]}, which would be overwritten: expected another name")
        taken[place] = f"is also written by {option}"
        with naming(path):
            if place.parent not in folders or os.path.isdir(path):  # a folder of many files is checked once
                atomic.check_writable(path)
            folders.add(place.parent)
