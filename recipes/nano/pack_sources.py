"""Packs your own images into the archives that training images are composed of.

    python -m recipes.nano.pack_sources DATA NAME [--cutouts FOLDER] [--photos FOLDER] [--instances FOLDER]

Run it from the root of the repository. Each folder becomes an archive in DATA: cutouts-NAME.zip, photos-NAME.zip,
instances-NAME.zip. Training needs at least one archive of each kind, with some hundreds of files: one file in twenty is
held out for validation.

- Cut-outs are images of one object each on a transparent background, in folders of any depth. Files whose names are
  numbers (cup/01.png, cup/02.png) are views of what their folder is named after, and stay together in training or
  validation.
- Photos are images of any kind.
- Instances have the layout of ``masklet eval``: images/NAME.jpg and masks/NAME.png, with 0 for background, a number for
  each object, up to 254, and 255 for unknown.

Files are stored unchanged, in the order of their names and with a fixed date: the same folder gives the same bytes.
"""

from __future__ import annotations

import argparse
import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from masklet.atomic import replacing
from masklet.errors import DataError
from masklet.evaluation.folder import read_folder
from masklet.results.importers import read_index_map

Entry = tuple[str, bytes]
SUFFIXES = (".png", ".webp", ".jpg", ".jpeg")


def main() -> None:
    """Packs the given folders."""
    parser = argparse.ArgumentParser(
        prog="python -m recipes.nano.pack_sources",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("data", type=Path, metavar="DATA")
    parser.add_argument("name", metavar="NAME")
    kinds = {"cutouts": cutouts, "photos": photos, "instances": instances}
    for kind in kinds:
        parser.add_argument(f"--{kind}", type=Path, metavar="FOLDER")
    arguments = parser.parse_args()
    given = {kind: folder for kind in kinds if (folder := getattr(arguments, kind)) is not None}
    if not given:
        parser.error("nothing to pack: give --cutouts, --photos or --instances")
    for kind, folder in given.items():
        archive = arguments.data / f"{kind}-{arguments.name}.zip"
        print(f"{archive}: {pack(archive, kinds[kind](folder, arguments.name))} files")


def pack(archive: Path, entries: Iterator[Entry]) -> int:
    """Writes an archive whole or not at all; returns its number of files."""
    count = 0
    with replacing(archive) as unfinished, zipfile.ZipFile(unfinished, "w") as packed:
        for name, content in sorted(entries):
            packed.writestr(zipfile.ZipInfo(name), content)  # dated 1980; not compressed, as images already are
            count += 1
        if not count:
            raise DataError(f"nothing to pack in {archive.name}: expected images ({', '.join(SUFFIXES)})")
    return count


def cutouts(folder: Path, name: str) -> Iterator[Entry]:
    """Images that are partly transparent."""
    for path in images_below(folder):
        with Image.open(path) as image:
            alpha = np.asarray(image.convert("RGBA").getchannel("A"))
        if alpha.min() == alpha.max():
            raise DataError(f"{path} is not a cut-out: expected an object on a transparent background")
        yield stored_name(path.relative_to(folder), name), path.read_bytes()


def photos(folder: Path, name: str) -> Iterator[Entry]:
    """Images of any kind."""
    for path in images_below(folder):
        with Image.open(path) as image:
            image.load()  # finds damaged images now, not in the middle of training
        yield stored_name(path.relative_to(folder), name), path.read_bytes()


def instances(folder: Path, name: str) -> Iterator[Entry]:
    """Images and label maps of the same size."""
    for path, mask in read_folder(folder).files:
        labels = read_index_map(mask)
        with Image.open(path) as image:
            size_hw = (image.height, image.width)
        if labels.shape != size_hw or labels.max() > 255:
            raise DataError(
                f"{mask} has shape {labels.shape} and labels up to {labels.max()}: expected {size_hw}, and at most 255"
            )
        file = io.BytesIO()
        Image.fromarray(labels.astype(np.uint8)).save(file, "PNG")
        image_name = stored_name(Path(path.name), name)
        yield f"images/{image_name}", path.read_bytes()
        yield f"masks/{Path(image_name).stem}.png", file.getvalue()


def images_below(folder: Path) -> Iterator[Path]:
    """All images in a folder, at any depth."""
    return (path for path in sorted(folder.rglob("*")) if path.suffix.lower() in SUFFIXES)


def stored_name(path: Path, name: str) -> str:
    """The name of an image in the archive. A bare number at the top level gets a prefix: it is not a view."""
    return f"{name}.{path.name}" if path.parent == Path() and path.stem.isdigit() else path.as_posix()


if __name__ == "__main__":
    main()
