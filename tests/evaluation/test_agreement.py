"""J and F, against independent implementations."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra.numpy import arrays
from hypothesis.strategies import integers

from masklet.evaluation.agreement import boundary, boundary_f, region_j, within

NOTHING = np.zeros((8, 8), bool)
EVERYTHING = ~NOTHING


def square(y0, y1, x0, x1, size_hw=(8, 8)):
    mask = np.zeros(size_hw, bool)
    mask[y0:y1, x0:x1] = True
    return mask


def test_j_by_hand():
    left, right = square(0, 2, 0, 4), square(0, 2, 2, 6)
    assert region_j(left, right) == pytest.approx(4 / 12)
    assert region_j(left, left) == region_j(NOTHING, NOTHING) == 1
    assert region_j(left, NOTHING) == region_j(NOTHING, left) == 0


@given(arrays(bool, (5, 7)), arrays(bool, (5, 7)))
def test_j_agrees_with_sets_of_pixels(mask, truth):
    drawn, real = (set(map(tuple, np.argwhere(m).tolist())) for m in (mask, truth))
    assert region_j(mask, truth) == pytest.approx(len(drawn & real) / len(drawn | real) if drawn | real else 1)


def test_a_boundary_lies_above_and_left_of_an_edge():
    """The boundary of a 2×2 square includes the row above it and the column to its left."""
    expected = np.zeros((8, 8), bool)
    for y, x in [(1, 1), (1, 2), (1, 3), (2, 1), (2, 3), (3, 1), (3, 2), (3, 3)]:
        expected[y, x] = True
    np.testing.assert_array_equal(boundary(square(2, 4, 2, 4)), expected)


def test_the_border_of_the_image_is_no_boundary():
    assert not boundary(EVERYTHING).any()
    assert not boundary(NOTHING).any()
    np.testing.assert_array_equal(np.argwhere(boundary(square(0, 8, 3, 8))), [(y, 2) for y in range(8)])
    assert np.argwhere(boundary(square(7, 8, 7, 8))).tolist() == [[6, 6], [6, 7], [7, 6]]


def boundary_pixel_by_pixel(mask):
    """The same, pixel by pixel in plain Python."""
    height, width = mask.shape
    found = np.zeros_like(mask)
    for y, x in itertools.product(range(height), range(width)):
        others = [(y, x + 1), (y + 1, x), (y + 1, x + 1)]
        found[y, x] = any(mask[y, x] != mask[v, u] for v, u in others if v < height and u < width)
    return found


def f_by_distances(mask, truth, tolerance_px):
    """The same, from all distances between the two boundaries instead of dilated masks."""
    drawn, real = (np.argwhere(boundary_pixel_by_pixel(m)) for m in (mask, truth))
    if not len(drawn) or not len(real):
        return float(len(drawn) == len(real))
    near = ((drawn[:, None] - real) ** 2).sum(-1) <= tolerance_px**2
    precision, recall = near.any(1).mean(), near.any(0).mean()
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


@given(arrays(bool, (9, 12)))
def test_boundaries_agree_with_a_search_pixel_by_pixel(mask):
    np.testing.assert_array_equal(boundary(mask), boundary_pixel_by_pixel(mask))


@given(arrays(bool, (7, 11)), integers(0, 14))
def test_dilation_agrees_with_a_search_of_all_distances(mask, radius):
    places = np.argwhere(np.ones_like(mask))
    squared = ((places[:, None] - np.argwhere(mask)) ** 2).sum(-1)
    np.testing.assert_array_equal(within(mask, radius), (squared <= radius**2).any(1).reshape(mask.shape))


def blobs(seed, height, width):
    """Two smooth shapes, one of them moved."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    ripple = rng.uniform(0, 6)
    centre_y, centre_x = rng.uniform(0.3, 0.7, 2) * (height, width)
    moved_y, moved_x = rng.normal(0, 4, 2)

    def shape(cy, cx, size):
        angle = np.arctan2(y - cy, x - cx)
        return np.hypot(y - cy, x - cx) < size * (1 + 0.2 * np.sin(5 * angle + ripple))

    return shape(centre_y, centre_x, height / 4), shape(centre_y + moved_y, centre_x + moved_x, height / 4.4)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("size_hw", "tolerance_px"), [((120, 160), 2), ((90, 400), 4), ((100, 75), 1)])
def test_f_agrees_with_all_distances_between_boundaries(seed, size_hw, tolerance_px):
    mask, truth = blobs(seed, *size_hw)
    expected = f_by_distances(mask, truth, tolerance_px)
    assert 0 < expected < 1
    assert boundary_f(mask, truth) == pytest.approx(expected)
    assert boundary_f(mask, truth) == pytest.approx(boundary_f(truth, mask))


def test_f_by_hand():
    """With 60×80 pixels (diagonal 100) the tolerance is one pixel: a vertical edge may be off by one column."""
    half = [square(0, 60, 0, x, (60, 80)) for x in (40, 41, 42)]
    assert boundary_f(half[0], half[1]) == 1
    assert boundary_f(half[0], half[2]) == 0
    bent = half[0].copy()
    bent[:30, 40:50] = True  # moves 30 rows of the boundary, and adds 10 pixels between
    drawn = [(y, 49) for y in range(29)] + [(29, x) for x in range(39, 50)] + [(y, 39) for y in range(30, 60)]
    assert np.argwhere(boundary(bent)).tolist() == [list(place) for place in sorted(drawn)]
    # Near column 39: 30 pixels in it, and those of row 29 in columns 39 and 40. Rows 28 to 59 of it are matched.
    precision, recall = 32 / 70, 32 / 60
    assert boundary_f(bent, half[0]) == pytest.approx(2 * precision * recall / (precision + recall))


def test_f_without_a_boundary():
    small = square(2, 5, 2, 5)
    assert boundary_f(NOTHING, NOTHING) == boundary_f(EVERYTHING, NOTHING) == 1  # as in DAVIS
    assert boundary_f(small, NOTHING) == boundary_f(NOTHING, small) == 0


def test_the_tolerance_at_480p_is_eight_pixels():
    edge = square(0, 480, 0, 400, (480, 854))
    assert boundary_f(edge, square(0, 480, 0, 408, (480, 854))) == 1
    assert boundary_f(edge, square(0, 480, 0, 409, (480, 854))) == 0
