"""Folders of images with the masks of their objects."""

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
"""Undecided pixels in annotations of 8 bits. They count as background."""


@dataclass(frozen=True)
class Example:
    """An image and its annotated objects."""

    name: str
    image: NDArray[np.uint8]  # (height, width, 3) RGB
    labels: NDArray[np.integer]  # (height, width): 0 background, any other number an object

    @property
    def objects(self) -> list[int]:
        """The numbers of the objects, ascending."""
        return object_numbers(self.labels)


@dataclass(frozen=True)
class ExampleFolder:
    """The examples of a folder, each read when the iteration reaches it. Made by ``read_folder``."""

    folder: Path
    files: list[tuple[Path, Path]]  # (image, mask)

    def __len__(self) -> int:
        return len(self.files)

    def __iter__(self) -> Iterator[Example]:
        """Yields the examples in natural order of their names.

        Raises:
            ImageError: A file cannot be read; a mask is in colour or not of its image's size; or, after the last
                example, no mask had an object.
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
                f"no mask in {self.folder / 'masks'} contains an object: expected 0 for the background and a number "
                f"for each object, 1 to 254 in 8 bits ({VOID} is void)"
            )


def read_folder(folder: Path) -> ExampleFolder:
    """Finds ``images/NAME.jpg`` (or another image format) and ``masks/NAME.png`` for each image.

    Masks are palette or greyscale images: 0 is background, 255 is void, any other number an object. Or they are black
    and white.

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
    """Reads an annotation, (height, width): 0 is background or void, any other number an object.

    Raises:
        ImageError: The file cannot be read, or is an image in colour.
    """
    labels = read_index_map(path)
    return np.where(labels == VOID, np.uint8(0), labels) if labels.dtype == np.uint8 else labels


def object_numbers(labels: NDArray[np.integer]) -> list[int]:
    """The numbers of the objects in a (height, width) map, ascending."""
    return [int(number) for number in np.unique(labels) if number]
