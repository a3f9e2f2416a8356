"""Recall of automatic masks: how many of an image's annotated objects are among them.

Images may contain objects that nobody annotated, so masks that match no annotation are counted but not penalised.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from masklet.evaluation.folder import AnnotatedImage
from masklet.evaluation.grid import Extremes
from masklet.evaluation.scores import summarise
from masklet.masks import mask_ious
from masklet.segmenter import Segmenter


@dataclass(frozen=True)
class RecallScore:
    """One object and the automatic mask that fits it best."""

    image: str
    object: int
    masks: int
    """Number of automatic masks of the image."""
    best_iou: float
    """0 if there are no masks."""
    recall_50: float
    """1 if the best IoU is at least 0.5, else 0."""
    recall_75: float
    """1 if the best IoU is at least 0.75, else 0."""


def measure_recall(
    segmenter: Segmenter, examples: Iterable[AnnotatedImage], *, extremes: Extremes | None = None, **options: Any
) -> Iterator[RecallScore]:
    """Makes automatic masks of every image and finds the best one for each object.

    Args:
        segmenter: The segmenter to measure.
        examples: Images and their objects.
        extremes: Collects every object's best mask, or an empty one if no mask overlaps the object.
        options: Options for ``Segmenter.everything``.
    """
    for example in examples:
        numbers = example.objects
        if not numbers:
            continue
        truths = np.stack([example.mask(number) for number in numbers])
        found = segmenter.everything(example.image, packed=True, **options).masks
        ious = mask_ious(found, truths)  # (found, objects)
        for number, truth, column in zip(numbers, truths, ious.T, strict=True):
            best = float(column.max(initial=0))
            yield RecallScore(example.name, number, len(found), best, float(best >= 0.5), float(best >= 0.75))
            if extremes is not None:
                mask = found[column.argmax()] if best > 0 else np.zeros_like(truth)
                extremes.add(f"{example.name} {number}", best, example.image, truth, mask)


def summarise_recall(scores: Sequence[RecallScore]) -> dict[str, float]:
    """As ``summarise``, with the number of masks for each image that has objects.

    Raises:
        ValueError: ``scores`` is empty.
    """
    masks = {score.image: score.masks for score in scores}
    return summarise(scores) | {"images": len(masks), "masks_per_image": float(np.mean(list(masks.values())))}
