"""The measurement itself, with a segmenter whose answers are known."""

from dataclasses import dataclass, field

import numpy as np
import pytest

from masklet.evaluation.folder import Example
from masklet.evaluation.measure import measure
from masklet.results import Masks


@dataclass
class Scripted:
    """A segmenter and a photo in one: it notes what it is asked and answers from a script."""

    clicked: Masks
    boxed: Masks
    asked: list = field(default_factory=list)

    def image(self, picture):
        self.asked.append(("image", picture.shape))
        return self

    def predict(self, **prompt):
        self.asked.append(*prompt.items())
        return self.clicked if "points" in prompt else self.boxed


def answers(masks, scores):
    count = len(masks)
    return Masks(np.stack(masks), np.zeros((count, 2, 2), np.float32), np.float32(scores), np.zeros(count, int))


@pytest.fixture
def example():
    labels = np.zeros((6, 8), np.uint8)
    labels[1:4, 1:4] = 2  # numbers may have gaps: there is no object 1
    return Example("one", np.zeros((6, 8, 3), np.uint8), labels)


def test_a_click_is_scored_by_the_mask_that_promises_most_and_the_oracle_by_the_best(example):
    truth = example.labels == 2
    third = truth & (np.arange(8) < 2)
    sam = Scripted(answers([truth, third, ~truth], [0.5, 0.9, 0.1]), answers([truth], [0.3]))
    (score,) = measure(sam, [example])
    assert (score.picture, score.object) == ("one", 2)
    assert score.one_click == pytest.approx(1 / 3)
    assert score.oracle_click == score.box == 1


def test_a_picture_is_encoded_once_and_each_object_asked_for_by_its_middle_and_its_box(example):
    example.labels[5, 6:] = 7
    nothing = answers([np.zeros((6, 8), bool)], [0.0])
    sam = Scripted(nothing, nothing)
    scores = list(measure(sam, [example]))
    assert [(score.object, score.one_click, score.box) for score in scores] == [(2, 0, 0), (7, 0, 0)]
    assert [asked for asked in sam.asked if asked[0] != "mask"] == [
        ("image", (6, 8, 3)),
        ("points", [(2, 2)]),
        ("box", (1, 1, 4, 4)),
        ("box", (1, 1, 4, 4)),  # of the rough mask
        ("points", [(6, 5)]),
        ("box", (6, 5, 8, 6)),
        ("box", (6, 5, 8, 6)),
    ]
    assert [np.count_nonzero(mask) for name, mask in sam.asked if name == "mask"] == [9, 2]
