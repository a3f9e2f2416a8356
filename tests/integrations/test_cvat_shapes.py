import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra.numpy import arrays
from hypothesis.strategies import booleans, integers

from masklet.errors import PromptError
from masklet.integrations.cvat.shapes import mask_shape, mask_shapes, shape_prompt

sizes = integers(1, 12)


@given(sizes.flatmap(lambda height: sizes.flatmap(lambda width: arrays(bool, (height, width), elements=booleans()))))
def test_masks_agree_with_cvats_own_coder(mask):
    masks = pytest.importorskip("cvat_sdk.masks", reason="compares with CVAT's own coder: pip install cvat-sdk")
    encoded = mask_shape(mask, "mask")
    if not mask.any():
        assert encoded is None
        return
    assert encoded == masks.encode_mask(mask)
    np.testing.assert_array_equal(shape_prompt("mask", masks.encode_mask(mask), mask.shape)["mask"], mask)


def test_a_mask_of_two_parts_is_two_polygons_or_the_larger_one():
    mask = np.zeros((20, 30), bool)
    mask[1:3, 1:3] = mask[5:15, 10:25] = True
    assert len(mask_shapes(mask, "polygon")) == 2
    corners = np.reshape(mask_shape(mask, "polygon"), (-1, 2))
    assert [*corners.min(0), *corners.max(0)] == [10, 5, 25, 15]
    assert mask_shape(mask, "rectangle") == [1, 1, 25, 15]


def test_a_polygon_fills_its_inside():
    mask = shape_prompt("polygon", [2, 3, 8, 3, 8, 7, 2, 7], (10, 12))["mask"]
    expected = np.zeros((10, 12), bool)
    expected[3:7, 2:8] = True
    np.testing.assert_array_equal(mask, expected)


@pytest.mark.parametrize(
    ("kind", "points", "message"),
    [
        ("ellipse", [1, 2, 3, 4], "shape 'ellipse': expected one of mask, polygon, rectangle"),
        ("rectangle", [1, 2, 3], "rectangle of 3 numbers"),
        ("polygon", [1, 2, 3, 4], "polygon of 4 numbers"),
        ("polygon", [50, 50, 60, 50, 60, 60], "covers no pixel of the 12×10 image"),
        ("mask", [0, 4, 0, 0, 20, 20], "expected a box inside the 12×10 image"),
        ("mask", [0, 3, 0, 0, 1, 1], "runs of 3 pixels in a box of 2×2"),
        ("mask", [0.5, 3.5, 0, 0, 1, 1], "expected whole run lengths"),
        ("mask", [0, 2**62, 2**62, 2**62, 2**62, 0, 0, 1, 1], "expected coordinates in pixels"),
        ("rectangle", [1, 2, 3, float("nan")], "not a flat list of finite numbers"),
        ("rectangle", ["a", 2, 3, 4], "something else than numbers"),
    ],
)
def test_a_shape_that_is_none_is_refused(kind, points, message):
    with pytest.raises(PromptError, match=message):
        shape_prompt(kind, points, (10, 12))
