"""Mean IoU of a model over pictures whose objects are known, from one click, from a box and from a rough mask.

Source: SAM (arXiv 2304.02643), section 7.1: one click in the middle of each object.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from masklet.evaluation.clicks import centre_click
from masklet.evaluation.folder import Example
from masklet.segmenter import Segmenter

ROUGHNESS = 0.1
"""Width of the brush of a rough mask, as a share of the object's longer side."""


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
    rough: float
    """Of a rough mask of the object, as somebody might paint it: what is there to begin with."""
    rough_box: float
    """From the box of the rough mask alone."""
    rough_mask: float
    """From the rough mask."""


def measure(segmenter: Segmenter, examples: Iterable[Example]) -> Iterator[ObjectScore]:
    """Prompt every object of every picture; objects are scored at the size of the picture."""
    for example in examples:
        photo = segmenter.image(example.picture)
        for number in np.unique(example.labels[example.labels > 0]):
            truth = example.labels == number
            candidates = photo.predict(points=[centre_click(truth)])
            ious = [mask_iou(mask, truth) for mask in candidates.masks]
            rough = roughen(truth)
            yield ObjectScore(
                picture=example.name,
                object=int(number),
                one_click=ious[int(np.argmax(candidates.scores))],
                oracle_click=max(ious),
                box=mask_iou(photo.predict(box=box_of(truth)).masks[0], truth),
                rough=mask_iou(rough, truth),
                rough_box=mask_iou(photo.predict(box=box_of(rough)).masks[0], truth),
                rough_mask=mask_iou(photo.predict(mask=rough).masks[0], truth),
            )


def mask_iou(mask: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    """Intersection over union; 0 where both are empty."""
    either = np.count_nonzero(mask | truth)
    return np.count_nonzero(mask & truth) / either if either else 0.0


def box_of(mask: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """(x0, y0, x1, y1) around a mask that is not empty, in pixels; the far sides lie behind the last pixel."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def roughen(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """A mask that is not empty, painted with a square brush a tenth of the object's longer side wide.

    A square is painted where the object fills half of it or more; an object too thin for that stays as it is.
    """
    x0, y0, x1, y1 = box_of(mask)
    brush_px = max(1, round(ROUGHNESS * max(x1 - x0, y1 - y0)))
    height, width = (-(-side // brush_px) for side in mask.shape)
    padded = np.zeros((height * brush_px, width * brush_px), bool)
    padded[: mask.shape[0], : mask.shape[1]] = mask
    is_painted = padded.reshape(height, brush_px, width, brush_px).mean((1, 3)) >= 0.5
    rough = is_painted.repeat(brush_px, 0).repeat(brush_px, 1)[: mask.shape[0], : mask.shape[1]]
    return rough if rough.any() else mask


def summarise(scores: Iterable[ObjectScore]) -> dict[str, float]:
    """Means over objects, and how many there were.

    Raises:
        ValueError: There are none.
    """
    scores = list(scores)
    if not scores:
        raise ValueError("nothing to summarise: no picture has an object")
    names = [field.name for field in fields(ObjectScore) if field.name not in ("picture", "object")]
    return {name: float(np.mean([getattr(s, name) for s in scores])) for name in names} | {"objects": len(scores)}
