"""The images in a folder."""

import re
from pathlib import Path

# fmt: off
IMAGE_SUFFIXES = (
    ".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp",
)
# fmt: on


def images_in(folder: Path) -> list[Path]:
    """The images directly in a folder, in natural order. Hidden files are left out."""
    files = (file for file in folder.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES and file.name[0] != ".")
    return sorted((file for file in files if file.is_file()), key=natural_order)


def natural_order(file: Path) -> tuple[list[str | int], str]:
    """A key to sort files by: digits compare as numbers."""
    # Text and numbers alternate, so equal positions have equal types. The name decides between img1 and img01.
    parts = re.split("([0-9]+)", str(file).lower())
    return [int(part) if place % 2 else part for place, part in enumerate(parts)], str(file)
