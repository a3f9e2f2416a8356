"""Folders of images with the masks of their objects."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from masklet.datasets.labels import VOID, object_numbers, read_labels
from masklet.errors import ImageError
from masklet.images.folder import images_in
from masklet.images.reading import read_image
from masklet.video.frames import width_by_height


class AnnotatedImage(Protocol):
    """An image and the masks of its objects."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def image(self) -> NDArray[np.uint8]:
        """(height, width, 3) RGB."""

    @property
    def objects(self) -> list[int]:
        """The numbers of its objects, ascending."""

    def mask(self, number: int) -> NDArray[np.bool_]:
        """The mask of an object, (height, width)."""


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

    def mask(self, number: int) -> NDArray[np.bool_]:
        """The mask of an object, (height, width)."""
        return self.labels == number


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
