import json
import tracemalloc

import numpy as np
import pycocotools.mask as coco
import pytest
from hypothesis import given
from mask_shapes import bool_masks, drawn, few_examples

from masklet.masks import (
    PackedMasks,
    decode_rle,
    encode_rle,
    join_rle,
    mask_areas,
    mask_boxes,
    mask_ious,
    text_rle,
    union,
)
from masklet.numbers import MAX_PIXELS


@given(bool_masks(min_masks=1, max_side=40))
@few_examples
def test_decoding_restores_the_encoded_masks(masks):
    runs = json.loads(json.dumps(encode_rle(masks)))
    decoded = decode_rle(runs)
    assert decoded.dtype == bool
    np.testing.assert_array_equal(decoded, masks)
    assert coco.area(runs).tolist() == mask_areas(masks).tolist()


def test_strings_are_those_of_coco():
    # By columns: one outside, two inside, one outside; and a mask that begins inside has a first run of 0.
    masks = np.stack([drawn(".#", "#."), drawn("##", "##")])
    assert encode_rle(masks) == [{"size": [2, 2], "counts": "121"}, {"size": [2, 2], "counts": "04"}]
    np.testing.assert_array_equal(decode_rle([{"size": [1, 3], "counts": "111"}]), [drawn(".#.")])


def test_an_empty_list_decodes_to_no_masks():
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


@given(bool_masks(max_side=20))
@few_examples
def test_packed_masks_read_like_the_array_they_represent(masks):
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


def test_more_than_255_packed_masks_have_boxes_areas_and_ious():
    masks = np.random.default_rng(0).random((300, 5, 4)) > 0.6
    packed = PackedMasks(encode_rle(masks), (5, 4))
    np.testing.assert_array_equal(mask_boxes(packed), mask_boxes(masks))
    np.testing.assert_array_equal(mask_areas(packed), mask_areas(masks))
    assert (np.diag(mask_ious(packed, packed)) == 1).all()


@given(bool_masks(min_masks=1, max_masks=5))
@few_examples
def test_joining_gives_the_union(masks):
    assert join_rle(encode_rle(masks)) == encode_rle(masks.any(0)[None])[0]


def test_masks_are_encoded_one_at_a_time():
    masks = np.random.default_rng(0).random((40, 100, 150)) > 0.5
    tracemalloc.start()
    runs = encode_rle(masks)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < sum(len(run["counts"]) for run in runs) + 10 * masks[0].nbytes < masks.nbytes
    assert runs == [text_rle(run) for run in coco.encode(np.asfortranarray(masks.transpose(1, 2, 0), np.uint8))]


def test_masks_of_more_pixels_than_run_lengths_count_are_refused():
    assert encode_rle(np.zeros((0, 1, MAX_PIXELS), bool)) == []
    with pytest.raises(ValueError, match=f"expected {MAX_PIXELS} pixels at most"):
        encode_rle(np.zeros((0, 2**16, 2**15), bool))


def test_packed_masks_say_how_many_and_how_large_they_are():
    assert repr(PackedMasks(encode_rle(np.ones((3, 5, 4), bool)), (5, 4))) == "PackedMasks(3 of 4×5)"
