"""Images with the masks of their objects, and how a folder holds them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from masklet.errors import ImageError
from masklet.images.folder import images_in
from masklet.images.reading import read_image
from masklet.results.importers import read_index_map
from masklet.video.frames import width_by_height

VOID = 255
"""What nobody could tell, in annotations of 8 bits. It counts as background."""


@dataclass(frozen=True)
class Example:
    """An image and the truth about it."""

    name: str
    image: NDArray[np.uint8]  # (height, width, 3) RGB
    labels: NDArray[np.integer]  # (height, width): 0 background, any other number an object

    @property
    def objects(self) -> list[int]:
        """Their numbers, ascending."""
        return object_numbers(self.labels)


@dataclass(frozen=True)
class ExampleFolder:
    """The examples of a folder; each is read when it is its turn. Made by ``read_folder``."""

    folder: Path
    files: list[tuple[Path, Path]]  # of images and of their masks

    def __len__(self) -> int:
        return len(self.files)

    def __iter__(self) -> Iterator[Example]:
        """In natural order of their names.

        Raises:
            ImageError: A file cannot be read, a mask is of another size than its image or in colours; or no mask
                had an object, which shows at the end.
        """
        has_objects = False
        for image_path, mask_path in self.files:
            image, labels = read_image(image_path), read_labels(mask_path)
            if labels.shape != image.shape[:2]:
                raise ImageError(
                    f"{mask_path} is {width_by_height(labels.shape)}: expected {width_by_height(image.shape)}, the "
                    f"size of {image_path.name}"
                )
            has_objects |= bool(labels.any())
            yield Example(image_path.stem, image, labels)
        if not has_objects:
            raise ImageError(
                f"no mask in {self.folder / 'masks'} shows an object: expected 0 for the background and a number for "
                f"each object, 1 to 254 in 8 bits ({VOID} is void)"
            )


def read_folder(folder: Path) -> ExampleFolder:
    """Find ``images/NAME.jpg`` (or another image) and ``masks/NAME.png``, one for each.

    Masks are palette or grey: 0 background, then one number an object, 255 void; or black and white.

    Raises:
        ImageError: There are no images, or masks are missing.
    """
    image_folder = folder / "images"
    images = images_in(image_folder) if image_folder.is_dir() else []
    if not images:
        raise ImageError(f"no images in {image_folder}: expected images/NAME.jpg and masks/NAME.png")
    files = [(path, folder / "masks" / f"{path.stem}.png") for path in images]
    if missing := [mask_path for _, mask_path in files if not mask_path.exists()]:
        raise ImageError(f"{len(missing)} of {len(files)} images have no mask: expected {missing[0]}")
    return ExampleFolder(folder, files)


def read_labels(path: Path) -> NDArray[np.integer]:
    """An annotation, (height, width): 0 background and void, any other number an object.

    Raises:
        ImageError: It cannot be read, or is an image in colours.
    """
    labels = read_index_map(path)
    return np.where(labels == VOID, np.uint8(0), labels) if labels.dtype == np.uint8 else labels


def object_numbers(labels: NDArray[np.integer]) -> list[int]:
    """Of (height, width), ascending."""
    return [int(number) for number in np.unique(labels) if number]
