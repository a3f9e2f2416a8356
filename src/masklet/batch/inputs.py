"""The images or videos of a source, and how a file is distinguished from a later version of it."""

from __future__ import annotations

import io
import posixpath
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from masklet.batch.storage import local_copy, missing, open_file_system
from masklet.errors import DataError, MaskletError
from masklet.images.folder import IMAGE_SUFFIXES

# fmt: off
VIDEO_SUFFIXES = (
    ".3gp", ".avi", ".flv", ".gif", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ogv", ".tif",
    ".tiff", ".ts", ".webm", ".webp", ".wmv",
)
# fmt: on
LISTS = (".txt", ".lst", ".parquet")
"""Files that list addresses: one in each line, or in a column."""
COLUMNS = ("image", "video", "path", "address")
"""Columns of a Parquet file that may list addresses; the first one that is there is read."""


@dataclass(frozen=True)
class Input:
    """An image or a video."""

    name: str
    """In the results; no other input has it."""
    address: str
    """Its path, or an address that fsspec reads."""

    def read(self) -> bytes:
        """Its content."""
        file_system, path = open_file_system(self.address)
        content: bytes = file_system.cat_file(path)
        return content

    @contextmanager
    def as_file(self) -> Iterator[Path]:
        """It as a file on the disk."""
        with local_copy(*open_file_system(self.address)) as path:
            yield path

    def stamp(self) -> str:
        """Changes whenever the file is written, moved or copied. Shows that a file is the same without reading it."""
        file_system, path = open_file_system(self.address)
        found = file_system.info(path)
        # Object stores describe a file differently in a listing, so only the entity tag is compared.
        tag = found.get("ETag") or found.get("etag")
        return f"{found['size']} {tag}" if tag else str(file_system.ukey(path))


def digest_of(content: bytes | Path) -> str:
    """Identifies the content of a file."""
    digest = sha256()
    with io.BytesIO(content) if isinstance(content, bytes) else content.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def find_inputs(source: str, suffixes: Sequence[str]) -> list[Input]:
    """The images or videos of a source, in the order of their names.

    Args:
        source: A folder, with all folders in it; a pattern such as ``images/*.jpg``; a file; a text file with an
            address in each line, or a Parquet file with a column of them (``COLUMNS``). Paths, or addresses that fsspec
            reads (``s3://bucket/folder``). Relative paths in a list begin where the list is.
        suffixes: Suffixes of the files to take from folders and patterns.

    Raises:
        DataError: There is nothing there; two inputs are the same.
        MaskletError: It cannot be read, for example because credentials are missing.
    """
    file_system, path = open_file_system(source)
    file_system.invalidate_cache()
    try:
        return _found(source, path, file_system, suffixes)
    except MaskletError:
        raise
    except Exception as error:  # each file system has errors of its own
        raise MaskletError(f"cannot read {source}: {error}") from error


def _found(source: str, path: str, file_system: Any, suffixes: Sequence[str]) -> list[Input]:
    if any(character in path for character in "*?[") and not file_system.exists(path):
        found = [str(file) for file in file_system.glob(path)]
    elif file_system.isdir(path):
        found = [str(file) for file in file_system.find(path)]
    elif not file_system.exists(path):
        raise DataError(f"there is no {source}: expected a folder, a pattern, a file, or a list of addresses")
    elif path.lower().endswith(LISTS):
        return _listed(source, path, file_system)
    else:
        return [Input(posixpath.basename(path), source)]
    chosen = [file for file in found if file.lower().endswith(tuple(suffixes)) and not _is_hidden(file, path)]
    if not chosen:
        others = f"{len(found)} other files" if found else "no files"
        raise DataError(f"{source} holds {others}: expected files that end in {', '.join(suffixes)}")
    start = len(_common_folder(chosen))
    return sorted(
        (Input(file[start:], str(file_system.unstrip_protocol(file))) for file in chosen), key=lambda one: one.name
    )


def suffixes_of(kind: str) -> Sequence[str]:
    """Suffixes of files of a kind, "image" or "video"."""
    return IMAGE_SUFFIXES if kind == "image" else VIDEO_SUFFIXES


def _listed(source: str, path: str, file_system: Any) -> list[Input]:
    """The inputs that a file lists."""
    with file_system.open(path, "rb") as file:
        content = file.read()
    if path.lower().endswith(".parquet"):
        lines = _column(content, source)
    else:
        lines = [line.strip() for line in content.decode("utf-8", "replace").splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    if not lines:
        raise DataError(f"{source} lists nothing: expected an address in each line")
    folder = posixpath.dirname(source)
    inputs = [Input(line, line if "://" in line else posixpath.join(folder, line)) for line in lines]
    if len({one.name for one in inputs}) < len(inputs):
        twice = next(name for name in lines if lines.count(name) > 1)
        raise DataError(f"{source} lists {twice} more than once: expected each input once")
    return sorted(inputs, key=lambda one: one.name)


def _column(content: bytes, source: str) -> list[str]:
    try:
        import pyarrow.parquet as pq
    except ImportError as error:
        raise missing("pyarrow") from error
    try:
        table = pq.read_table(io.BytesIO(content))
        table.validate(full=True)  # texts are UTF-8
    except Exception as error:  # pyarrow's own errors
        raise DataError(f"{source} is not a Parquet file that pyarrow can read: {error}") from error
    name = next((name for name in COLUMNS if name in table.column_names), None)
    if name is None:
        raise DataError(
            f"{source} has the columns {', '.join(table.column_names)}: expected one called {' or '.join(COLUMNS)}"
        )
    return [str(value) for value in table.column(name).to_pylist() if value is not None]


def _is_hidden(file: str, root: str) -> bool:
    """Whether a file or a folder around it, within the source, has a name that begins with a dot."""
    within = file[len(root) :] if file.startswith(root) else posixpath.basename(file)
    return any(part.startswith(".") for part in within.split("/"))


def _common_folder(files: Sequence[str]) -> str:
    """The folder that contains all files, with a slash at its end."""
    folder = posixpath.commonpath([posixpath.dirname(file) for file in files])
    return folder if folder.endswith("/") or not folder else f"{folder}/"
