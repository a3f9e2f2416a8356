import numpy as np
import pytest
from hypothesis import given
from mask_shapes import bool_masks, components_of, drawn, few_examples, filled, signed_area

from masklet.masks import (
    mask_polygons,
    patch_polygons,
    patches,
)


@given(bool_masks(min_masks=1, max_masks=2))
@few_examples
def test_polygons_of_a_patch_match_those_of_the_image(masks):
    for patch, mask in zip(patches(masks), masks, strict=True):
        for connectivity in (4, 8):
            ours, theirs = patch_polygons(patch, connectivity), mask_polygons(mask, connectivity)
            for polygon, expected in zip(ours, theirs, strict=True):
                np.testing.assert_array_equal(polygon.exterior, expected.exterior)
                for hole, other in zip(polygon.holes, expected.holes, strict=True):
                    np.testing.assert_array_equal(hole, other)


SHAPES = {
    "empty": drawn("...", "..."),
    "one pixel": drawn("#"),
    "full": drawn("###", "###"),
    "corner": drawn("#.", ".#"),
    "other corner": drawn(".#", "#."),
    "ring": drawn("###", "#.#", "###"),
    "holes that touch": drawn("####", "#.##", "##.#", "####"),
    "hole at a corner of the border": drawn("##.", "#.#", "###"),
    "island in a hole": drawn("#####", "#...#", "#.#.#", "#...#", "#####"),
    "island that touches the rim of its hole": drawn("#####", "##..#", "#.#.#", "#...#", "#####"),
    "chess": np.indices((5, 6)).sum(0) % 2 == 0,
}


def check_polygons(mask):
    polygons = mask_polygons(mask)
    fills = [filled(p.rings, *mask.shape) for p in polygons]
    total = np.zeros(mask.shape, int)
    for by_parity, by_winding in fills:
        np.testing.assert_array_equal(by_parity, by_winding)
        total += by_parity
    np.testing.assert_array_equal(total, mask)  # as numbers: no pixel is in two polygons
    components = components_of(mask, 8)
    assert {frozenset(zip(*f.nonzero(), strict=True)) for f, _ in fills} == set(map(frozenset, components))
    background = components_of(np.pad(~mask, 1, constant_values=True), 4)
    assert sum(len(p.holes) for p in polygons) == len(background) - 1
    for polygon in polygons:
        assert signed_area(polygon.exterior) > 0
        assert all(signed_area(hole) < 0 for hole in polygon.holes)
        for ring in polygon.rings:
            assert ring.dtype == np.float32
            steps = np.roll(ring, -1, axis=0) - ring
            is_flat = steps[:, 1] == 0
            assert ((steps != 0).sum(1) == 1).all(), "each step runs along an edge of pixels"
            assert (is_flat != np.roll(is_flat, 1)).all(), "each point is a turn"
    tops = [polygon.exterior[0, 1] for polygon in polygons]
    assert tops == sorted(tops)


@pytest.mark.parametrize("mask", SHAPES.values(), ids=SHAPES)
def test_filling_the_polygons_of_a_shape_restores_it(mask):
    check_polygons(mask)


@given(bool_masks(min_masks=1, max_masks=1))
@few_examples
def test_filling_the_polygons_of_any_mask_restores_it(masks):
    check_polygons(masks[0])


def check_simple_polygons(mask):
    polygons = mask_polygons(mask, connectivity=4)
    rings = [ring for polygon in polygons for ring in polygon.rings]
    np.testing.assert_array_equal(
        np.sum([filled([r], *mask.shape)[1] * np.sign(signed_area(r)) for r in rings], 0), mask
    )
    assert len(polygons) == len(components_of(mask, 4))
    for ring in rings:
        assert len(np.unique(ring, axis=0)) == len(ring), "a ring that touches itself is not a valid geometry"
        assert ring[0, 1] == ring[1, 1], "it starts along a row"
    assert all(signed_area(polygon.exterior) > 0 for polygon in polygons)
    assert all(signed_area(hole) < 0 for polygon in polygons for hole in polygon.holes)
    tops = [polygon.exterior[0, 1] for polygon in polygons]
    assert tops == sorted(tops)


@pytest.mark.parametrize("mask", [*SHAPES.values(), drawn(".###", "##.#", "#.##", "###.")])
def test_with_4_neighbours_no_polygon_of_a_shape_touches_itself(mask):
    check_simple_polygons(mask)


@given(bool_masks(min_masks=1, max_masks=1))
@few_examples
def test_with_4_neighbours_no_polygon_of_any_mask_touches_itself(masks):
    check_simple_polygons(masks[0])


def test_the_outline_of_a_pixel_runs_along_its_edges_clockwise():
    (polygon,) = mask_polygons(drawn("...", "..#"))
    assert polygon.exterior.tolist() == [[2, 1], [3, 1], [3, 2], [2, 2]]
    assert polygon.holes == ()


def test_polygons_of_a_stack_are_refused():
    with pytest.raises(ValueError, match=r"expected one bool mask \(height, width\), got bool of shape \(1, 2, 3\)"):
        mask_polygons(np.ones((1, 2, 3), bool))
