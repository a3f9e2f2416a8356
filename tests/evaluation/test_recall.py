"""Recall of automatic masks."""

from dataclasses import dataclass, field

import numpy as np
import pytest

from masklet.evaluation.folder import Example
from masklet.evaluation.grid import Extremes
from masklet.evaluation.recall import RecallScore, measure_recall, summarise_recall


@dataclass
class Scripted:
    """A segmenter with given masks for each image."""

    found: list
    options: list = field(default_factory=list)

    def everything(self, image, **options):
        self.options.append(options)
        return self

    @property
    def masks(self):
        return self.found[len(self.options) - 1]


def example(name, *columns):
    """An image of 1×8 pixels whose objects 1, 2 … are these columns."""
    labels = np.zeros((1, 8), np.uint8)
    for number, column in enumerate(columns, start=1):
        labels[0, column] = number
    return Example(name, np.zeros((1, 8, 3), np.uint8), labels)


def masks(*columns):
    found = np.zeros((len(columns), 1, 8), bool)
    for mask, column in zip(found, columns, strict=True):
        mask[0, column] = True
    return found


def test_recall_counts_objects_with_a_good_enough_mask():
    sam = Scripted([masks(slice(0, 3), slice(0, 1), slice(5, 7), slice(0, 8)), masks(slice(1, 2))])
    examples = [example("a", slice(0, 4), slice(4, 8)), example("b"), example("c", slice(0, 3))]
    extremes = Extremes()
    scores = list(measure_recall(sam, examples, extremes=extremes, points_per_side=3))
    assert scores == [
        RecallScore("a", 1, 4, 0.75, 1.0, 1.0),  # exactly the threshold
        RecallScore("a", 2, 4, 0.5, 1.0, 0.0),
        RecallScore("c", 1, 1, pytest.approx(1 / 3), 0.0, 0.0),
    ]
    assert sam.options == [{"packed": True, "points_per_side": 3}] * 2  # none for the image without objects
    assert extremes.scores == pytest.approx([1 / 3, 0.5, 0.75])
    assert summarise_recall(scores) == {
        "best_iou": pytest.approx((0.75 + 0.5 + 1 / 3) / 3),
        "recall_50": pytest.approx(2 / 3),
        "recall_75": pytest.approx(1 / 3),
        "objects": 3,
        "images": 2,
        "masks_per_image": 2.5,
    }


def test_without_masks_the_recall_is_zero():
    (score,) = measure_recall(Scripted([masks()]), [example("a", slice(2, 4))], extremes=Extremes())
    assert score == RecallScore("a", 1, 0, 0.0, 0.0, 0.0)


def test_the_options_reach_the_generator(sam, image):
    labels = np.zeros(image.shape[:2], np.uint8)
    labels[10:30, 20:50] = 1
    examples = [Example("a", image, labels)]
    loose = {"points_per_side": 3, "iou_threshold": 0, "stability_threshold": 0}
    (score,) = measure_recall(sam, examples, **loose)
    assert score.masks == len(sam.everything(image, **loose)) > 0
    assert next(measure_recall(sam, examples, iou_threshold=1)).masks == 0
