"""How many of the objects of an image are among all masks that are found in it without being told where to look.

Objects that nobody annotated may be found as well, so what is found beside the annotated ones is counted, not judged.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from masklet.evaluation.folder import Example
from masklet.evaluation.grid import Extremes
from masklet.evaluation.scores import summarise
from masklet.masks import mask_ious
from masklet.segmenter import Segmenter


@dataclass(frozen=True)
class FoundScore:
    """One object, and the mask of its image that fits it best."""

    image: str
    object: int
    masks: int
    """So many were found in its image."""
    best_iou: float
    """0 if none was found."""
    recall_50: float
    """1 if the best IoU is 0.5 or more, else 0."""
    recall_75: float
    """Likewise, for 0.75."""


def find_objects(
    segmenter: Segmenter, examples: Iterable[Example], *, extremes: Extremes | None = None, **options: Any
) -> Iterator[FoundScore]:
    """Look for everything in every image; an object of several masks is found by the best of them.

    Args:
        segmenter: What is measured.
        examples: Images and their objects.
        extremes: Shown every object's best mask; none where nothing that was found touches it.
        options: For ``Segmenter.everything``.
    """
    for example in examples:
        numbers = example.objects
        if not numbers:
            continue
        truths = example.labels == np.array(numbers)[:, None, None]
        found = segmenter.everything(example.image, **options).masks
        ious = mask_ious(found, truths)  # (found, objects)
        for number, truth, column in zip(numbers, truths, ious.T, strict=True):
            best = float(column.max(initial=0))
            yield FoundScore(example.name, number, len(found), best, float(best >= 0.5), float(best >= 0.75))
            if extremes is not None:
                mask = found[column.argmax()] if best > 0 else np.zeros_like(truth)
                extremes.add(f"{example.name} {number}", best, example.image, truth, mask)


def summarise_found(scores: Sequence[FoundScore]) -> dict[str, float]:
    """As ``summarise``, with masks for each image that has objects.

    Raises:
        ValueError: There are none.
    """
    masks = {score.image: score.masks for score in scores}
    return summarise(scores) | {"images": len(masks), "masks_per_image": float(np.mean(list(masks.values())))}
