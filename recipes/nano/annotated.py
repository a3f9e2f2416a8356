"""Examples of annotated photos as they are: varied in scale, crop, colour and tone, with objects and their parts."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cc3d
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from masklet.datasets.scenes import Mask, Pixels
from masklet.training.augmentation import draw_change
from masklet.training.batches import Example, fills_a_cell, sample_objects
from masklet.training.data_config import Augmentations
from recipes.nano.sources import VOID, Sources

FAMILY_SHARES: Mapping[str, float] = {
    "facade": 0.19,
    "coco": 0.19,
    "plants": 0.04,
    "micro": 0.04,
    "mushroom": 0.03,
    "dsb": 0.02,
    "treelimb": 0.02,
    "oi": 0.02,
}
"""Shares of a batch. They add up to 0.55, more than half of it, and none is above a fifth. The rest is composed."""
AUGMENTATIONS = Augmentations(flip=0.5, crop=0.9, colour=0.8, grey=0.1, blur=0.15, jpeg=0.3)
WHOLE = 0.5
"""Share of objects with holes whose holes are filled: the facade with its windows, beside the windows themselves."""
MIN_HOLES = 0.02
"""Smallest area of an object's holes, as a share of the object, for the whole to be another object."""
MAX_CANDIDATES = 20
"""Objects of an image that are looked at; trays of mushrooms have hundreds."""
MAX_ATTEMPTS = 50


def family_of(name: str) -> str:
    """The source of a photo, by the first part of its name, such as ``facade``."""
    return re.split(r"[_./]", name.removeprefix("images/"))[0]


@dataclass(frozen=True)
class AnnotatedPhotos:
    """Photos with instance masks, by family.

    Objects of other classes may lie around the annotated ones. That is no harm: an example asks for annotated objects
    alone.
    """

    by_family: Mapping[str, list[tuple[Image.Image, Image.Image]]]

    @classmethod
    def from_sources(cls, sources: Sources) -> AnnotatedPhotos:
        """Every photo once, however often the sources repeat it."""
        families: dict[str, dict[str, tuple[Image.Image, Image.Image]]] = {}
        for name, pair in zip(sources.instance_names, sources.instances, strict=True):
            families.setdefault(family_of(name), {})[name] = pair
        return cls({family: list(found.values()) for family, found in families.items()})

    @property
    def families(self) -> list[str]:
        """Those that there are, in a fixed order; families that FAMILY_SHARES does not name come last."""
        known = [name for name in FAMILY_SHARES if name in self.by_family]
        return known + sorted(self.by_family.keys() - FAMILY_SHARES.keys())

    def draw(self, rng: np.random.Generator, size_px: int, objects: int) -> Example:
        """A random photo, by the shares of the families, with random objects.

        Raises:
            ValueError: No photo has an object that fills a cell.
        """
        families = self.families
        shares = np.array([FAMILY_SHARES.get(name, 0.02) for name in families])
        for _ in range(MAX_ATTEMPTS):
            family = families[int(rng.choice(len(families), p=shares / shares.sum()))]
            pairs = self.by_family[family]
            made = example_of(pairs[int(rng.integers(len(pairs)))], rng, size_px, objects, name=family)
            if made is not None:
                return made
        raise ValueError(f"none of {MAX_ATTEMPTS} photos has an object that fills a cell at {size_px}×{size_px}")


def example_of(
    pair: tuple[Image.Image, Image.Image],
    rng: np.random.Generator,
    size_px: int,
    objects: int,
    *,
    name: str,
    augment: Augmentations = AUGMENTATIONS,
) -> Example | None:
    """A varied view of a photo with a random choice of its objects; None if the view has none."""
    change = draw_change(augment, rng)
    size = (size_px, size_px)
    pixels, labels = (change.cut(np.asarray(image)) for image in pair)
    pixels = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR))
    labels = change.flip(np.asarray(Image.fromarray(labels).resize(size, Image.Resampling.NEAREST)))
    masks = objects_in(labels, rng)
    if not len(masks):
        return None
    chosen = masks[_varied(masks, objects, rng)]
    return Example(name, change.recolour(change.flip(pixels)), chosen)


def objects_in(labels: Pixels, rng: np.random.Generator) -> Mask:
    """(objects, height, width): masks of a label map that fill a cell, some of them with their holes filled."""
    numbers = [n for n in np.unique(labels) if n not in (0, VOID)]
    numbers = [int(n) for n in rng.permutation(numbers)[:MAX_CANDIDATES]] if numbers else []
    masks = [mask for n in numbers if fills_a_cell(mask := labels == n)]
    wholes = [whole for mask in masks if rng.random() < WHOLE and (whole := filled(mask)) is not None]
    return np.stack(masks + wholes) if masks else np.zeros((0, *labels.shape), bool)


def filled(mask: Mask) -> Mask | None:
    """The mask with its holes filled; None if they are no considerable part of it."""
    outside = cc3d.connected_components(np.pad(~mask, 1, constant_values=True), connectivity=4)
    whole = (outside != outside[0, 0])[1:-1, 1:-1]
    return whole if (whole & ~mask).sum() >= MIN_HOLES * mask.sum() else None


def _varied(masks: Mask, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """A random choice, half of it by area: small objects are many, and large ones would hardly be drawn."""
    areas = masks.sum((1, 2)).astype(float)
    by_area = rng.choice(len(masks), min(count // 2, len(masks)), replace=False, p=areas / areas.sum())
    others = np.setdiff1d(np.arange(len(masks)), by_area)
    if len(others) == 0:
        return by_area[sample_objects(len(by_area), count, rng)]
    return np.concatenate([by_area, others[sample_objects(len(others), count - len(by_area), rng)]])


def panned(
    pair: tuple[Image.Image, Image.Image],
    rng: np.random.Generator,
    size_px: int,
    objects: int,
    frames: int,
    *,
    name: str,
) -> Example | None:
    """A clip: a window that moves across a photo and changes its size, as a camera that pans and zooms shows it."""
    image, labels = pair
    ends = np.array([_window(image.size, rng) for _ in range(2)])
    boxes = [tuple((1 - t) * ends[0] + t * ends[1]) for t in np.linspace(0, 1, frames)]
    size = (size_px, size_px)
    maps = [np.asarray(labels.resize(size, Image.Resampling.NEAREST, box=box)) for box in boxes]
    numbers = [int(n) for n in np.unique(maps[0]) if n not in (0, VOID) and fills_a_cell(maps[0] == n)]
    if not numbers:
        return None
    chosen = np.array(numbers)[sample_objects(len(numbers), objects, rng)]
    change = draw_change(Augmentations(flip=0, colour=0.8, grey=0.1, blur=0.1, jpeg=0.2), rng)
    shown: Sequence[Pixels] = [
        change.recolour(np.asarray(image.resize(size, Image.Resampling.BILINEAR, box=box))) for box in boxes
    ]
    masks = np.stack(maps)[:, None] == chosen[None, :, None, None]
    return Example(name, np.stack(shown), masks)


def _window(size_wh: tuple[int, int], rng: np.random.Generator) -> tuple[float, float, float, float]:
    """A random box of 0.5 to 0.9 of each side, as Pillow takes it."""
    sides = np.array(size_wh) * rng.uniform(0.5, 0.9)
    start = rng.random(2) * (np.array(size_wh) - sides)
    return (*start.tolist(), *(start + sides).tolist())
