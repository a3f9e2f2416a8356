"""The measurement on images, with a segmenter of known answers and with a network."""

from dataclasses import asdict, dataclass, field

import numpy as np
import pytest

from masklet.evaluation.agreement import region_j
from masklet.evaluation.folder import Example
from masklet.evaluation.grid import Extremes
from masklet.evaluation.measure import ObjectScore, measure, roughen
from masklet.evaluation.scores import summarise
from masklet.results import CandidateMasks, Masks


@dataclass
class Scripted:
    """A segmenter and a image in one: it notes what it is asked and answers from a script."""

    clicked: list  # of CandidateMasks for one click, then of Masks for two, three …
    boxed: Masks
    asked: list = field(default_factory=list)

    def image(self, image):
        self.asked.append(("image", image.shape))
        return self

    def predict(self, points=None, *, box=None, mask=None, candidates=False):
        assert candidates == (points is not None and len(points) == 1)
        self.asked.append((points and list(points), box, mask))
        return self.clicked[len(points) - 1] if points else self.boxed


def answers(masks, scores=(0.5,)):
    logits = np.arange(len(masks), dtype=np.float32)[:, None, None] + np.zeros((2, 2), np.float32)
    return Masks(np.stack(masks), logits, np.float32(scores), np.zeros(len(masks), int))


def candidates_of(masks, scores):
    one = answers(masks, scores)
    return CandidateMasks(one.masks[None], one.logits[None], one.iou_scores[None])


@pytest.fixture
def example():
    labels = np.zeros((6, 8), np.uint8)
    labels[1:4, 1:4] = 2  # numbers may have gaps: there is no object 1
    return Example("one", np.zeros((6, 8, 3), np.uint8), labels)


def test_a_click_is_scored_by_the_mask_that_promises_most_and_the_oracle_by_the_best(example):
    truth = example.labels == 2
    third = truth & (np.arange(8) < 2)
    sam = Scripted([candidates_of([truth, third, ~truth], [0.5, 0.9, 0.1]), *[answers([truth])] * 6], answers([truth]))
    (score,) = measure(sam, [example])
    assert (score.image, score.object) == ("one", 2)
    assert score.one_click == pytest.approx(1 / 3)
    assert score.oracle_click == score.box == score.three_clicks == score.seven_clicks == 1


def test_each_click_corrects_the_mask_that_was_shown_and_its_logits_are_fed_back(example):
    """One click shows the left column, two too much, three all but a corner, and so on."""
    truth = example.labels == 2
    left, corner = truth & (np.arange(8) < 2), np.zeros_like(truth)
    corner[3, 3] = True
    too_much = truth.copy()
    too_much[:, 5:] = True
    shown = [
        candidates_of([~truth, left], [0.1, 0.9]),
        *(answers([mask]) for mask in (too_much, *[truth & ~corner] * 5)),
    ]
    sam = Scripted(shown, answers([truth]))
    (score,) = measure(sam, [example])
    clicks = [(points, mask) for points, *_, mask in sam.asked[1:] if points]
    first, second, third, fourth = (2, 2, 1), (2, 1, 1), (6, 1, 0), (3, 3, 1)
    assert [points for points, _ in clicks[:4]] == [[first, second, third, fourth][:n] for n in (1, 2, 3, 4)]
    assert clicks[0][1] is None
    np.testing.assert_array_equal(clicks[1][1], np.ones((1, 2, 2)))  # of the second candidate, the one that was shown
    np.testing.assert_array_equal(clicks[2][1], np.zeros((1, 2, 2)))
    assert (score.one_click, score.three_clicks, score.seven_clicks) == pytest.approx((3 / 9, 8 / 9, 8 / 9))
    assert score.oracle_click == pytest.approx(1 / 3)


def test_an_image_is_encoded_once_and_each_object_asked_for_by_its_middle_and_its_box(example):
    example.labels[5, 6:] = 7
    nothing = [np.zeros((6, 8), bool)]
    sam = Scripted([candidates_of(nothing, [0.5]), *[answers(nothing)] * 6], answers(nothing))
    scores = list(measure(sam, [example]))
    assert [(score.object, score.one_click, score.box) for score in scores] == [(2, 0, 0), (7, 0, 0)]
    assert [shape for name, shape in [asked for asked in sam.asked if len(asked) == 2]] == [(6, 8, 3)]
    others = [asked for asked in sam.asked if len(asked) == 3]
    assert [points[-1] for points, *_ in others if points] == [(2, 2, 1)] * 7 + [(6, 5, 1)] * 7
    of_box, of_rough_box = (1, 1, 4, 4), (6, 5, 8, 6)
    assert [box for _, box, _ in others if box] == [of_box, of_box, of_rough_box, of_rough_box]
    assert [np.count_nonzero(mask) for points, box, mask in others if not points and not box] == [9, 2]


def test_figures_are_the_same_every_time_and_the_extremes_are_shown_what_was_scored(sam, image):
    labels = np.zeros(image.shape[:2], np.uint8)
    labels[10:30, 20:50], labels[35:45, 5:25] = 1, 2
    extremes = Extremes()
    scores, again = (list(measure(sam, [Example("a", image, labels)], extremes=extremes)) for _ in range(2))
    assert scores == again
    assert all(0 <= value <= 1 for score in scores for value in list(asdict(score).values())[2:])
    assert extremes.scores == sorted(2 * [score.one_click for score in scores])
    # The same by hand, for one click.
    mask = sam.image(image).predict([(29, 19)])
    assert scores[0].one_click == region_j(mask.masks[0], labels == 1)


def test_a_rough_mask_consists_of_blocks_and_is_close_to_the_mask():
    y, x = np.mgrid[:100, :120]
    disc = (x - 50) ** 2 + (y - 45) ** 2 <= 30**2
    rough = roughen(disc)
    assert 0.8 < region_j(rough, disc) < 0.97
    assert np.array_equal(rough[:96, :120], rough[:96:6, :120:6].repeat(6, 0).repeat(6, 1))


def test_an_object_too_thin_for_the_brush_is_unchanged():
    line = np.zeros((50, 50), bool)
    line[20, 5:45] = True
    assert np.array_equal(roughen(line), line)


def test_means_are_over_objects():
    one, other = (0.5, 0.6, 1.0, 0.9, 0.8, 0.7, 0.1, 0.2, 0.3), (0.7, 0.8, 0.0, 0.9, 0.8, 0.7, 0.3, 0.2, 0.1)
    means = summarise([ObjectScore("a", 1, *one), ObjectScore("a", 2, *other)])
    assert means.pop("objects") == 2
    assert list(means.values()) == pytest.approx([0.6, 0.7, 0.5, 0.9, 0.8, 0.7, 0.2, 0.2, 0.2])
    assert list(means)[:5] == ["one_click", "three_clicks", "five_clicks", "seven_clicks", "oracle_click"]
    assert list(means)[5:] == ["box", "rough", "rough_box", "rough_mask"]
    with pytest.raises(ValueError, match="there are no objects"):
        summarise([])
