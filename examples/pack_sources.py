"""Pack images of your own into the archives that the synthetic world is composed of (``layout: synthetic``).

    python examples/pack_sources.py DATA NAME [--cutouts FOLDER] [--photos FOLDER] [--instances FOLDER]

Each folder becomes an archive in DATA: cutouts-NAME.zip, photos-NAME.zip, instances-NAME.zip. Training needs one of
each kind, with some hundreds of files: one in twenty is kept for measuring.

- Cut-outs are images of one thing each, transparent around it, in folders of any depth. Those called by a number
  alone (cup/01.png, cup/02.png) show what their folder is called after, and are trained or measured on together.
- Photos are any images.
- Instances lie as for ``masklet eval``: images/NAME.jpg and masks/NAME.png, 0 background, a number an object up to 254,
  255 not known.

Files are stored as they are, in the order of their names and with the same date: the same folder makes the same bytes.
"""

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
    """Pack what was given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
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
    """Write an archive whole or not at all; returns how many files it holds."""
    count = 0
    with replacing(archive) as unfinished, zipfile.ZipFile(unfinished, "w") as packed:
        for name, content in sorted(entries):
            packed.writestr(zipfile.ZipInfo(name), content)  # dated 1980; stored, as images are compressed already
            count += 1
        if not count:
            raise DataError(f"nothing to pack in {archive.name}: expected images ({', '.join(SUFFIXES)})")
    return count


def cutouts(folder: Path, name: str) -> Iterator[Entry]:
    """Images that are transparent somewhere, and not everywhere."""
    for path in images_below(folder):
        with Image.open(path) as image:
            least, most = image.convert("RGBA").getchannel("A").getextrema()
        if not least < most:
            raise DataError(f"{path} is no cut-out: expected an image that is transparent around what it shows")
        yield stored_name(path.relative_to(folder), name), path.read_bytes()


def photos(folder: Path, name: str) -> Iterator[Entry]:
    """Images of any kind."""
    for path in images_below(folder):
        with Image.open(path) as image:
            image.load()  # a damaged one is found here, and not in the middle of training
        yield stored_name(path.relative_to(folder), name), path.read_bytes()


def instances(folder: Path, name: str) -> Iterator[Entry]:
    """Images and the maps of their objects, of the same size."""
    for path, mask in read_folder(folder).files:
        labels = read_index_map(mask)
        with Image.open(path) as image:
            size_hw = (image.height, image.width)
        if labels.shape != size_hw or labels.max() > 255:
            raise DataError(
                f"{mask} is of {labels.shape} with numbers to {labels.max()}: expected {size_hw}, and at most 255"
            )
        file = io.BytesIO()
        Image.fromarray(labels.astype(np.uint8)).save(file, "PNG")
        image_name = stored_name(Path(path.name), name)
        yield f"images/{image_name}", path.read_bytes()
        yield f"masks/{Path(image_name).stem}.png", file.getvalue()


def images_below(folder: Path) -> Iterator[Path]:
    """At any depth."""
    return (path for path in sorted(folder.rglob("*")) if path.suffix.lower() in SUFFIXES)


def stored_name(path: Path, name: str) -> str:
    """An image's place in the archive. A number alone would be taken for a view of what its folder is called after."""
    return f"{name}.{path.name}" if path.parent == Path() and path.stem.isdigit() else path.as_posix()


if __name__ == "__main__":
    main()
