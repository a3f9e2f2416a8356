import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
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


STAIRS = np.tri(8, dtype=bool)
"""Each step is a corner √½ pixels from the line through the others."""


@pytest.mark.parametrize(
    ("tolerance", "outline"),
    [
        (0.71, [[0, 0], [8, 8], [0, 8]]),
        (0.7, [[0, 0], [1, 0], [8, 8], [0, 8]]),  # no corner is farther than 0.658 from (1, 0) to (8, 8)
        (1e9, [[0, 0], [8, 8], [0, 8]]),
    ],
)
def test_stairs_become_a_line_where_the_tolerance_allows_it(tolerance, outline):
    (polygon,) = mask_polygons(STAIRS, tolerance=tolerance)
    assert polygon.exterior.tolist() == outline


@pytest.mark.parametrize("tolerance", [0, 0.2, 0.4])
def test_outlines_stay_exact_where_no_corner_can_be_left_out(tolerance):
    (exact,), (polygon,) = mask_polygons(STAIRS), mask_polygons(STAIRS, tolerance=tolerance)
    np.testing.assert_array_equal(polygon.exterior, exact.exterior)


def test_a_disc_needs_few_points():
    y, x = np.mgrid[:200, :200] - 99.5
    (exact,), (polygon,) = (mask_polygons(np.hypot(x, y) < 90, tolerance=tolerance) for tolerance in (0, 1.5))
    radii = np.hypot(*(polygon.exterior - 100).T)
    assert len(polygon.exterior) < len(exact.exterior) / 10
    np.testing.assert_allclose(radii, 90, atol=1)


@pytest.mark.parametrize("tolerance", [-1, float("nan"), float("inf")])
def test_a_tolerance_is_a_finite_number_of_pixels(tolerance):
    with pytest.raises(ValueError, match=re.escape(f"a finite number of pixels, 0 or more, got {tolerance}")):
        mask_polygons(STAIRS, tolerance=tolerance)


def edges_of(ring):
    return ring, np.roll(ring, -1, axis=0)


def distances_to(ring, points):
    """(points,) from points to the nearest edge of a ring."""
    a, b = edges_of(ring)
    along, offset = b - a, points[:, None] - a
    share = np.clip((offset * along).sum(-1) / (along**2).sum(-1), 0, 1)
    return np.linalg.norm(offset - share[..., None] * along, axis=-1).min(1)


def samples_of(ring):
    a, b = edges_of(ring)
    return (a + np.linspace(0, 1, 9)[:, None, None] * (b - a)).reshape(-1, 2)


def side(a, b, point):
    """Which side of the line from a to b a point is on; exact for multiples of 1/32."""
    (across, down), (right, below) = np.moveaxis(b - a, -1, 0), np.moveaxis(point - a, -1, 0)
    return np.sign(across * below - down * right)


def check_that_edges_meet_at_corners_only(rings):
    a, b = (np.concatenate(ends) for ends in zip(*map(edges_of, rings), strict=True))
    assert len(np.unique(a, axis=0)) == len(a)
    first, last, point = a[:, None], b[:, None], a[None]
    is_end = (point == first).all(-1) | (point == last).all(-1)
    is_between = ((point - first) * (point - last)).sum(-1) <= 0
    assert not ((side(first, last, point) == 0) & is_between & ~is_end).any()
    apart = side(first, last, a[None]) * side(first, last, b[None])
    assert not ((apart < 0) & (apart.T < 0)).any()


def insides(rings, size_hw):
    """For each ring the pixels that it encloses."""
    return [set(zip(*filled([ring], *size_hw)[0].nonzero(), strict=True)) for ring in rings]


def check_simplified(mask, connectivity, tolerance):
    exact = mask_polygons(mask, connectivity)
    simplified = mask_polygons(mask, connectivity, tolerance=tolerance)
    assert [len(polygon.holes) for polygon in simplified] == [len(polygon.holes) for polygon in exact]
    before, after = ([r.astype(float) for p in polygons for r in p.rings] for polygons in (exact, simplified))
    for old, new in zip(before, after, strict=True):
        assert 3 <= len(new) <= len(old)
        assert signed_area(old) * signed_area(new) > 0
        assert distances_to(new, old).max() <= tolerance + 1e-6
        assert distances_to(old, samples_of(new)).max() <= tolerance + 1e-6
    check_that_edges_meet_at_corners_only(after)
    enclosed = insides(before, mask.shape)
    for i, outer in enumerate(after):
        for j, inner in enumerate(after):
            if i != j:
                is_inside = is_point_inside(inner[0], outer)
                assert is_inside == (enclosed[j] <= enclosed[i])


def is_point_inside(point, ring):
    a, b = edges_of(ring)
    spans = (a[:, 1] <= point[1]) != (b[:, 1] <= point[1])
    return bool((spans & (side(a, b, point) == np.sign(b - a)[:, 1])).sum() % 2)


@pytest.mark.parametrize("connectivity", [4, 8])
@pytest.mark.parametrize("tolerance", [0.5, 1, 2, 50])
@pytest.mark.parametrize("mask", [*(shape for shape in SHAPES.values() if shape.any()), STAIRS])
def test_simplified_outlines_of_a_shape_keep_its_topology(mask, tolerance, connectivity):
    check_simplified(mask, connectivity, tolerance)


@given(bool_masks(min_masks=1, max_masks=1), st.sampled_from([0.45, 0.75, 1, 1.5, 2, 3, 20]), st.sampled_from([4, 8]))
@few_examples
def test_simplified_outlines_of_any_mask_keep_its_topology(masks, tolerance, connectivity):
    if masks.any():
        check_simplified(masks[0], connectivity, tolerance)


def test_a_small_neighbour_in_a_bay_is_not_swallowed():
    bay = drawn("###############", "#.............#", "#......#......#", "#.............#", "#.............#")
    check_simplified(bay, 8, 6)
    for island in range(1, 4):  # a comb whose teeth are closer than the tolerance
        comb = np.zeros((12, 40), bool)
        comb[:, :: island + 1] = comb[0] = True
        check_simplified(comb, 8, 5)


@given(bool_masks(min_masks=1, max_masks=1), st.sampled_from([0.75, 1.5, 3]))
@few_examples
def test_geographic_software_takes_simplified_outlines(masks, tolerance):
    shapely = pytest.importorskip("shapely")
    polygons = [
        shapely.Polygon(polygon.exterior.tolist(), [hole.tolist() for hole in polygon.holes])
        for polygon in mask_polygons(masks[0], 4, tolerance=tolerance)
    ]
    assert all(polygon.is_valid and polygon.area > 0 for polygon in polygons)
    assert shapely.MultiPolygon(polygons).is_valid
    assert not any(first.intersects(second) for i, first in enumerate(polygons) for second in polygons[:i])
