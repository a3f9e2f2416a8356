"""Scores of a model on held-out photos and compositions: IoU at a quarter of the input."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from masklet.model.prompt_encoder import Prompts
from masklet.model.sam2 import Sam2Model
from masklet.training.batches import Batch, Example
from masklet.training.config import Stage
from masklet.training.data_config import Augmentations
from masklet.training.losses import mask_iou
from masklet.training.prompts import FOREGROUND, box_prompts, covered_cells, innermost_points
from recipes.nano.annotated import example_of
from recipes.nano.examples import ComposedExamples
from recipes.nano.gpu_batches import Material

SEED = 4242
OBJECTS = 6
"""Objects of each image."""
TOGETHER = 8
"""Images that are measured together."""
AS_THEY_ARE = Augmentations(flip=0)


class HeldOut(Dataset[Example | None]):
    """Held-out images with objects: some photos of each family, and as many compositions. None if one has no objects.

    Args:
        material: Held-out sources.
        count: Images of each kind at most.
        size_px: Side of the images.
    """

    def __init__(self, material: Material, *, count: int, size_px: int = 512) -> None:
        self.size_px = size_px
        photos = material.photos
        self.photos = [
            (family, number, pair)
            for family in photos.families
            for number, pair in enumerate(photos.by_family[family][:count])
        ]
        self.count = count
        self.composed = ComposedExamples(material.sources, SEED)

    def __len__(self) -> int:
        return len(self.photos) + self.count

    def __getitem__(self, index: int) -> Example | None:
        if index < len(self.photos):
            family, number, pair = self.photos[index]
            rng = np.random.default_rng((SEED, number))
            return example_of(pair, rng, self.size_px, OBJECTS, name=family, augment=AS_THEY_ARE)
        stage = Stage(steps=1, input_size=self.size_px, objects=OBJECTS, batch_size=1)
        batch = self.composed.batch(stage, [self.composed.example(stage, 0, index - len(self.photos))])
        return Example("composed", np.moveaxis(batch.pixels[0].numpy(), 0, -1), batch.targets[0].numpy())


def scores_of(model: Sam2Model, examples: Sequence[Example], *, seconds: float) -> dict[str, float]:
    """Mean IoU from a central click (the candidate of the best predicted IoU) and from the box, for each source.

    Args:
        model: The model; it is left in evaluation mode.
        examples: Held-out images of one size, with equally many objects each.
        seconds: Time after which no more images are measured.
    """
    model.eval()
    begin = time.monotonic()
    ious: dict[str, list[float]] = {}
    for first in range(0, len(examples), TOGETHER):
        if time.monotonic() - begin > seconds:
            break
        batch = Batch.from_examples(examples[first : first + TOGETHER]).to(model.device)
        for prompt, rows in _ious(model, batch).items():
            for name, row in zip(batch.names, rows.tolist(), strict=True):
                ious.setdefault(f"{name} {prompt}", []).extend(row)
    return {name: round(float(np.mean(values)), 4) for name, values in sorted(ious.items())}


@torch.inference_mode()
def _ious(model: Sam2Model, batch: Batch) -> dict[str, Tensor]:
    """(batch, objects) IoUs from each kind of prompt."""
    cells = covered_cells(batch.targets)
    features = model.encode(batch.pixel_values)
    box = box_prompts(batch.targets)
    boxed = model.decode(features, Prompts(box.points, box.labels), multimask=False)
    click = innermost_points(cells)[:, :, None]
    labels = torch.full(click.shape[:3], FOREGROUND, device=click.device)
    clicked = model.decode(features, Prompts(click, labels), multimask=True)
    best = clicked.iou_scores.argmax(-1)[..., None, None, None]
    chosen = clicked.logits.gather(2, best.expand(-1, -1, 1, *cells.shape[-2:])).squeeze(2)
    return {
        "box": mask_iou(boxed.logits[:, :, 0] > 0, cells),
        "click": mask_iou(chosen > 0, cells),
    }
