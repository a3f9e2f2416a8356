"""Folders of images and masks: ``images/NAME.jpg`` with ``masks/NAME.png``, or one file per mask in ``masks/NAME/``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from masklet.datasets.labels import read_labels
from masklet.datasets.scenes import Frame, Mask, Scene, masks_of_labels
from masklet.errors import DataError
from masklet.images.folder import images_in
from masklet.images.reading import read_image
from masklet.results.importers import read_index_map

EXPECTED = "expected images/NAME.jpg and masks/NAME.png, or masks/NAME/*.png with one mask each"


def read_folder(folder: Path, *, split_masks: bool = False) -> list[Scene]:
    """All images of a folder.

    Args:
        folder: Holds ``images`` and ``masks``. A label map ``masks/NAME.png`` is palette or grey, with 0 for
            background, one number per object and 255 for unknown; or it is black and white. In a folder of masks, the
            nonzero pixels of each file are one object.
        split_masks: Treat every connected component of a label as an object of its own.

    Raises:
        DataError: There are no images, or some have no masks.
    """
    image_folder, masks = folder / "images", folder / "masks"
    images = images_in(image_folder) if image_folder.is_dir() else []
    if not images:
        raise DataError(f"no images in {image_folder}: {EXPECTED}")
    maps = {image: _maps_of(image, masks) for image in images}
    if missing := [image for image, files in maps.items() if not files]:
        raise DataError(
            f"{len(missing)} of {len(images)} images in {image_folder} have no masks, for example {missing[0].name}: "
            f"{EXPECTED}. An image without objects needs a mask of zeros"
        )
    return [
        Scene(image.stem, partial(_read, image, files, split_masks), files=(image, *files))
        for image, files in maps.items()
    ]


def _maps_of(image: Path, masks: Path) -> list[Path]:
    if (own := masks / image.stem).is_dir():
        return images_in(own)
    return [one] if (one := masks / f"{image.stem}.png").exists() else []


def _read(image: Path, files: list[Path], split_masks: bool, _: int) -> Frame:
    pixels = read_image(image)
    if files[0].parent.name != "masks":
        return Frame(str(image), pixels, {number: _file_mask(file) for number, file in enumerate(files, start=1)})
    return Frame(str(image), pixels, masks_of_labels(read_labels(files[0]), split=split_masks))


def _file_mask(file: Path) -> Callable[[], Mask]:
    return lambda: read_index_map(file) > 0
