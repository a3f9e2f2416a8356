"""Images and videos of every layout that ``masklet.datasets`` reads, as they are measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from masklet.datasets.scenes import Frame, Mask, Pixels, Scene
from masklet.errors import DataError


@dataclass(frozen=True)
class SceneImage:
    """The first frame of a scene. Unlike those of a label map, its objects may overlap."""

    name: str
    frame: Frame

    @property
    def image(self) -> Pixels:
        """(height, width, 3) RGB."""
        return self.frame.image

    @cached_property
    def objects(self) -> list[int]:
        """The numbers of the objects that are visible, ascending."""
        return [number for number in sorted(self.frame.masks) if self.frame.mask(number).any()]

    def mask(self, number: int) -> Mask:
        """The mask of an object, (height, width)."""
        return self.frame.mask(number)


@dataclass(frozen=True)
class SceneImages:
    """The images of a data set, each read when the iteration reaches it."""

    scenes: Sequence[Scene]

    def __len__(self) -> int:
        return len(self.scenes)

    def __iter__(self) -> Iterator[SceneImage]:
        """Yields the images.

        Raises:
            DataError: After the last image, none had an object.
        """
        has_objects = False
        for scene in self.scenes:
            image = SceneImage(scene.name, scene.frame(0))
            has_objects |= bool(image.objects)
            yield image
        if not has_objects:
            raise DataError("no image contains an object: are all masks empty?")


class SceneVideo:
    """A video whose annotated frames are measured; see ``AnnotatedVideo``. Its frames are kept in memory."""

    def __init__(self, scene: Scene) -> None:
        self.name = scene.name
        self.frames = list(scene.frames(range(scene.count())))

    @property
    def images(self) -> list[Pixels]:
        """The annotated frames, (height, width, 3) RGB each."""
        return [frame.image for frame in self.frames]

    @property
    def annotations(self) -> list[Path]:
        """What messages call the frames."""
        return [Path(frame.name) for frame in self.frames]

    def labels(self, frame: int) -> NDArray[np.integer]:
        """(height, width): 0 background, any other number an object. Where objects overlap, the smallest one."""
        one = self.frames[frame]
        masks = {number: one.mask(number) for number in one.masks}
        labels = np.zeros(one.image.shape[:2], np.int32)
        for number in sorted(masks, key=lambda number: -int(masks[number].sum())):
            labels[masks[number]] = number
        return labels


@dataclass(frozen=True)
class SceneVideos:
    """The videos of a data set, each read when the iteration reaches it."""

    scenes: Sequence[Scene]

    def __len__(self) -> int:
        return len(self.scenes)

    def __iter__(self) -> Iterator[SceneVideo]:
        return map(SceneVideo, self.scenes)
