"""Folders of pictures and masks: ``images/NAME.jpg`` with ``masks/NAME.png``, or a file a mask in ``masks/NAME/``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from masklet.errors import DataError
from masklet.evaluation.folder import read_labels
from masklet.exports import read_index_map
from masklet.pictures import read_picture
from masklet.training.batches import Mask
from masklet.training.data.scenes import Frame, Scene, masks_of_labels
from masklet.video.frames import pictures_in

EXPECTED = "expected images/NAME.jpg and masks/NAME.png, or masks/NAME/*.png with a mask each"


def read_folder(folder: Path, *, split_masks: bool = False) -> list[Scene]:
    """All pictures of a folder.

    Args:
        folder: Holds ``images`` and ``masks``. A picture of masks is palette or grey, 0 for background, a number an
            object, 255 "not known"; or black and white. Where a picture has a folder of masks, all that is not 0 in
            one of them is an object.
        split_masks: Take connected parts for objects of their own.

    Raises:
        DataError: There are no pictures, or some have no masks.
    """
    images, masks = folder / "images", folder / "masks"
    pictures = pictures_in(images) if images.is_dir() else []
    if not pictures:
        raise DataError(f"no pictures in {images}: {EXPECTED}")
    maps = {picture: _maps_of(picture, masks) for picture in pictures}
    if missing := [picture for picture, files in maps.items() if not files]:
        raise DataError(
            f"{len(missing)} of {len(pictures)} pictures in {images} have no masks, {missing[0].name} for one: "
            f"{EXPECTED}. For a picture without objects, a mask of zeros"
        )
    return [
        Scene(picture.stem, partial(_read, picture, files, split_masks), files=(picture, *files))
        for picture, files in maps.items()
    ]


def _maps_of(picture: Path, masks: Path) -> list[Path]:
    if (own := masks / picture.stem).is_dir():
        return pictures_in(own)
    return [one] if (one := masks / f"{picture.stem}.png").exists() else []


def _read(picture: Path, files: list[Path], split_masks: bool, _: int) -> Frame:
    pixels = read_picture(picture)
    if files[0].parent.name != "masks":
        return Frame(str(picture), pixels, {number: _file_mask(file) for number, file in enumerate(files, start=1)})
    return Frame(str(picture), pixels, masks_of_labels(read_labels(files[0]), split=split_masks))


def _file_mask(file: Path) -> Callable[[], Mask]:
    return lambda: read_index_map(file) > 0
