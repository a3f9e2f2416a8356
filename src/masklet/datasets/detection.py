"""Recognises the layout of a data set by its files."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from masklet.errors import DataError
from masklet.images.folder import IMAGE_SUFFIXES

EXPECTED = (
    "expected images/ and masks/, JPEGImages/ and Annotations/, a JSON file of COCO, NAME.json beside each NAME.jpg "
    "(SA-1B), or NAME_manual.json or NAME_auto.json beside each NAME.mp4 (SA-V)"
)
SEARCHED_FILES = 10_000
"""Files of a folder that are looked at for a layout."""
IMAGE_FOLDERS = ("images", "train", "val", "test", "data", ".")
"""Where the images of a COCO file may be, relative to it."""


@dataclass(frozen=True)
class DataLocation:
    """A data set whose layout is known; the arguments of ``read_scenes``."""

    layout: str
    path: Path
    annotations: Path | None = None


def detect_layout(path: Path) -> DataLocation:
    """Finds out how the data in a folder, or of a COCO file, are laid out.

    Raises:
        DataError: There is no such data, or of no known layout.
    """
    if not path.exists():
        raise DataError(f"there is no folder {path}: {EXPECTED}")
    if path.is_file():
        return _of_coco(path)
    is_images, is_videos = ((path / name).is_dir() for name in ("images", "JPEGImages"))
    if is_images and is_videos:
        raise DataError(f"{path} holds both images/ and JPEGImages/: expected one of them")
    if is_videos:
        return DataLocation("videos", path)
    if is_images and (path / "masks").is_dir():
        return DataLocation("folder", path)
    if found := [file for file in _json_files(path) if _is_coco(file)]:
        if len(found) > 1:
            names = ", ".join(str(file.relative_to(path)) for file in found[:3])
            raise DataError(f"{path} holds several files of COCO: give one of them, such as {names}")
        return _of_coco(found[0])
    for file in islice(path.rglob("*"), SEARCHED_FILES):
        if file.suffix == ".mp4" and any(
            file.with_name(f"{file.stem}_{kind}.json").exists() for kind in ("manual", "auto")
        ):
            return DataLocation("sav", path)
        if file.suffix.lower() in IMAGE_SUFFIXES and file.with_suffix(".json").exists():
            return DataLocation("sa1b", path)
    raise DataError(f"{path} is of no known layout: {EXPECTED}")


def _json_files(path: Path) -> list[Path]:
    folders = [path, path / "annotations"]
    files = [file for folder in folders if folder.is_dir() for file in sorted(folder.glob("*.json"))]
    # Beside an image of the same name lies a file of SA-1B, of which there may be millions.
    return [f for f in files[:100] if not any(f.with_suffix(suffix).exists() for suffix in (".jpg", ".png", ".mp4"))]


def _is_coco(file: Path) -> bool:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and {"images", "annotations"} <= content.keys()


def _of_coco(file: Path) -> DataLocation:
    if not _is_coco(file):
        raise DataError(f"{file} is not COCO instances: expected JSON with images and annotations")
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    first = content["images"][0]["file_name"] if content["images"] else ""
    places = [base / name for base in (file.parent, file.parent.parent) for name in (".", file.stem, *IMAGE_FOLDERS)]
    for place in places:
        if (place / first).is_file():
            return DataLocation("coco", place, file)
    raise DataError(
        f"the images of {file} are not beside it: looked for {first} in {', '.join(map(str, places[:3]))} …. Give the "
        "folder of the images as the path of the data, and the file as its annotations"
    )
