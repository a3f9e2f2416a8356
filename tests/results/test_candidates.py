import re
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
from mask_results import assert_fields_equal

from masklet.results import CandidateMasks, Masks

FIELDS = ("masks", "logits", "iou_scores", "object_ids")


@pytest.fixture
def candidates():
    """Three candidates for each of two objects."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2, 3, 4, 5)).astype(np.float32)
    scores = np.array([[0.5, 0.9, 0.1], [0.7, 0.2, 0.7]], np.float32)
    return CandidateMasks(rng.random((2, 3, 8, 10)) > 0.5, logits, scores, np.zeros((8, 10, 3), np.uint8))


def test_an_object_gives_its_candidates(candidates):
    for number in (0, 1, np.int64(1), -1):
        masks = candidates[number]
        assert isinstance(masks, Masks)
        for name in FIELDS[:3]:
            np.testing.assert_array_equal(getattr(masks, name), getattr(candidates, name)[number])
        assert masks.object_ids.tolist() == [number % 2] * 3
        assert masks.image.base is candidates.image.base


def test_an_object_and_a_candidate_give_one_mask(candidates):
    assert_fields_equal(candidates[1, 2], candidates[1][2], *FIELDS)
    assert_fields_equal(candidates[-1, -1], candidates[1][2], *FIELDS)
    assert len(candidates[1, 2]) == 1


def test_length_and_iteration_are_by_object(candidates):
    assert len(candidates) == len(list(candidates)) == 2
    for number, masks in enumerate(candidates):
        assert_fields_equal(masks, candidates[number], *FIELDS)


def test_best_is_the_first_candidate_of_the_highest_score_of_each_object(candidates):
    assert candidates.best.object_ids.tolist() == [0, 1]
    for number, k in enumerate((1, 0)):
        assert_fields_equal(candidates.best[number], candidates[number, k], *FIELDS)


def test_flatten_lists_all_candidates_by_object(candidates):
    flat = candidates.flatten()
    assert flat.object_ids.tolist() == [0, 0, 0, 1, 1, 1]
    assert_fields_equal(flat[4], candidates[1, 1], *FIELDS)
    assert flat.overlay().size == (10, 8)


def test_repr_is_one_readable_line(candidates):
    assert repr(candidates) == "CandidateMasks(2 objects, 3 candidates each, 10×8)"


def test_there_may_be_no_objects():
    nothing = CandidateMasks(np.zeros((0, 3, 8, 10), bool), np.zeros((0, 3, 4, 5), "f4"), np.zeros((0, 3), "f4"))
    assert len(nothing) == len(list(nothing)) == len(nothing.best) == len(nothing.flatten()) == 0
    assert nothing.best.size_hw == (8, 10)
    assert repr(nothing) == "CandidateMasks(0 objects, 3 candidates each, 10×8)"


@pytest.mark.parametrize("index", [2, -3, (0, 3), (2, 0)])
def test_an_index_out_of_range_is_refused(candidates, index):
    with pytest.raises(IndexError):
        candidates[index]


@pytest.mark.parametrize("index", [slice(1), [0, 1], (0, slice(1)), (0, 1, 2), "0", 1.0])
def test_an_index_of_another_kind_is_refused(candidates, index):
    with pytest.raises(TypeError):
        candidates[index]


def test_candidates_are_immutable(candidates):
    with pytest.raises(FrozenInstanceError):
        candidates.iou_scores = np.zeros((2, 3), np.float32)
    with pytest.raises(ValueError, match="read-only"):
        candidates.masks[0] = True


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"masks": np.zeros((2, 3, 8, 10))}, "masks of shape (2, 3, 8, 10), float64"),
        ({"masks": np.zeros((6, 8, 10), bool)}, "masks of shape (6, 8, 10), bool"),
        ({"logits": np.zeros((3, 2, 4, 5), "f4")}, "logits of shape (3, 2, 4, 5), float32, do not fit"),
        ({"iou_scores": np.zeros(6, "f4")}, "iou_scores of shape (6,), float32, do not fit masks of shape (2, 3, 8"),
        ({"image": np.zeros((10, 8, 3), "u1")}, "an image of shape (10, 8, 3) does not fit masks of 10×8 pixels"),
    ],
)
def test_arrays_that_do_not_fit_each_other_are_refused(candidates, changed, message):
    arrays = {name: getattr(candidates, name) for name in ("masks", "logits", "iou_scores", "image")}
    with pytest.raises(ValueError, match=re.escape(message)):
        CandidateMasks(**(arrays | changed))
