"""Simulated clicks."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra.numpy import arrays

from masklet.evaluation.clicks import Click, box_of, click_until, inner_pixel, next_click, squared_border_distances

NOTHING = np.zeros((60, 80), bool)
ROWS, COLUMNS = np.mgrid[:60, :80]
DISC = (COLUMNS - 30) ** 2 + (ROWS - 20) ** 2 <= 15**2


def rectangle(x0, y0, x1, y1):
    mask = NOTHING.copy()
    mask[y0:y1, x0:x1] = True
    return mask


@pytest.mark.parametrize("seed", range(6))
def test_distances_to_the_border_agree_with_a_search_of_all_pixels(seed):
    rng = np.random.default_rng(seed)
    mask = rng.random((9, 13)) < 0.9
    outside = np.argwhere(~np.pad(mask, 1)) - 1
    places = np.argwhere(np.ones_like(mask))
    nearest = ((places[:, None] - outside) ** 2).sum(-1).min(1).reshape(mask.shape)
    assert np.array_equal(squared_border_distances(mask), nearest)


def test_the_first_click_is_in_the_middle_of_a_disc_and_in_the_thick_part_of_a_spoon():
    assert next_click(NOTHING, DISC) == Click(30, 20, True)
    handle = (abs(ROWS - 20) <= 1) & (COLUMNS >= 30)
    assert next_click(NOTHING, DISC | handle) == Click(30, 20, True)


def test_the_click_avoids_a_hole():
    ring = rectangle(2, 2, 19, 19) & ~rectangle(6, 6, 15, 15)
    click = next_click(NOTHING, ring)
    assert ring[click.y, click.x]


def test_a_click_on_one_pixel_hits_it():
    corner = rectangle(79, 59, 80, 60)
    assert next_click(NOTHING, corner) == Click(79, 59, True)


def test_the_next_click_corrects_the_largest_error():
    truth = rectangle(10, 10, 31, 21)
    left_half = rectangle(10, 10, 20, 21)
    # Columns 20 to 30 are missed, an 11×11 square.
    assert next_click(left_half, truth) == Click(25, 15, True)
    # A surplus 7×7 square is smaller.
    assert next_click(left_half | rectangle(50, 40, 57, 47), truth) == Click(25, 15, True)
    # A surplus 13×13 square is larger.
    assert next_click(left_half | rectangle(50, 40, 63, 53), truth) == Click(56, 46, False)


def test_missed_and_surplus_pixels_are_separate_regions():
    """Two adjacent regions are 8 pixels wide together but 4 each, so the 5×5 square elsewhere is the largest."""
    truth = rectangle(10, 10, 14, 50) | rectangle(40, 10, 45, 15)
    assert next_click(rectangle(14, 10, 18, 50), truth) == Click(42, 12, True)


def test_of_equal_regions_a_missed_one_comes_first_then_the_topmost_then_the_leftmost():
    missed, surplus = rectangle(40, 30, 45, 35), rectangle(10, 5, 15, 10)
    assert next_click(surplus, missed) == Click(42, 32, True)
    assert next_click(NOTHING, missed | rectangle(60, 10, 65, 15)) == Click(62, 12, True)
    assert next_click(NOTHING, missed | rectangle(20, 30, 25, 35)) == Click(22, 32, True)


@given(arrays(bool, (6, 9)), arrays(bool, (6, 9)))
def test_a_click_is_on_an_error_of_the_mask_and_labelled_by_the_truth(mask, truth):
    click = next_click(mask, truth)
    if click is None:
        assert np.array_equal(mask, truth)
    else:
        assert mask[click.y, click.x] != truth[click.y, click.x]
        assert click.is_foreground == truth[click.y, click.x]
        assert click.point == (click.x, click.y, truth[click.y, click.x])


def test_an_empty_mask_has_depth_zero_and_an_empty_box():
    assert inner_pixel(NOTHING).depth == 0
    assert box_of(NOTHING) == (0, 0, 0, 0)


def test_clicks_correct_the_previous_mask_and_stop_when_it_is_right():
    truth = rectangle(10, 10, 31, 21)
    predicted = [rectangle(10, 10, 20, 21), truth, NOTHING]
    clicks = []

    def predict(click):
        clicks.append(click)
        return predicted[len(clicks) - 1]

    masks = list(click_until(4, truth, predict))
    assert clicks == [Click(15, 15, True), Click(25, 15, True)]
    assert [mask is predicted[0] for mask in masks] == [True, False, False, False]
    assert all(mask is truth for mask in masks[1:])


def test_the_box_of_a_mask_ends_after_its_last_pixel():
    assert box_of(rectangle(2, 1, 6, 3)) == (2, 1, 6, 3)
