"""Batches of composed pictures and clips: functions of the seed and the step, so a resumed run sees the same."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from masklet.processing import IMAGE_MEAN, IMAGE_STD
from masklet.training.clips import compose_clip
from masklet.training.prompts import MASK_STRIDE
from masklet.training.sources import Sources
from masklet.training.synthetic import Pixels, compose

PART_SHARE = 0.25
"""Objects that are asked for in pictures whose objects have parts, and are such a part."""


@dataclass(frozen=True)
class Batch:
    """Pictures, or clips, and the objects that are asked for in them."""

    pixel_values: Tensor  # (batch, [frames,] 3, height, width), normalised
    targets: Tensor  # (batch, [frames,] objects, height / 4, width / 4) bool, none empty in a picture or first frame

    def split(self, parts: int) -> list[Batch]:
        """As many batches of a part of the pictures or clips."""
        pairs = zip(self.pixel_values.chunk(parts), self.targets.chunk(parts), strict=True)
        return [Batch(pixels, targets) for pixels, targets in pairs]


def make_batch(sources: Sources, *, side_px: int, pictures: int, objects: int, seed: int, step: int) -> Batch:
    """Compose the pictures of one step and draw as many objects in each; in a picture of few, some are drawn twice."""
    made = [_picture_with_objects(sources, side_px, objects, seed, step, index) for index in range(pictures)]
    return Batch(
        _normalised([picture for picture, _ in made]), torch.from_numpy(np.stack([masks for _, masks in made]))
    )


def make_clip_batch(
    sources: Sources, *, side_px: int, frames: int, clips: int, objects: int, seed: int, step: int
) -> Batch:
    """As ``make_batch``, of clips of so many frames."""
    made = [_clip_with_objects(sources, side_px, frames, objects, seed, step, index) for index in range(clips)]
    return Batch(_normalised([film for film, _ in made]), torch.from_numpy(np.stack([masks for _, masks in made])))


def _normalised(pictures: list[Pixels]) -> Tensor:
    """(..., height, width, 3) each to (batch, ..., 3, height, width)."""
    pixels = torch.from_numpy(np.stack(pictures)).movedim(-1, -3).float() / 255
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGE_MEAN, IMAGE_STD))
    return (pixels - mean) / std


def _picture_with_objects(
    sources: Sources, side_px: int, objects: int, seed: int, step: int, index: int
) -> tuple[Pixels, NDArray[np.bool_]]:
    rng = np.random.default_rng((seed, step, index))
    while True:
        made = compose(sources, side_px, rng)
        masks, parts = shrink_labels(made.labels), shrink_labels(made.parts)
        if len(masks):
            chosen = masks[_drawn(len(masks), objects, rng)]
            is_part = rng.random(objects) < (PART_SHARE if len(parts) else 0)
            chosen[is_part] = parts[rng.integers(0, max(1, len(parts)), is_part.sum())]
            return made.picture, chosen


def _clip_with_objects(
    sources: Sources, side_px: int, frames: int, objects: int, seed: int, step: int, index: int
) -> tuple[Pixels, NDArray[np.bool_]]:
    rng = np.random.default_rng((seed, step, index))
    while True:
        film, labels = compose_clip(sources, side_px, frames, rng)
        masks = _cells_of(labels)  # (objects, frames, h, w)
        masks = masks[masks[:, 0].any((1, 2))]
        if len(masks):
            return film, masks[_drawn(len(masks), objects, rng)].swapaxes(0, 1)


def _drawn(there_are: int, objects: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Which objects are asked for: different ones as far as there are."""
    chosen = rng.permutation(there_are)[:objects]
    return np.concatenate([chosen, rng.integers(0, there_are, objects - len(chosen))])


def shrink_labels(labels: Pixels) -> NDArray[np.bool_]:
    """(height, width) labels to (objects, height / 4, width / 4) masks of the cells an object fills by half or more.

    Objects that fill no cell are left out.
    """
    masks = _cells_of(labels)
    return masks[masks.any((1, 2))]


def _cells_of(labels: Pixels) -> NDArray[np.bool_]:
    """(..., height, width) labels 0..k to (k, ..., height / 4, width / 4)."""
    *leading, height, width = labels.shape
    cells = labels.reshape(*leading, height // MASK_STRIDE, MASK_STRIDE, width // MASK_STRIDE, MASK_STRIDE)
    numbers = np.arange(1, labels.max() + 1, dtype=np.uint8).reshape(-1, *[1] * cells.ndim)
    return (cells == numbers).mean((-3, -1), dtype=np.float32) >= 0.5
