"""Scores of a model on held-out photos and compositions, without the rest of masklet: IoU at a quarter of the input."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import torch

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
AS_THEY_ARE = Augmentations(flip=0)


def held_out_scores(
    model: Sam2Model, material: Material, *, count: int, seconds: float, size_px: int = 512
) -> dict[str, float]:
    """Mean IoU from a central click (the candidate of the best predicted IoU) and from the box, for each source.

    Args:
        model: The model; it is left in evaluation mode.
        material: Held-out sources.
        count: Images of each source.
        seconds: Time after which no more images are measured.
        size_px: Side of the images.
    """
    model.eval()
    begin = time.monotonic()
    ious: dict[str, list[float]] = {}
    for example in _examples(material, count, size_px):
        if time.monotonic() - begin > seconds:
            break
        for prompt, values in _ious(model, example).items():
            ious.setdefault(f"{example.name} {prompt}", []).extend(values)
    return {name: round(float(np.mean(values)), 4) for name, values in sorted(ious.items())}


def _examples(material: Material, count: int, size_px: int) -> Iterator[Example]:
    for family in material.photos.families:
        for number, pair in enumerate(material.photos.by_family[family][:count]):
            rng = np.random.default_rng((SEED, number))
            made = example_of(pair, rng, size_px, OBJECTS, name=family, augment=AS_THEY_ARE)
            if made is not None:
                yield made
    composed = ComposedExamples(material.sources, SEED)
    stage = Stage(steps=1, input_size=size_px, objects=OBJECTS, batch_size=1)
    for number in range(count):
        batch = composed.batch(stage, [composed.example(stage, 0, number)])
        yield Example("composed", np.moveaxis(batch.pixels[0].numpy(), 0, -1), batch.targets[0].numpy())


@torch.inference_mode()
def _ious(model: Sam2Model, example: Example) -> dict[str, list[float]]:
    batch = Batch.from_examples([example]).to(model.device)
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
        "box": mask_iou(boxed.logits[:, :, 0] > 0, cells)[0].tolist(),
        "click": mask_iou(chosen > 0, cells)[0].tolist(),
    }
