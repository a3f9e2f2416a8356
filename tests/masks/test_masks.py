import json

import numpy as np
import pycocotools.mask as coco
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, ImageFilter

from masklet.masks import (
    PackedMasks,
    Patch,
    clean_masks,
    decode_rle,
    encode_patch,
    encode_rle,
    join_rle,
    label_pieces,
    mask_areas,
    mask_boxes,
    mask_ious,
    mask_polygons,
    patch_polygons,
    patches,
    stability_scores,
    text_rle,
    union,
    upscale_logits,
    without_overlap,
)

some = settings(max_examples=80, deadline=None)


def bool_masks(min_masks=0, max_masks=4, max_side=12):
    side = st.integers(1, max_side)
    return st.tuples(st.integers(min_masks, max_masks), side, side).flatmap(lambda shape: arrays(bool, shape))


def drawn(*rows):
    """One mask from text: # is inside."""
    return np.array([[pixel == "#" for pixel in row] for row in rows])


def pieces_of(mask, neighbours):
    """The connected pieces of a mask as sets of (row, column), by a plain flood."""
    steps = [(-1, 0), (1, 0), (0, -1), (0, 1)]
    steps += [(-1, -1), (-1, 1), (1, -1), (1, 1)] if neighbours == 8 else []
    left = set(zip(*mask.nonzero(), strict=True))
    pieces = []
    while left:
        piece, front = set(), [left.pop()]
        while front:
            row, column = front.pop()
            piece.add((row, column))
            near = {(row + down, column + right) for down, right in steps} & left
            left -= near
            front += near
        pieces.append(piece)
    return pieces


def filled(rings, height, width):
    """Pixels whose centre is inside: by the even-odd rule, and by the winding number."""
    y, x = np.mgrid[:height, :width] + 0.5
    crossings, winding = np.zeros((2, height, width), int)
    for ring in rings:
        for (x0, y0), (x1, y1) in zip(ring, np.roll(ring, -1, axis=0), strict=True):
            if y0 == y1:
                continue
            right_of = x > x0 + (y - y0) * (x1 - x0) / (y1 - y0)
            spans = (min(y0, y1) <= y) & (y < max(y0, y1))
            crossings += spans & right_of
            winding += (spans & right_of) * (1 if y1 > y0 else -1)
    return crossings % 2 == 1, winding != 0


def signed_area(ring):
    """Positive where the ring runs clockwise on the screen, y down."""
    x, y = ring.astype(float).T
    return (x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2


# Logits


def test_logits_are_interpolated_between_pixel_centres():
    logits = torch.tensor([[0.0, 4.0]])
    torch.testing.assert_close(upscale_logits(logits, (1, 4)), torch.tensor([[0.0, 1.0, 3.0, 4.0]]))
    torch.testing.assert_close(upscale_logits(logits.T, (4, 2)), torch.tensor([[0.0, 1, 3, 4]] * 2).T)


def test_downscaling_does_not_antialias():
    row = torch.tensor([[9.0, 0, 0, 9, 9, 0, 0, 9]])
    torch.testing.assert_close(upscale_logits(row, (1, 2)), torch.tensor([[0.0, 0.0]]))


@pytest.mark.parametrize("leading", [(), (3,), (2, 3), (0,), (2, 0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_upscaling_keeps_leading_dimensions_and_returns_float32(leading, dtype):
    upscaled = upscale_logits(torch.ones(*leading, 3, 4, dtype=dtype), (7, 9))
    assert upscaled.dtype == torch.float32
    torch.testing.assert_close(upscaled, torch.ones(*leading, 7, 9))


def test_stability_is_the_iou_of_the_strict_and_the_loose_mask():
    logits = 3 * torch.randn(2, 5, 20, 30, generator=torch.Generator().manual_seed(0))
    scores = stability_scores(logits, threshold=0.5, offset=2.0)
    assert scores.shape == (2, 5)
    assert scores.dtype == torch.float32
    strict, loose = (logits > 2.5).numpy(), (logits > -1.5).numpy()
    expected = (strict & loose).sum((-2, -1)) / (strict | loose).sum((-2, -1))
    np.testing.assert_allclose(scores, expected, rtol=1e-6)
    assert 0.1 < scores.min() < scores.max() < 0.5, "the comparison is of something"


def test_masks_without_doubt_are_stable_and_those_without_core_are_not():
    logits = torch.stack([torch.full((4, 4), value) for value in (9.0, -9.0, 0.0)])
    assert stability_scores(logits).tolist() == [1, 1, 0]
    assert stability_scores(torch.zeros(0, 4, 4)).shape == (0,)
    assert stability_scores(logits, offset=0).tolist() == [1, 1, 1]


def test_a_negative_offset_is_refused():
    with pytest.raises(ValueError, match="offset must be >= 0 logits, got -1"):
        stability_scores(torch.zeros(1, 4, 4), offset=-1)


# Cleaning


def test_a_hole_below_the_area_is_filled_and_one_of_it_is_not():
    mask = drawn("########", "#.###..#", "########")
    filled_in = drawn("########", "#####..#", "########")
    np.testing.assert_array_equal(clean_masks(mask[None], fill_holes=2)[0], filled_in)
    assert clean_masks(mask[None], fill_holes=3).all()
    np.testing.assert_array_equal(clean_masks(mask[None], fill_holes=1)[0], mask)


def test_background_is_connected_through_edges_and_the_mask_through_corners():
    mask = drawn("....", ".#..", "..#.", "....")
    np.testing.assert_array_equal(clean_masks(mask[None], remove_islands=2)[0], mask)
    assert clean_masks(~mask[None], fill_holes=2).all(), "two holes of one pixel, not one of two"


def test_an_island_goes_unless_it_is_the_largest():
    mask = drawn("#..##", "...##", "#....", "#....")
    np.testing.assert_array_equal(
        clean_masks(mask[None], remove_islands=2)[0], drawn("...##", "...##", "#....", "#....")
    )
    largest = drawn("...##", "...##", ".....", ".....")
    for area in (3, 4, 5, 1000):
        np.testing.assert_array_equal(clean_masks(mask[None], remove_islands=area)[0], largest)


def test_islands_of_a_mask_with_odd_sides_are_told_apart():
    """Here cc3d 4.1.1 labels the second row of a bool mask as if it were inside."""
    mask = drawn("#.", "..", "..", "..", "#.")
    np.testing.assert_array_equal(clean_masks(mask[None], remove_islands=2)[0], mask)


def test_an_empty_mask_is_no_hole():
    empty = np.zeros((1, 2, 3), bool)
    assert not clean_masks(empty, fill_holes=100, remove_islands=100).any()
    assert clean_masks(~empty, fill_holes=100, remove_islands=100).all()


def test_masks_are_cleaned_each_alone():
    masks = np.stack([drawn("##..", "##.#"), drawn("....", "...#"), drawn("....", "....")])
    cleaned = clean_masks(masks, remove_islands=3)
    np.testing.assert_array_equal(cleaned, np.stack([drawn("##..", "##.."), masks[1], masks[2]]))


@given(bool_masks(), st.integers(0, 8), st.integers(0, 8))
@some
def test_cleaning_is_that_of_a_plain_flood(masks, fill_holes, remove_islands):
    expected = masks.copy()
    for mask in expected:
        for hole in pieces_of(~mask, 4) if mask.any() else []:
            if len(hole) < fill_holes:
                mask[tuple(zip(*hole, strict=True))] = True
        islands = pieces_of(mask, 8)
        largest = max(map(len, islands), default=0)
        for island in islands:
            if len(island) < min(remove_islands, largest):
                mask[tuple(zip(*island, strict=True))] = False
    before = masks.copy()
    np.testing.assert_array_equal(clean_masks(masks, fill_holes=fill_holes, remove_islands=remove_islands), expected)
    np.testing.assert_array_equal(masks, before)


@given(bool_masks(), st.integers(0, 8), st.integers(0, 8))
@some
def test_cleaning_again_changes_nothing_and_never_empties_a_mask(masks, fill_holes, remove_islands):
    cleaned = clean_masks(masks, fill_holes=fill_holes, remove_islands=remove_islands)
    again = clean_masks(cleaned, fill_holes=fill_holes, remove_islands=remove_islands)
    np.testing.assert_array_equal(again, cleaned)
    np.testing.assert_array_equal(cleaned.any((1, 2)), masks.any((1, 2)))
    assert not (clean_masks(masks, remove_islands=remove_islands) & ~masks).any(), "islands only shrink a mask"
    assert not (masks & ~clean_masks(masks, fill_holes=fill_holes)).any(), "holes only grow it"


def cleaned_whole(mask, smooth_px, fill_holes, remove_islands, keep_largest):
    """By the rules as they are told, on all of the image."""
    if smooth_px:
        blurred = np.asarray(Image.fromarray(mask.astype("u1") * 255).filter(ImageFilter.GaussianBlur(smooth_px)))
        mask = blurred > 127 if (blurred > 127).any() else mask
    for hole in pieces_of(~mask, 4) if mask.any() else []:
        if len(hole) < fill_holes:
            mask[tuple(zip(*hole, strict=True))] = True
    islands = sorted(pieces_of(mask, 8), key=lambda piece: (-len(piece), min(piece)))
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
def test_cleaning_in_a_masks_box_is_that_of_the_whole_image(
    sides, place, smooth_px, fill_holes, remove_islands, keep_largest, seed
):
    """Masks small and large, of every border: what is around counts as far as the image goes."""
    height, width, tall, wide = sides
    rng = np.random.default_rng(seed)
    mask = np.zeros((height, width), bool)
    y, x = (max(0, round(share * side)) for share, side in zip(place, (height, width), strict=True))
    part = mask[y : y + tall, x : x + wide]
    part[:] = rng.random(part.shape) < rng.choice([0.1, 0.5, 0.9])
    how = {
        "smooth_px": smooth_px,
        "fill_holes": fill_holes,
        "remove_islands": remove_islands,
        "keep_largest": keep_largest,
    }
    expected = cleaned_whole(mask.copy(), **how)
    np.testing.assert_array_equal(clean_masks(mask[None], **how)[0], expected)
    packed = clean_masks(PackedMasks(encode_rle(mask[None]), mask.shape), **how)
    assert packed.runs == encode_rle(expected[None])


def test_small_masks_of_a_large_image_are_cleaned_in_their_boxes(monkeypatch):
    mask = np.zeros((1, 2000, 3000), bool)
    mask[0, 900:920, 100:140] = True
    mask[0, 910, 120] = False
    sizes, label = [], label_pieces
    monkeypatch.setattr(
        "masklet.masks.label_pieces", lambda m, connectivity: sizes.append(m.size) or label(m, connectivity)
    )
    assert clean_masks(mask, fill_holes=5, remove_islands=5).sum() == 800
    assert max(sizes) == 22 * 42


def test_holes_may_leak_through_corners():
    mask = drawn("####.", "#.##.", "##.#.", "###..", ".....")
    np.testing.assert_array_equal(clean_masks(mask[None], fill_holes=3, hole_connectivity=8)[0], mask)
    assert clean_masks(mask[None], fill_holes=3)[0, :3, :3].all()


@given(bool_masks())
@some
def test_the_largest_island_alone_stays(masks):
    largest = clean_masks(masks, keep_largest=True)
    for mask, kept in zip(masks, largest, strict=True):
        islands = pieces_of(mask, 8)
        if islands:
            first = [min(piece) for piece in islands]  # by row, then column
            best = min(range(len(islands)), key=lambda i: (-len(islands[i]), first[i]))
            assert set(zip(*kept.nonzero(), strict=True)) == islands[best]
        assert len(pieces_of(kept, 8)) == bool(islands)


def test_smoothing_rounds_corners_and_leaves_straight_lines_also_at_the_border():
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


def test_a_mask_too_thin_to_smooth_stays():
    dot = np.zeros((1, 9, 9), bool)
    dot[0, 4, 4] = True
    np.testing.assert_array_equal(clean_masks(dot, smooth_px=3), dot)
    assert clean_masks(np.ones((1, 1, 1), bool), smooth_px=50).all()
    assert not clean_masks(np.zeros((1, 3, 3), bool), smooth_px=1).any()


@pytest.mark.parametrize("smooth_px", [-1, float("nan")])
def test_a_negative_smoothness_is_refused(smooth_px):
    with pytest.raises(ValueError, match="smooth_px must be >= 0 pixels, got"):
        clean_masks(np.ones((1, 2, 2), bool), smooth_px=smooth_px)


@given(bool_masks(), st.integers(0, 2**32 - 1))
@some
def test_each_pixel_goes_to_the_mask_of_the_highest_logit(masks, seed):
    logits = np.random.default_rng(seed).integers(-2, 3, masks.shape).astype(np.float32)  # with equals among them
    apart = without_overlap(masks, torch.from_numpy(logits))
    np.testing.assert_array_equal(apart.any(0), masks.any(0))
    assert apart.sum(0).max(initial=0) <= 1
    assert not (apart & ~masks).any()
    for y, x in zip(*masks.any(0).nonzero(), strict=True):
        candidates = [(-logits[i, y, x], i) for i in range(len(masks)) if masks[i, y, x]]
        assert apart[:, y, x].argmax() == min(candidates)[1]


def test_logits_of_low_resolution_part_masks_where_they_cross():
    left_is_surer = torch.tensor([[[4.0, -4.0]], [[-4.0, 4.0]]])
    apart = without_overlap(np.ones((2, 3, 8), bool), left_is_surer)
    np.testing.assert_array_equal(apart[0], np.arange(8)[None].repeat(3, 0) < 4)
    np.testing.assert_array_equal(apart[1], ~apart[0])


# Boxes, areas, overlaps


@given(bool_masks())
@some
def test_boxes_and_areas_are_those_of_plain_loops(masks):
    boxes, areas = mask_boxes(masks), mask_areas(masks)
    assert boxes.shape == (len(masks), 4)
    assert boxes.dtype == np.float32
    assert areas.shape == (len(masks),)
    for mask, box, area in zip(masks, boxes, areas, strict=True):
        pixels = [(x, y) for y, row in enumerate(mask) for x, inside in enumerate(row) if inside]
        x, y = zip(*pixels, strict=True) if pixels else ((0, -1), (0, -1))
        assert box.tolist() == [min(x), min(y), max(x) + 1, max(y) + 1] if pixels else [0, 0, 0, 0]
        assert area == len(pixels)


@given(
    st.tuples(*[st.integers(1, 8)] * 2).flatmap(lambda hw: st.tuples(arrays(bool, (3, *hw)), arrays(bool, (2, *hw))))
)
@some
def test_ious_are_those_of_sets_of_pixels(pair):
    first, second = pair
    ious = mask_ious(first, second)
    assert ious.shape == (3, 2)
    for i, a in enumerate(first):
        for j, b in enumerate(second):
            union = (a | b).sum()
            np.testing.assert_allclose(ious[i, j], (a & b).sum() / union if union else 1, rtol=1e-6)
    np.testing.assert_array_equal(ious.T, mask_ious(second, first))


def test_no_masks_overlap_nothing():
    none, two = np.zeros((0, 4, 5), bool), np.ones((2, 4, 5), bool)
    assert mask_ious(none, two).shape == (0, 2)
    assert mask_ious(two, none).shape == (2, 0)
    with pytest.raises(ValueError, match=r"masks of \(4, 5\) and of \(5, 4\) pixels cannot be compared"):
        mask_ious(two, two.transpose(0, 2, 1))


@pytest.mark.parametrize("function", [clean_masks, mask_boxes, mask_areas, encode_rle])
@pytest.mark.parametrize(
    "masks",
    [np.zeros((4, 5), bool), np.zeros((1, 4, 5), np.float32), np.zeros((1, 0, 5), bool)],
    ids=["one mask", "logits", "no rows"],
)
def test_what_are_no_masks_are_refused(function, masks):
    with pytest.raises(
        ValueError, match=r"expected bool masks \(masks, height, width\), got \w+ of shape .*mask\[None\]"
    ):
        function(masks)


# Run lengths


@given(bool_masks(min_masks=1, max_side=40))
@some
def test_run_lengths_return_as_the_same_masks(masks):
    runs = json.loads(json.dumps(encode_rle(masks)))
    decoded = decode_rle(runs)
    assert decoded.dtype == bool
    np.testing.assert_array_equal(decoded, masks)
    assert coco.area(runs).tolist() == mask_areas(masks).tolist()


def test_run_lengths_are_those_of_coco():
    # By columns: one outside, two inside, one outside; and a mask that begins inside has a first run of 0.
    masks = np.stack([drawn(".#", "#."), drawn("##", "##")])
    assert encode_rle(masks) == [{"size": [2, 2], "counts": "121"}, {"size": [2, 2], "counts": "04"}]
    np.testing.assert_array_equal(decode_rle([{"size": [1, 3], "counts": "111"}]), [drawn(".#.")])


def test_no_run_lengths_are_no_masks():
    assert encode_rle(np.zeros((0, 4, 5), bool)) == []
    assert decode_rle([]).shape == (0, 0, 0)


def test_empty_runs_of_other_encoders_are_read():
    run = coco.frPyObjects({"size": [1, 6], "counts": [1, 0, 1, 2, 0, 1, 1]}, 1, 6)
    np.testing.assert_array_equal(decode_rle([text_rle(run)]), [drawn("..###.")])


@pytest.mark.parametrize("counts", ["", "1", "3", "12", "41", "05", "0>"])
def test_counts_that_do_not_add_up_are_refused(counts):
    with pytest.raises(ValueError, match="do not fill their size of 2×2 pixels"):
        decode_rle([{"size": [2, 2], "counts": counts}])
    assert decode_rle([{"size": [2, 2], "counts": "4"}]).sum() == 0


def test_run_lengths_of_two_sizes_are_refused():
    runs = encode_rle(np.ones((1, 2, 3), bool)) + encode_rle(np.ones((1, 3, 2), bool))
    with pytest.raises(ValueError, match=r"run lengths of one size were expected, got \[\(2, 3\), \(3, 2\)\]"):
        decode_rle(runs)


# Patches: masks as far as their boxes go


@given(bool_masks(max_side=20))
@some
def test_packed_masks_are_read_as_the_array_they_stand_for(masks):
    packed = PackedMasks(encode_rle(masks), masks.shape[1:])
    assert (packed.shape, packed.ndim, packed.dtype, len(packed)) == (masks.shape, 3, bool, len(masks))
    np.testing.assert_array_equal(np.asarray(packed), masks)
    np.testing.assert_array_equal(np.asarray(packed[::-1]), masks[::-1])
    for mask, expected in zip(packed, masks, strict=True):
        np.testing.assert_array_equal(mask, expected)
    np.testing.assert_array_equal(mask_boxes(packed), mask_boxes(masks))
    np.testing.assert_array_equal(mask_areas(packed), mask_areas(masks))
    np.testing.assert_array_equal(mask_ious(packed, masks), mask_ious(masks, masks))
    np.testing.assert_array_equal(union(packed), masks.any(0))
    assert encode_rle(packed) == encode_rle(masks)


@given(bool_masks(min_masks=1, max_side=20), st.booleans())
@some
def test_patches_become_the_run_lengths_of_the_image_that_coco_makes(masks, packed):
    size_hw = masks.shape[1:]
    stack = PackedMasks(encode_rle(masks), size_hw) if packed else masks
    for patch, mask, rle in zip(patches(stack), masks, encode_rle(masks), strict=True):
        np.testing.assert_array_equal(mask[patch.place], patch.inside)
        assert patch.inside.sum() == mask.sum()
        assert encode_patch(patch, size_hw) == rle
        (x0, y0), (height, width) = patch.corner_xy, patch.inside.shape
        assert [x0, y0, x0 + width, y0 + height] == mask_boxes(mask[None])[0].tolist()


def test_a_patch_of_a_gigapixel_becomes_run_lengths_and_returns():
    size_hw, inside = (30_000, 40_000), np.random.default_rng(0).random((50, 70)) > 0.4
    inside[[0, -1]] = inside[:, [0, -1]] = True
    place = np.s_[29_950:30_000, 39_930:40_000]
    packed = PackedMasks([encode_patch(Patch(place, inside), size_hw)], size_hw)
    assert mask_boxes(packed).tolist() == [[39_930, 29_950, 40_000, 30_000]]
    assert mask_areas(packed).tolist() == [inside.sum()]
    (patch,) = patches(packed)
    assert patch.place == place
    np.testing.assert_array_equal(patch.inside, inside)


def test_many_packed_masks_have_boxes_areas_and_overlaps():
    masks = np.random.default_rng(0).random((300, 5, 4)) > 0.6
    packed = PackedMasks(encode_rle(masks), (5, 4))
    np.testing.assert_array_equal(mask_boxes(packed), mask_boxes(masks))
    np.testing.assert_array_equal(mask_areas(packed), mask_areas(masks))
    assert (np.diag(mask_ious(packed, packed)) == 1).all()


@given(bool_masks(min_masks=1, max_masks=5))
@some
def test_masks_join_as_run_lengths(masks):
    assert join_rle(encode_rle(masks)) == encode_rle(masks.any(0)[None])[0]


@given(bool_masks(min_masks=1, max_masks=2))
@some
def test_polygons_of_a_patch_are_those_of_its_image(masks):
    for patch, mask in zip(patches(masks), masks, strict=True):
        for connectivity in (4, 8):
            ours, theirs = patch_polygons(patch, connectivity), mask_polygons(mask, connectivity)
            for polygon, expected in zip(ours, theirs, strict=True):
                np.testing.assert_array_equal(polygon.exterior, expected.exterior)
                for hole, other in zip(polygon.holes, expected.holes, strict=True):
                    np.testing.assert_array_equal(hole, other)


# Polygons

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
    fills = [filled([p.exterior, *p.holes], *mask.shape) for p in polygons]
    total = np.zeros(mask.shape, int)
    for by_parity, by_winding in fills:
        np.testing.assert_array_equal(by_parity, by_winding)
        total += by_parity
    np.testing.assert_array_equal(total, mask)  # as numbers: no pixel is in two polygons
    pieces = pieces_of(mask, 8)
    assert {frozenset(zip(*f.nonzero(), strict=True)) for f, _ in fills} == set(map(frozenset, pieces))
    background = pieces_of(np.pad(~mask, 1, constant_values=True), 4)
    assert sum(len(p.holes) for p in polygons) == len(background) - 1
    for polygon in polygons:
        assert signed_area(polygon.exterior) > 0
        assert all(signed_area(hole) < 0 for hole in polygon.holes)
        for ring in (polygon.exterior, *polygon.holes):
            assert ring.dtype == np.float32
            steps = np.roll(ring, -1, axis=0) - ring
            is_flat = steps[:, 1] == 0
            assert ((steps != 0).sum(1) == 1).all(), "each step runs along an edge of pixels"
            assert (is_flat != np.roll(is_flat, 1)).all(), "each point is a turn"
    tops = [polygon.exterior[0, 1] for polygon in polygons]
    assert tops == sorted(tops)


@pytest.mark.parametrize("mask", SHAPES.values(), ids=SHAPES)
def test_polygons_of_a_shape_fill_to_it(mask):
    check_polygons(mask)


@given(bool_masks(min_masks=1, max_masks=1))
@some
def test_polygons_of_any_mask_fill_to_it(masks):
    check_polygons(masks[0])


def check_simple_polygons(mask):
    polygons = mask_polygons(mask, connectivity=4)
    rings = [ring for polygon in polygons for ring in (polygon.exterior, *polygon.holes)]
    np.testing.assert_array_equal(
        np.sum([filled([r], *mask.shape)[1] * np.sign(signed_area(r)) for r in rings], 0), mask
    )
    assert len(polygons) == len(pieces_of(mask, 4))
    for ring in rings:
        assert len(np.unique(ring, axis=0)) == len(ring), "a ring that touches itself is no valid geometry"
        assert ring[0, 1] == ring[1, 1], "it starts along a row"
    assert all(signed_area(polygon.exterior) > 0 for polygon in polygons)
    assert all(signed_area(hole) < 0 for polygon in polygons for hole in polygon.holes)
    tops = [polygon.exterior[0, 1] for polygon in polygons]
    assert tops == sorted(tops)


@pytest.mark.parametrize("mask", [*SHAPES.values(), drawn(".###", "##.#", "#.##", "###.")])
def test_polygons_of_four_neighbours_never_touch_themselves(mask):
    check_simple_polygons(mask)


@given(bool_masks(min_masks=1, max_masks=1))
@some
def test_polygons_of_four_neighbours_of_any_mask_never_touch_themselves(masks):
    check_simple_polygons(masks[0])


def test_the_outline_of_a_pixel_runs_along_its_edges_clockwise():
    (polygon,) = mask_polygons(drawn("...", "..#"))
    assert polygon.exterior.tolist() == [[2, 1], [3, 1], [3, 2], [2, 2]]
    assert polygon.holes == ()


def test_a_stack_of_masks_has_no_polygons():
    with pytest.raises(ValueError, match=r"expected one bool mask \(height, width\), got bool of shape \(1, 2, 3\)"):
        mask_polygons(np.ones((1, 2, 3), bool))
