"""Pictures with the masks of their objects, and how a folder holds them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from masklet.errors import PictureError
from masklet.pictures import read_picture


@dataclass(frozen=True)
class Example:
    """A picture and the truth about it."""

    name: str
    picture: NDArray[np.uint8]  # (height, width, 3) RGB
    labels: NDArray[np.uint8]  # (height, width): 0 background, 1..k objects


def read_folder(folder: Path) -> Iterator[Example]:
    """Read ``images/NAME.jpg`` with ``masks/NAME.png`` (palette or grey; 0 background, then one number an object).

    Raises:
        PictureError: There are no pictures, a mask is missing or of another size.
    """
    pictures = sorted((folder / "images").glob("*.jpg"))
    if not pictures:
        raise PictureError(f"no pictures in {folder / 'images'}: expected images/NAME.jpg and masks/NAME.png")
    for path in pictures:
        mask_path = folder / "masks" / f"{path.stem}.png"
        if not mask_path.exists():
            raise PictureError(f"{path} has no mask: expected {mask_path}")
        picture, labels = read_picture(path), np.asarray(Image.open(mask_path))
        if labels.shape != picture.shape[:2]:
            raise PictureError(f"{mask_path} has shape {labels.shape}: expected {picture.shape[:2]}, as its picture")
        yield Example(path.stem, picture, labels)
