import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from masklet.errors import PromptError
from masklet.mask_prompts import MASK_PROMPT_LOGIT, check_masks, mask_logits
from masklet.numbers import MAX_COORDINATE
from masklet.prompts import (
    from_model_pixels,
    one_box,
    read_prompts,
    to_model_pixels,
)

SIZE_HW = (48, 80)
INPUT_HW = (64, 96)


def read_masks(mask, *, size_hw, input_hw):
    """The logits of mask prompts, and their boxes."""
    checked = check_masks(mask, size_hw=size_hw, input_hw=input_hw)
    return mask_logits(checked, input_hw), checked.boxes


def read(points=None, labels=None, boxes=None, mask=None):
    return read_prompts(points, labels, boxes, mask, size_hw=SIZE_HW, input_hw=INPUT_HW)


NO_POINTS = (
    "points are empty: expected at least one (x, y) on the object. If there are no objects, give boxes of shape (0, "
    "4) or points of shape (0, points, 2)"
)


def refusal_of(*args, **kwargs):
    with pytest.raises(PromptError) as caught:
        read(*args, **kwargs)
    return str(caught.value)


# Coordinates


@given(
    height=st.integers(1, 4000),
    width=st.integers(1, 4000),
    input_hw=st.tuples(st.integers(1, 64), st.integers(1, 64)).map(lambda hw: (32 * hw[0], 32 * hw[1])),
    u=st.floats(0, 1),
    v=st.floats(0, 1),
)
def test_a_point_returns_from_model_pixels(height, width, input_hw, u, v):
    point_xy = torch.tensor([u * width, v * height])
    model_xy = to_model_pixels(point_xy, size_hw=(height, width), input_hw=input_hw)
    assert (model_xy <= 1.00001 * torch.tensor([input_hw[1], input_hw[0]])).all()
    back_xy = from_model_pixels(model_xy, size_hw=(height, width), input_hw=input_hw)
    torch.testing.assert_close(back_xy, point_xy)


def test_each_axis_has_its_own_scale():
    corners = torch.tensor([[0.0, 0.0], [80.0, 0.0], [0.0, 48.0], [40.0, 24.0]])
    moved = to_model_pixels(corners, size_hw=SIZE_HW, input_hw=INPUT_HW)
    assert moved.tolist() == [[0, 0], [96, 0], [0, 64], [48, 32]]


# Prompts of one image


@pytest.mark.parametrize(
    "points",
    [
        [(40, 24), (0, 48)],
        ((40, 24), (0, 48)),
        [[(40, 24), (0, 48)]],
        np.array([[40, 24], [0, 48]]),
        np.array([[[40.0, 24.0], [0.0, 48.0]]], dtype=np.float16),
        torch.tensor([[40, 24], [0, 48]]),
        [torch.tensor([40, 24]), np.array([0, 48])],
        [(40, 24, 1), (0, 48, 1)],
    ],
    ids=["lists", "tuples", "one object", "integers", "float16", "tensor", "mixed", "with labels"],
)
def test_points_of_one_object_come_in_many_ways(points):
    prompts = read(points)
    assert prompts.points.tolist() == [[[[48, 32], [0, 64]]]]
    assert prompts.labels.tolist() == [[[1, 1]]]
    assert prompts.labels.dtype == torch.int64
    assert prompts.masks is None


@pytest.mark.parametrize("labels", [[1, 0], (1, 0), np.array([1, 0]), torch.tensor([1.0, 0.0]), [True, False]])
def test_labels_come_in_many_ways(labels):
    assert read([(1, 2), (3, 4)], labels).labels.tolist() == [[[1, 0]]]


def test_ragged_objects_are_filled_up():
    prompts = read([[(0, 0)], [(80, 48), (40, 24, 0)]])
    assert prompts.points.shape == (1, 2, 2, 2)
    assert prompts.labels.tolist() == [[[1, -10], [1, 0]]]
    assert len(prompts) == 2
    assert prompts[1:].labels.tolist() == [[[1, 0]]]


def test_a_box_travels_as_two_corners_before_the_clicks():
    prompts = read([[(40, 24)], [(0, 0)]], boxes=[(0, 0, 80, 48), (-5, 10, 40, 100)])
    assert prompts.labels.tolist() == [[[2, 3, 1], [2, 3, 1]]]
    torch.testing.assert_close(prompts.points[0, 0], torch.tensor([[0.0, 0.0], [96.0, 64.0], [48.0, 32.0]]))
    assert not prompts.is_single_click


@pytest.mark.parametrize(
    ("prompt", "is_single_click"),
    [
        ({"points": [(1, 2)]}, True),
        ({"points": [[(1, 2)], [(3, 4)]]}, True),
        ({"points": [(1, 2), (3, 4)]}, False),
        ({"points": [[(1, 2)], [(1, 2), (3, 4)]]}, False),
        ({"boxes": [(1, 2, 3, 4)]}, False),
        ({"points": [(1, 2)], "boxes": [(1, 2, 3, 4)]}, False),
        ({"points": [(1, 2)], "mask": np.zeros((16, 24))}, False),
        ({"mask": np.zeros((16, 24))}, False),
    ],
)
def test_only_single_clicks_alone_are_ambiguous(prompt, is_single_click):
    assert read(**prompt).is_single_click == is_single_click


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ({}, "nothing to segment: expected points, a box or a mask"),
        ({"labels": [1]}, "labels came without points: expected one label for each point"),
        ({"labels": [1], "boxes": [(1, 2, 3, 4)]}, "labels came without points: expected one label for each point"),
        (
            {"points": [(100, 10)]},
            "point (100, 10) is outside the image: x runs from 0 to 80, y from 0 to 48. Points are (x, y) in pixels "
            "of the original image, not (row, column) and not 0 to 1",
        ),
        (
            {"points": [(-0.5, 10)]},
            "point (-0.5, 10) is outside the image: x runs from 0 to 80, y from 0 to 48. Points are (x, y) in pixels "
            "of the original image, not (row, column) and not 0 to 1",
        ),
        (
            {"points": [(math.nan, 10)]},
            "point (nan, 10) is not a position: expected two finite numbers, x and y in pixels",
        ),
        (
            {"points": [(1, math.inf)]},
            "point (1, inf) is not a position: expected two finite numbers, x and y in pixels",
        ),
        ({"points": []}, NO_POINTS),
        ({"points": np.zeros((0, 2))}, NO_POINTS),
        ({"points": [], "labels": []}, NO_POINTS),
        (
            {"points": np.zeros((0, 1, 2)), "labels": [[1]]},
            "labels for 1 objects were given with points for no objects",
        ),
        (
            {"points": [[(1, 2)]], "boxes": []},
            "prompts are for different numbers of objects: points for 1, boxes for 0. Expected the same number in each",
        ),
        ({"points": [[]]}, "points hold an empty list: expected at least one value in every list"),
        ({"points": [[(1, 2)], []]}, "points hold an empty list: expected at least one value in every list"),
        (
            {"points": (40, 24)},
            "points are nested 1 deep: expected [(x, y), …] for one object, or one such list for each object",
        ),
        (
            {"points": [[[(40, 24)]]]},
            "points are nested 4 deep: expected [(x, y), …] for one object, or one such list for each object",
        ),
        ({"points": [(1, 2), [(3, 4)]]}, "points are nested 2 deep in one place and 3 in another"),
        ({"points": [(1, 2), 3]}, "points are nested 1 deep in one place and 2 in another"),
        ({"points": [(1, 2), (3,)]}, "point (3,) has 1 numbers: expected (x, y), or (x, y, label)"),
        ({"points": [(1, 2, 1, 0)]}, "point (1, 2, 1, 0) has 4 numbers: expected (x, y), or (x, y, label)"),
        ({"points": "40,24"}, "points hold '40,24': expected numbers in nested lists"),
        ({"points": [("40", "24")]}, "points hold '40': expected numbers in nested lists"),
        ({"points": [(None, 24)]}, "points hold None: expected numbers in nested lists"),
        ({"points": {"x": 1}}, "points hold {'x': 1}: expected numbers in nested lists"),
        ({"points": [(1, 2, 7)]}, "label 7: expected 1 (on the object) or 0 (not on it)"),
        ({"points": [(1, 2)], "labels": [2]}, "label 2: expected 1 (on the object) or 0 (not on it)"),
        ({"points": [(1, 2)], "labels": [-1]}, "label -1: expected 1 (on the object) or 0 (not on it)"),
        ({"points": [(1, 2)], "labels": [0.5]}, "label 0.5: expected 1 (on the object) or 0 (not on it)"),
        ({"points": [(1, 2)], "labels": [math.nan]}, "label nan: expected 1 (on the object) or 0 (not on it)"),
        ({"points": [(1, 2)], "labels": ["1"]}, "label '1': expected 1 (on the object) or 0 (not on it)"),
        (
            {"points": [(1, 2, 0)], "labels": [1]},
            "point (1, 2, 0) has 3 numbers: expected (x, y), or (x, y, label)",
        ),
        (
            {"boxes": [(30, 5, 10, 20)]},
            "box 0 is (30, 5, 10, 20): expected x0 < x1 and y0 < y1 (pixels of the 80×48 image; corners, not a width "
            "and a height)",
        ),
        (
            {"boxes": [(1, 2, 3, 4), (5, 6, 9, 6)]},
            "box 1 is (5, 6, 9, 6): expected x0 < x1 and y0 < y1 (pixels of the 80×48 image; corners, not a width and "
            "a height)",
        ),
        (
            {"boxes": [(1, 2, math.nan, 4)]},
            "box 0 is (1, 2, nan, 4): expected four finite numbers, x0 y0 x1 y1 in pixels",
        ),
        (
            {"boxes": [(80, 0, 90, 10)]},
            "box 0 is (80, 0, 90, 10): it lies outside the image, which is 80 pixels wide and 48 high",
        ),
        (
            {"boxes": (1, 2, 3, 4)},
            "boxes are (1, 2, 3, 4): expected a list of (x0, y0, x1, y1), or box= for a single one",
        ),
        (
            {"boxes": [(1, 2, 3)]},
            "boxes are [(1, 2, 3)]: expected a list of (x0, y0, x1, y1), or box= for a single one",
        ),
        ({"boxes": [[]]}, "boxes hold an empty list: expected at least one value in every list"),
        ({"boxes": np.zeros((0, 5))}, "boxes hold an empty list: expected at least one value in every list"),
        ({"boxes": "box"}, "boxes hold 'box': expected numbers in nested lists"),
        (
            {"points": [(1, 2)], "boxes": [(1, 2, 3, 4), (5, 6, 7, 8)]},
            "prompts are for different numbers of objects: points for 1, boxes for 2. Expected the same number in each",
        ),
        (
            {"points": [(1, 2)], "mask": np.zeros((3, 16, 24))},
            "prompts are for different numbers of objects: points for 1, mask for 3. Expected the same number in each",
        ),
    ],
)
def test_prompts_that_make_no_sense_are_refused(prompt, message):
    assert refusal_of(**prompt) == message


@pytest.mark.parametrize(
    ("points", "labels", "counts"),
    [
        ([(1, 2), (3, 4)], [1], "[1] labels and [2] points"),
        ([(1, 2)], [], "[0] labels and [1] points"),
        ([(1, 2)], 1, "[0] labels and [1] points"),
        ([[(1, 2)], [(3, 4)]], [1, 1], "[0, 0] labels and [1, 1] points"),
        ([[(1, 2)], [(3, 4)]], [[1]], "[1] labels and [1, 1] points"),
        ([[(1, 2)]], 1, "[] labels and [1] points"),
    ],
)
def test_labels_that_do_not_match_the_points_are_refused(points, labels, counts):
    assert refusal_of(points, labels) == (
        f"labels do not match the points: {counts} for each object. Expected one label (1 foreground, 0 background) "
        "for each point, nested as the points are"
    )


@pytest.mark.parametrize("point", [(0, 0), (80, 48), (79.999, 0.001)])
def test_the_edges_belong_to_the_image(point):
    read([point])


def test_a_box_may_reach_over_the_edge():
    read(boxes=[(-100, -100, 1000, 1000)])


# Masks as prompts


def read_mask(mask, size_hw=SIZE_HW):
    return read_masks(mask, size_hw=size_hw, input_hw=INPUT_HW)


@pytest.fixture
def block():
    """A plain mask of the image's size."""
    mask = np.zeros(SIZE_HW, bool)
    mask[12:36, 20:60] = True
    return mask


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", torch.bfloat16])
def test_logits_pass_as_they_are(dtype):
    given = np.random.default_rng(0).integers(-30, 30, (2, 16, 24))
    given = torch.tensor(given, dtype=dtype) if isinstance(dtype, torch.dtype) else given.astype(dtype)
    logits, boxes = read_mask(given)
    assert boxes is None
    assert logits.dtype == torch.float32
    np.testing.assert_array_equal(logits, torch.as_tensor(given).float())


def test_read_only_logits_are_taken_too_and_stay_as_they_are():
    given = np.full((16, 24), 5, np.float32)
    given.flags.writeable = False
    logits, _ = read_mask(given)
    logits += 1
    assert (given == 5).all()


@pytest.mark.parametrize(
    "dtype", ["bool", "uint8", "int8", "uint16", "int32", "uint32", "int64", "uint64", "float16", "float32", "float64"]
)
def test_a_plain_mask_may_have_any_type(block, dtype):
    logits, boxes = read_mask(block)
    for value in (1, 100):
        same_logits, same_boxes = read_mask(block.astype(dtype) * np.array(value, dtype))
        torch.testing.assert_close(same_logits, logits)
        assert same_boxes == boxes


@pytest.mark.parametrize(
    "given",
    [
        lambda block: block.tolist(),
        lambda block: torch.from_numpy(block),
        lambda block: block[::-1][::-1],
        lambda block: np.asfortranarray(block),
        lambda block: block[None],
        lambda block: [block],
    ],
    ids=["lists", "tensor", "views", "column-major", "one of several", "list of one"],
)
def test_a_plain_mask_comes_in_many_ways(block, given):
    logits, boxes = read_mask(given(block))
    torch.testing.assert_close(logits, read_mask(block)[0])
    assert boxes == [[20, 12, 60, 36]]


def test_a_mirrored_mask_is_read_mirrored(block):
    block[:20] = False
    logits, boxes = read_mask(block[::-1, ::-1])
    torch.testing.assert_close(logits, read_mask(block)[0].flip(-1, -2))
    assert boxes == [[20, 12, 60, 28]]


def test_a_plain_mask_becomes_logits_and_its_box(block):
    logits, boxes = read_mask(block)
    assert logits.shape == (1, 16, 24)
    assert boxes == [[20, 12, 60, 36]]
    assert logits[0, 8, 12].item() == pytest.approx(MASK_PROMPT_LOGIT)
    assert logits[0, 0, 0].item() == pytest.approx(-MASK_PROMPT_LOGIT)
    assert logits.abs().max() <= 1.0001 * MASK_PROMPT_LOGIT


def test_a_plain_mask_brings_its_box_unless_one_is_given(block):
    assert read(mask=block).labels.tolist() == [[[2, 3]]]
    prompts = read(boxes=[(0, 0, 80, 48)], mask=block)
    torch.testing.assert_close(prompts.points[0, 0], torch.tensor([[0.0, 0.0], [96.0, 64.0]]))


def test_a_mask_that_fills_the_image_is_a_mask():
    logits, boxes = read_mask(np.ones(SIZE_HW, np.uint8) * 255)
    assert boxes == [[0, 0, 80, 48]]
    torch.testing.assert_close(logits, torch.full((1, 16, 24), MASK_PROMPT_LOGIT))


def test_where_both_sizes_agree_floats_beyond_0_to_1_are_logits_and_the_rest_is_a_mask():
    values = np.zeros((16, 24))
    values[4:8, 4:8] = 1
    assert read_mask(2 * values - 1, size_hw=(16, 24))[1] is None
    assert read_mask(values, size_hw=(16, 24))[1] == [[4, 4, 8, 8]]
    assert read_mask(values > 0, size_hw=(16, 24))[1] == [[4, 4, 8, 8]]
    assert read_mask(values.astype(int), size_hw=(16, 24))[1] == [[4, 4, 8, 8]]


KINDS = (
    "expected a binary mask of 0 and 1 (or 255), a soft mask (floats from 0 to 1, or grey values in uint8), or logits "
    "of size (16, 24). If the values are numbers of masks, select one: mask == 1"
)
SIZES = (
    "expected the image's size (48, 80) (rows, columns) for a binary or soft mask, or (16, 24) of floats for logits "
    "of an earlier prediction, with one more axis in front for several objects"
)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.zeros((80, 48), bool), f"mask has shape (1, 80, 48) of bool: {SIZES}"),
        (np.zeros((24, 16), "f4"), f"mask has shape (1, 24, 16) of float32: {SIZES}"),
        (np.ones((16, 24), bool), f"mask has shape (1, 16, 24) of bool: {SIZES}"),
        (np.zeros((1, 1, 16, 24), "f4"), f"mask has shape (1, 1, 16, 24) of float32: {SIZES}"),
        (np.zeros((0, 16, 25), "f4"), f"mask has shape (0, 16, 25) of float32: {SIZES}"),
        (np.zeros((48, 80, 3), "u1"), f"mask has shape (48, 80, 3) of uint8: {SIZES}"),
        (np.zeros(5, "u1"), f"mask has shape (5,) of uint8: {SIZES}"),
        (1, f"mask has shape () of int64: {SIZES}"),
        (
            np.full((16, 24), np.nan),
            "mask holds NaN or infinite values: expected finite logits, or a mask",
        ),
        (
            np.full((48, 80), np.inf),
            "mask holds NaN or infinite values: expected finite logits, or a mask",
        ),
        (
            np.arange(48 * 80).reshape(48, 80),
            f"mask of the image's size holds values from 0 to 3839: {KINDS}",
        ),
        (
            -np.eye(48, 80),
            f"mask of the image's size holds values from -1 to -0: {KINDS}",
        ),
        (
            np.zeros((48, 80), bool),
            "mask 0 is empty: expected at least one pixel of the object (one half or more in a soft mask)",
        ),
        (
            np.stack([np.ones((48, 80), bool), np.zeros((48, 80), bool)]),
            "mask 1 is empty: expected at least one pixel of the object (one half or more in a soft mask)",
        ),
        (
            [[1, 2], [1]],
            "mask is a list and holds no plain numbers: expected an array (height, width), or the logits of an earlier "
            "result, mask=result.logits",
        ),
        (
            "mask.png",
            "mask is a str and holds no plain numbers: expected an array (height, width), or the logits of an earlier "
            "result, mask=result.logits",
        ),
    ],
)
def test_masks_that_fit_nothing_are_refused(mask, message):
    assert refusal_of(mask=mask) == message


@pytest.mark.parametrize(
    ("share", "logit"), [(0.75, 5.0), (0.5, 0.0), (1.0, 10.0), (np.float16(0.75), 5.0), (np.uint8(204), 6.0)]
)
def test_a_soft_mask_becomes_logits_in_proportion(share, logit):
    """0 is -10 and 1, or 255 in uint8, is 10, as in a binary mask."""
    mask = np.full(SIZE_HW, share)
    mask[:12] = share / 4  # a second value, or the mask would be binary
    logits, boxes = read_mask(mask.astype(np.asarray(share).dtype))
    assert boxes == [[0, 12, 80, 48]]
    assert logits[0, 8:].flatten().tolist() == pytest.approx([logit] * 8 * 24, abs=0.01)
    assert logits[0, :3].flatten().tolist() == pytest.approx([(logit + 10) / 4 - 10] * 3 * 24, abs=0.01)


def test_a_binary_mask_is_the_same_beside_a_soft_one(block):
    soft = np.where(block, 0.75, 0.25)
    both, boxes = read_mask([block.astype(float), soft])
    alone, box = read_mask(block)
    assert both[0].equal(alone[0])
    assert boxes == box * 2


def test_a_soft_edge_is_read_as_the_edge_that_it_is():
    """A binary mask of twice the size, halved, is a soft mask: both become the same logits."""
    fine = np.zeros((96, 160), bool)
    fine[21:63, 33:121] = True
    soft = fine.reshape(48, 2, 80, 2).mean((1, 3))
    assert 0 < (soft % 1 > 0).sum() < 500
    torch.testing.assert_close(read_mask(soft)[0], read_mask(fine, size_hw=(96, 160))[0], atol=0.6, rtol=0)


def test_a_grey_mask_may_hold_every_value():
    mask = np.tile(np.linspace(0, 255, 80).round().astype(np.uint8), (48, 1))
    logits, boxes = read_mask(mask)
    assert boxes == [[40, 0, 80, 48]]  # from 128 on
    assert (logits.diff(dim=2) > 0).all()


@pytest.mark.parametrize("values", [(0, 1, 2), (0, 1, 255), (0, 1, 2, 3, 255), (1, 2)])
def test_grey_values_that_number_masks_are_no_soft_mask(values):
    mask = np.resize(np.array(values, np.uint8), SIZE_HW)
    assert "If the values are numbers of masks, select one: mask == 1" in refusal_of(mask=mask)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.linspace(0, 0.49, 48 * 80).reshape(48, 80), "mask 0 is empty: expected at least one pixel of the object"),
        (np.linspace(0, 1.01, 48 * 80).reshape(48, 80), "mask of the image's size holds values from 0 to 1.01: exp"),
        (np.linspace(-0.1, 1, 48 * 80).reshape(48, 80), "mask of the image's size holds values from -0.1 to 1: expe"),
        (np.arange(48 * 80, dtype="u2").reshape(48, 80), "mask of the image's size holds values from 0 to 3839"),
        (np.full((16, 24), 1e300), "mask holds NaN or infinite values: expected finite logits"),
        (np.full((48, 80), 1e300), "mask holds NaN or infinite values: expected finite logits"),
    ],
)
def test_masks_that_are_neither_soft_nor_binary_nor_logits_are_refused(mask, message):
    assert refusal_of(mask=mask).startswith(message)


# Numbers that float32 does not hold

HUGE = 10**400


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ({"points": [(1e300, 10)]}, "point (1e+300, 10) is outside the image"),
        ({"points": [(HUGE, 10)]}, "point (inf, 10) is not a position"),
        ({"points": [(10, -HUGE)]}, "point (10, -inf) is not a position"),
        ({"points": [(1, 2, HUGE)]}, "label 1000"),
        ({"points": [(1, 2)], "labels": [HUGE]}, "label 1000"),
        ({"boxes": [(0, 0, 1e300, 10)]}, "box 0 is (0, 0, 1e+300, 10): expected x0 y0 x1 y1 in pixels of the 80×48"),
        ({"boxes": [(-1e38, 0, 5, 10)]}, "box 0 is (-1e+38, 0, 5, 10): expected x0 y0 x1 y1 in pixels of the 80×48"),
        ({"boxes": [(0, 0, HUGE, 10)]}, "box 0 is (0, 0, inf, 10): expected four finite numbers"),
        ({"boxes": [(10, 5, 10 + 1e-9, 20)]}, "box 0 is (10, 5, 10, 20): expected x0 < x1 and y0 < y1"),
        ({"boxes": [(80 - 1e-9, 0, 90, 10)]}, "box 0 is (80, 0, 90, 10): it lies outside the image"),
        ({"boxes": [(-10, 0, 1e-60, 10)]}, "box 0 is (-10, 0, 1e-60, 10): it lies outside the image"),
    ],
)
def test_coordinates_that_float32_does_not_hold_are_refused(prompt, message):
    assert refusal_of(**prompt).startswith(message)


finite_xy = st.floats(-(2.0**25), 2.0**25) | st.floats(allow_nan=True) | st.sampled_from([80 - 1e-9, 48 - 1e-12, -0.0])


@given(points=st.lists(st.tuples(finite_xy, finite_xy), max_size=3), box=st.tuples(*[finite_xy] * 4) | st.none())
def test_any_coordinates_are_refused_or_finite_in_float32(points, box):
    try:
        prompts = read(points or None, boxes=None if box is None else [box])
    except PromptError:
        return
    assert prompts.points.isfinite().all()
    if box is not None:
        assert (prompts.points[0, 0, 1] >= prompts.points[0, 0, 0]).all()


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_a_mask_in_place_of_logits_is_noticed(scale):
    """Values from 0 to 1 are a mask; logits are negative outside of the object."""
    mask = np.zeros((16, 24), np.float32)
    mask[4:9, 5:20] = scale
    message = rf"mask of \(16, 24\) holds values from 0 to {scale:g}: expected logits of an earlier prediction"
    with pytest.raises(PromptError, match=message):
        check_masks(mask, size_hw=SIZE_HW, input_hw=INPUT_HW)
    logits, boxes = read_masks(mask, size_hw=(16, 24), input_hw=INPUT_HW)  # the image has the same size
    assert boxes == [[5, 4, 20, 9]]
    np.testing.assert_allclose(logits[0], np.where(mask, 10, -10), atol=1e-5)
    for values in (np.zeros((16, 24), np.float32), mask - 0.1, 2 * mask + 0.5):
        np.testing.assert_array_equal(read_masks(values, size_hw=SIZE_HW, input_hw=INPUT_HW)[0], values[None])


def test_boxes_may_reach_just_into_the_image_and_as_far_as_coordinates_go():
    boxes = [(-10, -10, 0.5, 0.5), (0, 0, MAX_COORDINATE, 10), (79.5, 47.5, 90, 90)]
    assert len(read(boxes=boxes)) == 3
    with pytest.raises(PromptError, match="expected x0 y0 x1 y1 in pixels of the 80×48 image"):
        read(boxes=[(0, 0, MAX_COORDINATE + 2, 10)])


def test_no_boxes_are_prompts_of_no_objects():
    prompts = read(boxes=np.zeros((0, 4)))
    assert len(prompts) == 0
    assert prompts.boxes.shape == (1, 0, 4)


def test_a_single_box_may_be_nested_once_but_is_one():
    assert one_box((1, 2, 3, 4)) == one_box([[1, 2, 3, 4]]) == [[1, 2, 3, 4]]
    for several in ([], [[1, 2, 3, 4]] * 2):
        with pytest.raises(PromptError, match=f"box holds {len(several)} boxes"):
            one_box(several)


def test_masks_of_no_objects_have_no_logits():
    prompts = read(boxes=np.zeros((0, 4)), mask=np.zeros((0, *SIZE_HW), bool))
    assert len(prompts) == 0
    assert read_masks(np.zeros((0, *SIZE_HW), bool), size_hw=SIZE_HW, input_hw=INPUT_HW)[0].shape == (0, 16, 24)
