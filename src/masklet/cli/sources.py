"""The images that a command reads: files, folders, patterns, and the standard input."""

from __future__ import annotations

import glob
import io
import os
import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from masklet.cli.outputs import STANDARD
from masklet.errors import ImageError, MaskletError


@dataclass(frozen=True)
class Sources:
    """Images as a user names them."""

    paths: list[Path]
    is_batch: bool
    """Whether the outputs are folders: there are several images, a folder, or a pattern."""

    @property
    def names(self) -> list[str]:
        """A name for each image that no other has: its path within the folder that contains all of them."""
        files = [os.path.abspath(path) for path in self.paths if path != STANDARD]
        try:
            common = os.path.commonpath([os.path.dirname(file) for file in files]) if files else ""
        except ValueError:  # drives of Windows
            raise MaskletError("the images lie on several drives: expected one command for each drive") from None
        return [
            "stdin" if path == STANDARD else Path(os.path.relpath(os.path.abspath(path), common)).as_posix()
            for path in self.paths
        ]

    @property
    def stems(self) -> list[str]:
        """Names without suffixes, where these do not coincide: names of outputs."""
        shortened = [re.sub(r"(?<=[^/])\.[^./]*$", "", name) for name in self.names]
        counts = Counter(stem.casefold() for stem in shortened)
        return [
            stem if counts[stem.casefold()] == 1 else name for stem, name in zip(shortened, self.names, strict=True)
        ]


def find_sources(arguments: Sequence[str], outputs: Sequence[Path] = ()) -> Sources:
    """The images that the arguments of a command name.

    Args:
        arguments: Files, folders and patterns.
        outputs: Files in these folders are results, which a pattern does not match.

    Raises:
        ImageError: A folder or a pattern contains no images.
    """
    found: dict[str, Path] = {}
    is_batch = len(arguments) > 1
    for argument in arguments:
        path = Path(argument)
        if os.path.isdir(argument):  # False if the name is too long
            paths = images_of_folder(path)
        elif glob.has_magic(argument) and not os.path.lexists(path):  # a name may contain brackets
            paths = images_of_pattern(argument, outputs)
        else:
            found.setdefault(os.path.abspath(path), path)
            continue
        is_batch = True
        for path in paths:
            found.setdefault(os.path.abspath(path), path)
    return Sources(list(found.values()), is_batch)


def images_of_folder(folder: Path) -> list[Path]:
    """The images directly in a folder, in natural order."""
    from masklet.images.folder import IMAGE_SUFFIXES, images_in

    if images := images_in(folder):
        return images
    raise ImageError(f"no images in {folder}: expected files that end in {', '.join(IMAGE_SUFFIXES)}")


def images_of_pattern(pattern: str, outputs: Sequence[Path]) -> list[Path]:
    """The images that a pattern such as ``images/*.jpg`` or ``**/*.png`` matches, for shells that do not expand it."""
    from masklet.images.folder import IMAGE_SUFFIXES, natural_order

    results = {os.path.abspath(path) for path in outputs}
    matches = map(Path, glob.iglob(pattern, recursive=True))
    files = [file for file in matches if results.isdisjoint(map(str, file.absolute().parents))]
    images = [file for file in files if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file()]
    if images:
        return sorted(images, key=natural_order)
    if files:
        raise ImageError(f"no image matches {pattern}, but other files do: expected {', '.join(IMAGE_SUFFIXES)}")
    raise ImageError(f"no image matches {pattern}. Looked in {os.getcwd()}")


def opened(path: Path) -> Path | BinaryIO:
    """A file by its path, or the content of the standard input.

    Raises:
        ImageError: The standard input is empty.
    """
    if path != STANDARD:
        return path
    if not (content := sys.stdin.buffer.read()):
        raise ImageError("nothing came from the standard input: expected an image, as in masklet image - < truck.jpg")
    file = io.BytesIO(content)
    file.name = "the standard input"
    return file
