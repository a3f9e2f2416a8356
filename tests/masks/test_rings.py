from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from mask_shapes import bool_masks, drawn, few_examples, filled

from masklet.masks import joined_ring, mask_polygons, rings


def edges_of(ring):
    return Counter(zip(map(tuple, ring.tolist()), map(tuple, np.roll(ring, -1, axis=0).tolist()), strict=True))


def rings_of(mask):
    return [ring for polygon in mask_polygons(mask) for ring in polygon.rings]


@given(bool_masks(min_masks=1, max_masks=1))
@few_examples
def test_a_joined_ring_encloses_what_the_rings_enclose(masks):
    if rings := rings_of(masks[0]):
        by_parity, by_winding = filled([joined_ring(rings)], *masks[0].shape)
        np.testing.assert_array_equal(by_parity, masks[0])
        np.testing.assert_array_equal(by_winding, masks[0])


@given(bool_masks(min_masks=1, max_masks=1))
@few_examples
def test_it_has_all_edges_and_lines_that_run_both_ways(masks):
    if rings := rings_of(masks[0]):
        lines = edges_of(joined_ring(rings)) - sum(map(edges_of, rings), Counter())
        assert lines.total() == 2 * (len(rings) - 1)
        assert lines == Counter({(end, start): count for (start, end), count in lines.items()})


def test_lines_connect_the_nearest_corners():
    rings = rings_of(drawn("#...........", "..##########", "..#......#.#", "..##########"))
    lines = edges_of(joined_ring(rings)) - sum(map(edges_of, rings), Counter())
    lengths = sorted(np.hypot(*np.subtract(*line)) for line in lines)
    # From the pixel to the frame, from the frame to its long hole, from there to the small hole, and back.
    np.testing.assert_allclose(lengths, [1, 1, 1, 1, np.sqrt(2), np.sqrt(2)])


def test_one_ring_is_left_as_it_is():
    (ring,) = rings_of(drawn("##", "#."))
    assert joined_ring([ring]) is ring


@pytest.mark.parametrize("most", [1, 7])
def test_with_many_points_the_ring_is_as_correct(monkeypatch, most):
    monkeypatch.setattr(rings, "MAX_ENDS", most)
    mask = np.random.default_rng(0).random((20, 20)) < 0.5
    np.testing.assert_array_equal(filled([joined_ring(rings_of(mask))], 20, 20)[0], mask)
