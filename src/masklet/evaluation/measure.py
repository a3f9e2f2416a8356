"""Measures prompts on images whose objects are annotated, by the IoU of each object's mask.

Source: SAM (arXiv 2304.02643), section 7.1: a click in the middle of each object, then clicks that correct its mask.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from masklet.evaluation.agreement import region_j
from masklet.evaluation.clicks import Click, box_of, click_until
from masklet.evaluation.folder import AnnotatedImage
from masklet.evaluation.grid import Extremes
from masklet.image import EncodedImage
from masklet.results import CandidateMasks, Masks
from masklet.segmenter import Segmenter

CLICKS = 7
ROUGHNESS = 0.1
"""Width of the brush that draws a rough mask, as a fraction of the object's longer side."""


@dataclass(frozen=True)
class ObjectScore:
    """IoU of one object's masks for several kinds of prompts."""

    image: str
    object: int
    one_click: float
    """IoU of the candidate with the best predicted IoU."""
    three_clicks: float
    five_clicks: float
    seven_clicks: float
    oracle_click: float
    """IoU of the best candidate after one click: an upper limit for the prediction of the IoU."""
    box: float
    rough: float
    """IoU of a rough mask as a user might draw it, before the model refines it."""
    rough_box: float
    """IoU from the box of the rough mask."""
    rough_mask: float
    """IoU from the rough mask."""


def measure(
    segmenter: Segmenter, examples: Iterable[AnnotatedImage], *, extremes: Extremes | None = None
) -> Iterator[ObjectScore]:
    """Prompts every object of every image, and compares masks at the size of the image.

    Args:
        segmenter: The segmenter to measure.
        examples: Images and their objects.
        extremes: Collects every object's mask after one click.
    """
    for example in examples:
        image = segmenter.image(example.image)
        for number in example.objects:
            truth = example.mask(number)
            user = User(image)
            predicted = list(click_until(CLICKS, truth, user.click))
            assert user.candidates is not None
            after = [region_j(mask, truth) for mask in predicted]
            rough = roughen(truth)
            yield ObjectScore(
                image=example.name,
                object=number,
                one_click=after[0],
                three_clicks=after[2],
                five_clicks=after[4],
                seven_clicks=after[6],
                oracle_click=max(region_j(mask, truth) for mask in user.candidates[0].masks),
                box=region_j(image.predict(box=box_of(truth)).masks[0], truth),
                rough=region_j(rough, truth),
                rough_box=region_j(image.predict(box=box_of(rough)).masks[0], truth),
                rough_mask=region_j(image.predict(mask=rough).masks[0], truth),
            )
            if extremes is not None:
                extremes.add(f"{example.name} {number}", after[0], example.image, truth, predicted[0])


@dataclass
class User:
    """Somebody who clicks on one object of an image and sees the candidate of the best predicted IoU."""

    image: EncodedImage
    points: list[tuple[int, int, int]] = field(default_factory=list)
    answers: list[Masks] = field(default_factory=list)
    candidates: CandidateMasks | None = None
    """Candidates after the first click."""

    def click(self, click: Click) -> NDArray[np.bool_]:
        """The mask for all clicks so far, with the logits of the previous mask fed back."""
        self.points.append(click.point)
        if self.answers:
            self.answers.append(self.image.predict(self.points, mask=self.answers[-1].logits))
        else:
            self.candidates = self.image.predict(self.points, candidates=True)
            self.answers.append(self.candidates.best)
        return self.answers[-1].masks[0]


def roughen(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Draws a mask, which is not empty, with a square brush of a tenth of the object's longer side.

    A square is filled if the object covers at least half of it. An object too thin for that is returned as it is.
    """
    x0, y0, x1, y1 = box_of(mask)
    brush_px = max(1, round(ROUGHNESS * max(x1 - x0, y1 - y0)))
    height, width = (-(-side // brush_px) for side in mask.shape)
    padded = np.zeros((height * brush_px, width * brush_px), bool)
    padded[: mask.shape[0], : mask.shape[1]] = mask
    is_filled = padded.reshape(height, brush_px, width, brush_px).mean((1, 3)) >= 0.5
    rough = is_filled.repeat(brush_px, 0).repeat(brush_px, 1)[: mask.shape[0], : mask.shape[1]]
    return rough if rough.any() else mask
