"""Batches of composed pictures. A batch is a function of the seed and the step, so a resumed run sees the same."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from masklet.processing import IMAGE_MEAN, IMAGE_STD
from masklet.training.prompts import MASK_STRIDE
from masklet.training.sources import Sources
from masklet.training.synthetic import Pixels, compose


@dataclass(frozen=True)
class Batch:
    """Pictures and the objects that are asked for in them."""

    pixel_values: Tensor  # (batch, 3, height, width), normalised
    targets: Tensor  # (batch, objects, height / 4, width / 4) bool, none empty

    def split(self, parts: int) -> list[Batch]:
        """As many batches of a part of the pictures."""
        pairs = zip(self.pixel_values.chunk(parts), self.targets.chunk(parts), strict=True)
        return [Batch(pixels, targets) for pixels, targets in pairs]


def make_batch(sources: Sources, *, side_px: int, pictures: int, objects: int, seed: int, step: int) -> Batch:
    """Compose the pictures of one step and draw as many objects in each; in a picture of few, some are drawn twice."""
    made = [_picture_with_objects(sources, side_px, objects, seed, step, index) for index in range(pictures)]
    pixels = torch.from_numpy(np.stack([picture for picture, _ in made])).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGE_MEAN, IMAGE_STD))
    return Batch((pixels - mean) / std, torch.from_numpy(np.stack([masks for _, masks in made])))


def _picture_with_objects(
    sources: Sources, side_px: int, objects: int, seed: int, step: int, index: int
) -> tuple[Pixels, NDArray[np.bool_]]:
    rng = np.random.default_rng((seed, step, index))
    while True:
        picture, labels = compose(sources, side_px, rng)
        masks = shrink_labels(labels)
        if len(masks):
            chosen = rng.permutation(len(masks))[:objects]
            chosen = np.concatenate([chosen, rng.integers(0, len(masks), objects - len(chosen))])
            return picture, masks[chosen]


def shrink_labels(labels: Pixels) -> NDArray[np.bool_]:
    """(height, width) labels to (objects, height / 4, width / 4) masks of the cells an object fills by half or more.

    Objects that fill no cell are left out.
    """
    numbers = np.arange(1, labels.max() + 1, dtype=np.uint8)
    cells = labels.reshape(labels.shape[0] // MASK_STRIDE, MASK_STRIDE, labels.shape[1] // MASK_STRIDE, MASK_STRIDE)
    masks = (cells == numbers[:, None, None, None, None]).mean((2, 4), dtype=np.float32) >= 0.5
    return masks[masks.any((1, 2))]
