"""Videos as folders of images, with a label map for each image: the layout of DAVIS and YouTube-VOS."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from masklet.datasets.labels import read_labels
from masklet.errors import VideoError
from masklet.images.folder import images_in

EXPECTED = "expected JPEGImages/VIDEO/*.jpg and Annotations/VIDEO/*.png"


@dataclass(frozen=True)
class AnnotatedVideo:
    """A video and the annotations of its frames. Made by ``read_videos``."""

    name: str
    images: list[Path]
    annotations: list[Path]

    def labels(self, frame: int) -> NDArray[np.integer]:
        """(height, width): 0 background, any other number an object."""
        return read_labels(self.annotations[frame])


def find_videos(folder: Path) -> list[AnnotatedVideo]:
    """As ``read_videos``, without checking the lengths of videos and that annotations exist.

    Raises:
        VideoError: There are no videos.
    """
    images, annotations = (
        place / "480p" if (place / "480p").is_dir() else place
        for place in (folder / "JPEGImages", folder / "Annotations")
    )
    names = sorted(path.name for path in images.iterdir() if path.is_dir()) if images.is_dir() else []
    if not names:
        raise VideoError(f"no videos in {images}: {EXPECTED} in {folder}")
    files = {name: images_in(images / name) for name in names}
    return [
        AnnotatedVideo(name, found, [annotations / name / f"{image.stem}.png" for image in found])
        for name, found in files.items()
    ]
