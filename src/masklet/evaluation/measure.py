"""Mean IoU of a model over pictures whose objects are known, from one click and from a box.

Source: SAM (arXiv 2304.02643), section 7.1: one click in the middle of each object.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from masklet.evaluation.clicks import centre_click
from masklet.evaluation.folder import Example
from masklet.segmenter import Segmenter


@dataclass(frozen=True)
class ObjectScore:
    """IoU with the truth of what a user gets for one object."""

    picture: str
    object: int
    one_click: float
    """Of the candidate with the best predicted score."""
    oracle_click: float
    """Of the best candidate: what a better prediction of scores could reach."""
    box: float


def measure(segmenter: Segmenter, examples: Iterable[Example]) -> Iterator[ObjectScore]:
    """Prompt every object of every picture; objects are scored at the size of the picture."""
    for example in examples:
        photo = segmenter.image(example.picture)
        for number in np.unique(example.labels[example.labels > 0]):
            truth = example.labels == number
            candidates = photo.predict(points=[centre_click(truth)])
            ious = [mask_iou(mask, truth) for mask in candidates.masks]
            boxed = photo.predict(box=box_of(truth))
            yield ObjectScore(
                picture=example.name,
                object=int(number),
                one_click=ious[int(np.argmax(candidates.scores))],
                oracle_click=max(ious),
                box=mask_iou(boxed.masks[0], truth),
            )


def mask_iou(mask: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    """Intersection over union; 0 where both are empty."""
    either = np.count_nonzero(mask | truth)
    return np.count_nonzero(mask & truth) / either if either else 0.0


def box_of(mask: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """(x0, y0, x1, y1) around a mask that is not empty, in pixels; the far sides lie behind the last pixel."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def summarise(scores: Iterable[ObjectScore]) -> dict[str, float]:
    """Means over objects, and how many there were.

    Raises:
        ValueError: There are none.
    """
    scores = list(scores)
    if not scores:
        raise ValueError("nothing to summarise: no picture has an object")
    means = {name: float(np.mean([getattr(s, name) for s in scores])) for name in ("one_click", "oracle_click", "box")}
    return means | {"objects": len(scores)}
