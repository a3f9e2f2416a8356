"""Files that are either whole or not there."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Write a file whole or not at all: as ``replacing_all``, for one."""
    with replacing_all(path) as (unfinished,):
        yield unfinished


@contextmanager
def replacing_all(*paths: str | os.PathLike[str]) -> Iterator[list[Path]]:
    """Write files that belong together, all of them or none.

    Yields a path beside each of ``paths``, with its suffix. When the block ends well, what was written there takes
    their places; when it fails, nothing is left of it. Missing folders are made. Devices and pipes are written to.
    """
    places = [Path(path) for path in paths]
    for place in places:
        check_writable(place)
    unfinished = [place if is_device(place) else _beside(place, "unfinished") for place in places]
    files = set(unfinished) - set(places)
    try:
        yield unfinished
        for file in files:
            if file.stat().st_mode & 0o077 == 0:  # safetensors writes files that only their owner may read
                file.chmod(0o644)
        if len(places) == 1:
            os.replace(unfinished[0], places[0])
        else:
            _put_in_place(unfinished, places)
    finally:
        for file in files:
            file.unlink(missing_ok=True)


def part_of(path: str | os.PathLike[str]) -> Path:
    """Where ``keeping`` writes: ``clip.part.mp4`` for ``clip.mp4``."""
    path = Path(path)
    return path.with_name(f"{path.stem}.part{path.suffix}")


def check_no_part(path: str | os.PathLike[str]) -> None:
    """Raise a FileExistsError if a process that was killed left an unfinished file."""
    if (part := part_of(path)).exists():
        message = f"{part.name} is what an interrupted run has written of it. Rename it to keep it, or remove it"
        raise FileExistsError(errno.EEXIST, message, str(part))


@contextmanager
def keeping(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Write a file that is of use at any length, and so is never removed.

    Yields a path beside ``path``, see ``part_of``, which takes its place when the block ends, with an error or without.
    It stays there if the process is killed. An empty file is removed. Devices and pipes are written to.
    """
    place = Path(path)
    check_writable(place)
    if is_device(place):
        yield place
        return
    check_no_part(place)
    part = part_of(place)
    try:
        yield part
    finally:
        if part.exists():
            if part.stat().st_size:
                os.replace(part, place)
            else:
                part.unlink()


def sweep(folder: Path) -> None:
    """Remove what writers that were killed left in a folder; nobody may be writing there."""
    for kind in ("unfinished", "old", "probe"):
        for file in folder.rglob(f".{kind}-????????*"):
            file.unlink(missing_ok=True)


def check_writable(place: Path) -> None:
    """Raise an OSError if no file can be written at ``place``; missing folders are made.

    A file is made beside it and removed: what permissions say is not all (read-only disks, root).
    """
    if is_device(place):
        if not os.access(place, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(place))
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    probe = _beside(place, "probe")
    try:
        if place.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(place)) from error


def is_device(path: Path) -> bool:
    """Whether a path is a device or a pipe, such as /dev/null or a shell's >(gzip), which must not be replaced."""
    if str(path.parent) in ("/dev", "/dev/fd", "/proc/self/fd"):  # /dev/stdout may lead to a file
        return True
    return os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path)


def _put_in_place(files: list[Path], places: list[Path]) -> None:
    """Rename all, or bring back what was there."""
    spares = {place: _beside(place, "old") for place in places if place.exists()}
    try:
        for place, spare in spares.items():
            try:
                os.link(place, spare)
            except OSError:  # a file system without links
                shutil.copy2(place, spare)
        try:
            for file, place in zip(files, places, strict=True):
                os.replace(file, place)
        except OSError:
            for place in places:
                if place in spares:
                    os.replace(spares[place], place)
                else:
                    place.unlink(missing_ok=True)
            raise
    finally:
        for spare in spares.values():
            spare.unlink(missing_ok=True)


@contextmanager
def naming(path: Path | str, as_error: type[Exception], *kinds: type[Exception]) -> Iterator[None]:
    """Errors of the file system, or of these kinds, as errors of the class ``as_error`` that name the file."""
    renamed: tuple[type[Exception], ...] = (OSError, *kinds)
    try:
        yield
    except renamed as error:
        raise as_error(f"cannot write {path}: {getattr(error, 'strerror', None) or error}") from error


def _beside(path: Path, kind: str) -> Path:
    # Without the file's own name, which may be as long as names may be; writers go by the suffix.
    return path.with_name(f".{kind}-{secrets.token_hex(4)}{path.suffix}")
