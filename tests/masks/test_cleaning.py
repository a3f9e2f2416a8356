import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mask_shapes import bool_masks, components_of, drawn, few_examples
from PIL import Image, ImageFilter

from masklet.masks import PackedMasks, clean_masks, cleaning, encode_rle


def test_only_holes_smaller_than_the_area_are_filled():
    mask = drawn("########", "#.###..#", "########")
    filled_in = drawn("########", "#####..#", "########")
    np.testing.assert_array_equal(clean_masks(mask[None], fill_holes=2)[0], filled_in)
    assert clean_masks(mask[None], fill_holes=3).all()
    np.testing.assert_array_equal(clean_masks(mask[None], fill_holes=1)[0], mask)


def test_background_is_connected_through_edges_and_the_mask_through_corners():
    mask = drawn("....", ".#..", "..#.", "....")
    np.testing.assert_array_equal(clean_masks(mask[None], remove_islands=2)[0], mask)
    assert clean_masks(~mask[None], fill_holes=2).all(), "two holes of one pixel, not one of two"


def test_a_small_island_is_removed_unless_it_is_the_largest():
    mask = drawn("#..##", "...##", "#....", "#....")
    np.testing.assert_array_equal(
        clean_masks(mask[None], remove_islands=2)[0], drawn("...##", "...##", "#....", "#....")
    )
    largest = drawn("...##", "...##", ".....", ".....")
    for area in (3, 4, 5, 1000):
        np.testing.assert_array_equal(clean_masks(mask[None], remove_islands=area)[0], largest)


def test_islands_of_a_mask_with_odd_sides_are_separate():
    """Here cc3d 4.1.1 labels the second row of a bool mask as if it were inside."""
    mask = drawn("#.", "..", "..", "..", "#.")
    np.testing.assert_array_equal(clean_masks(mask[None], remove_islands=2)[0], mask)


def test_an_empty_mask_is_not_filled_as_a_hole():
    empty = np.zeros((1, 2, 3), bool)
    assert not clean_masks(empty, fill_holes=100, remove_islands=100).any()
    assert clean_masks(~empty, fill_holes=100, remove_islands=100).all()


def test_each_mask_is_cleaned_on_its_own():
    masks = np.stack([drawn("##..", "##.#"), drawn("....", "...#"), drawn("....", "....")])
    cleaned = clean_masks(masks, remove_islands=3)
    np.testing.assert_array_equal(cleaned, np.stack([drawn("##..", "##.."), masks[1], masks[2]]))


@given(bool_masks(), st.integers(0, 8), st.integers(0, 8))
@few_examples
def test_cleaning_matches_a_plain_flood_fill(masks, fill_holes, remove_islands):
    expected = masks.copy()
    for mask in expected:
        for hole in components_of(~mask, 4) if mask.any() else []:
            if len(hole) < fill_holes:
                mask[tuple(zip(*hole, strict=True))] = True
        islands = components_of(mask, 8)
        largest = max(map(len, islands), default=0)
        for island in islands:
            if len(island) < min(remove_islands, largest):
                mask[tuple(zip(*island, strict=True))] = False
    before = masks.copy()
    np.testing.assert_array_equal(clean_masks(masks, fill_holes=fill_holes, remove_islands=remove_islands), expected)
    np.testing.assert_array_equal(masks, before)


@given(bool_masks(), st.integers(0, 8), st.integers(0, 8))
@few_examples
def test_cleaning_again_changes_nothing_and_never_empties_a_mask(masks, fill_holes, remove_islands):
    cleaned = clean_masks(masks, fill_holes=fill_holes, remove_islands=remove_islands)
    again = clean_masks(cleaned, fill_holes=fill_holes, remove_islands=remove_islands)
    np.testing.assert_array_equal(again, cleaned)
    np.testing.assert_array_equal(cleaned.any((1, 2)), masks.any((1, 2)))
    assert not (clean_masks(masks, remove_islands=remove_islands) & ~masks).any(), "islands only shrink a mask"
    assert not (masks & ~clean_masks(masks, fill_holes=fill_holes)).any(), "holes only grow it"


def cleaned_whole(mask, smooth_px, fill_holes, remove_islands, keep_largest):
    """The documented rules, applied to the whole image."""
    if smooth_px:
        blurred = np.asarray(Image.fromarray(mask.astype("u1") * 255).filter(ImageFilter.GaussianBlur(smooth_px)))
        mask = blurred > 127 if (blurred > 127).any() else mask
    for hole in components_of(~mask, 4) if mask.any() else []:
        if len(hole) < fill_holes:
            mask[tuple(zip(*hole, strict=True))] = True
    islands = sorted(components_of(mask, 8), key=lambda island: (-len(island), min(island)))
    for island in islands[1:]:
        if keep_largest or len(island) < min(remove_islands, len(islands[0])):
            mask[tuple(zip(*island, strict=True))] = False
    return mask


@given(
    st.tuples(st.integers(1, 40), st.integers(1, 40), st.integers(1, 30), st.integers(1, 30)),
    st.tuples(st.floats(-0.3, 1), st.floats(-0.3, 1)),
    st.sampled_from([0, 0.5, 1, 2.7]),
    st.integers(0, 400),
    st.integers(0, 30),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=300, deadline=None)
def test_cleaning_in_the_box_matches_cleaning_the_whole_image(
    sides, place, smooth_px, fill_holes, remove_islands, keep_largest, seed
):
    """Small and large masks at every border: the background counts up to the border of the image."""
    height, width, tall, wide = sides
    rng = np.random.default_rng(seed)
    mask = np.zeros((height, width), bool)
    y, x = (max(0, round(share * side)) for share, side in zip(place, (height, width), strict=True))
    part = mask[y : y + tall, x : x + wide]
    part[:] = rng.random(part.shape) < rng.choice([0.1, 0.5, 0.9])
    options = {
        "smooth_px": smooth_px,
        "fill_holes": fill_holes,
        "remove_islands": remove_islands,
        "keep_largest": keep_largest,
    }
    expected = cleaned_whole(mask.copy(), **options)
    np.testing.assert_array_equal(clean_masks(mask[None], **options)[0], expected)
    packed = clean_masks(PackedMasks(encode_rle(mask[None]), mask.shape), **options)
    assert packed.runs == encode_rle(expected[None])


def test_small_masks_of_a_large_image_are_cleaned_in_their_boxes(monkeypatch):
    mask = np.zeros((1, 2000, 3000), bool)
    mask[0, 900:920, 100:140] = True
    mask[0, 910, 120] = False
    sizes, label = [], cleaning.label_components
    monkeypatch.setattr(
        cleaning,
        "label_components",
        lambda m, connectivity: sizes.append(m.size) or label(m, connectivity),
    )
    assert clean_masks(mask, fill_holes=5, remove_islands=5).sum() == 800
    assert max(sizes) == 22 * 42


def test_with_8_neighbours_holes_leak_through_corners():
    mask = drawn("####.", "#.##.", "##.#.", "###..", ".....")
    np.testing.assert_array_equal(clean_masks(mask[None], fill_holes=3, hole_connectivity=8)[0], mask)
    assert clean_masks(mask[None], fill_holes=3)[0, :3, :3].all()


@given(bool_masks())
@few_examples
def test_only_the_largest_island_is_kept(masks):
    largest = clean_masks(masks, keep_largest=True)
    for mask, kept in zip(masks, largest, strict=True):
        islands = components_of(mask, 8)
        if islands:
            first = [min(island) for island in islands]  # by row, then column
            best = min(range(len(islands)), key=lambda i: (-len(islands[i]), first[i]))
            assert set(zip(*kept.nonzero(), strict=True)) == islands[best]
        assert len(components_of(kept, 8)) == bool(islands)


def test_smoothing_rounds_corners_and_keeps_straight_lines_even_at_the_border():
    masks = np.zeros((3, 40, 60), bool)
    masks[0, 10:, 20:] = True  # one corner; it touches two borders
    masks[1, :, 30:] = True
    masks[2, 5:35:2, :30] = masks[2, 10:30, 20:40] = True  # a comb on a block
    smoothed = clean_masks(masks, smooth_px=2)
    changed = smoothed[0] != masks[0]
    assert changed[10, 20]
    assert not changed[16:].any()
    assert not changed[:, 26:].any()
    np.testing.assert_array_equal(smoothed[1], masks[1])
    assert (
        np.abs(np.diff(smoothed[2].astype(int), axis=0)).sum() < np.abs(np.diff(masks[2].astype(int), axis=0)).sum() / 2
    )
    np.testing.assert_array_equal(clean_masks(masks, smooth_px=0), masks)


def test_a_mask_that_smoothing_would_erase_is_kept():
    dot = np.zeros((1, 9, 9), bool)
    dot[0, 4, 4] = True
    np.testing.assert_array_equal(clean_masks(dot, smooth_px=3), dot)
    assert clean_masks(np.ones((1, 1, 1), bool), smooth_px=50).all()
    assert not clean_masks(np.zeros((1, 3, 3), bool), smooth_px=1).any()


@pytest.mark.parametrize("smooth_px", [-1, float("nan")])
def test_a_negative_smoothness_is_refused(smooth_px):
    with pytest.raises(ValueError, match="smooth_px is .*: expected a number, 0 to 10000"):
        clean_masks(np.ones((1, 2, 2), bool), smooth_px=smooth_px)
