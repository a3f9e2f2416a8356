"""Descriptions of files that cannot be read."""

from __future__ import annotations

from pathlib import Path


def what_is(path: Path) -> str:
    """Describes a file that could not be read."""
    with path.open("rb") as file:
        head = file.read(64)
    size = path.stat().st_size
    if head.startswith(b"version https://git-lfs"):
        return "this is a Git LFS pointer, not the weights: run git lfs pull"
    if head.lstrip()[:1] == b"<":
        return "this is a web page, not weights"
    return f"{size} bytes that are cut off or of another kind"
