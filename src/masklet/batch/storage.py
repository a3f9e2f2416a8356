"""Folders of results, on a disk or in object storage, whose files are whole or not there."""

from __future__ import annotations

import posixpath
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from masklet import atomic
from masklet.errors import MaskletError

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem


def open_file_system(address: str) -> tuple[AbstractFileSystem, str]:
    """The file system of an address such as ``s3://bucket/folder`` or a path, and the path in it.

    Raises:
        MaskletError: There is no such kind of address; fsspec, or the package for this kind, is missing.
    """
    try:
        from fsspec.core import url_to_fs
    except ImportError as error:
        raise missing("fsspec") from error
    try:
        file_system, path = url_to_fs(address)
    except ImportError as error:
        raise MaskletError(f"{address} needs another package: {error}") from error
    except ValueError as error:
        raise MaskletError(f"{address} is no address of a folder: {error}") from error
    return file_system, str(path)


def missing(package: str) -> MaskletError:
    """The error for a package of the extra that is not installed."""
    return MaskletError(f"masklet batch needs {package}: pip install 'masklet[batch]'")


class Storage:
    """A folder, by path or by an address that fsspec reads.

    Object stores make a file visible when it is complete; on a disk, files are written beside their places and renamed.
    """

    def __init__(self, address: str) -> None:
        self.file_system, self.root = open_file_system(address)
        self.is_local = "file" in _protocols(self.file_system)
        self.address = self.root if self.is_local else address  # absolute, also for processes in other folders

    def __reduce__(self) -> tuple[type[Storage], tuple[str]]:
        return type(self), (self.address,)

    def read(self, name: str) -> bytes:
        """The content of a file."""
        content: bytes = self.file_system.cat_file(self._place(name))
        return content

    def open(self, name: str) -> Any:
        """A file to read from, without reading all of it."""
        return self.file_system.open(self._place(name), "rb")

    def write(self, name: str, content: bytes) -> None:
        """Writes a file.

        Raises:
            MaskletError: It cannot be written; an older file is left as it was.
        """
        with self.writing(name) as file:
            file.write(content)

    @contextmanager
    def writing(self, name: str) -> Iterator[BinaryIO]:
        """A file to write to, which appears once the block ends without an error.

        Raises:
            MaskletError: It cannot be written; an older file is left as it was.
        """
        place = self._place(name)
        with self._naming(name):
            if self.is_local:
                with atomic.replacing(place) as unfinished, unfinished.open("wb") as file:
                    yield file
                return
            # Some stores publish what was written before an error, so the content is complete before it is sent.
            with tempfile.TemporaryFile() as file:
                yield file
                file.seek(0)
                with self.file_system.open(place, "wb") as remote:
                    shutil.copyfileobj(file, remote, 1 << 24)

    def upload(self, local: Path, name: str) -> None:
        """Copies a file from the disk.

        Raises:
            MaskletError: It cannot be written.
        """
        with local.open("rb") as file, self.writing(name) as place:
            shutil.copyfileobj(file, place, 1 << 24)

    @contextmanager
    def local_copy(self, name: str) -> Iterator[Path]:
        """A file as one on the disk."""
        with local_copy(self.file_system, self._place(name)) as path:
            yield path

    def names(self, pattern: str) -> list[str]:
        """The files whose names match a pattern such as ``part-*.parquet``, in order."""
        place = self._place(pattern)
        self.file_system.invalidate_cache(posixpath.dirname(place))  # the listing of the source is used again
        found = self.file_system.glob(place)
        start = len(self._place("x")) - 1
        return sorted(str(path)[start:] for path in found)

    def remove(self, name: str) -> None:
        """Removes a file, if it is there."""
        with suppress(FileNotFoundError):
            self.file_system.rm_file(self._place(name))

    def check_writable(self) -> None:
        """Writes and removes a file.

        Raises:
            MaskletError: That is not possible.
        """
        try:
            self.write(".masklet-probe", b"")
            self.remove(".masklet-probe")
        except MaskletError:
            raise
        except Exception as error:  # each file system has errors of its own
            raise MaskletError(f"cannot write to {self.address}: {error}") from error

    def _place(self, name: str) -> str:
        return posixpath.join(self.root, name)

    @contextmanager
    def _naming(self, name: str) -> Iterator[None]:
        try:
            yield
        except MaskletError:
            raise
        except OSError as error:
            raise MaskletError(
                f"cannot write {posixpath.join(self.address, name)}: {error.strerror or error}"
            ) from error


@contextmanager
def local_copy(file_system: Any, path: str) -> Iterator[Path]:
    """A file as one on the disk: itself, or a copy that is removed afterwards."""
    if "file" in _protocols(file_system):
        yield Path(path)
        return
    with tempfile.TemporaryDirectory(prefix="masklet-") as folder:
        copy = Path(folder) / posixpath.basename(path)
        file_system.get_file(path, str(copy))
        yield copy


def _protocols(file_system: Any) -> tuple[str, ...]:
    protocol = file_system.protocol
    return (protocol,) if isinstance(protocol, str) else tuple(protocol)
