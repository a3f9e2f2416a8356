import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from mask_shapes import bool_masks, few_examples

from masklet.masks import (
    box_nms,
    clean_masks,
    encode_rle,
    mask_areas,
    mask_boxes,
    mask_ious,
)


@given(bool_masks())
@few_examples
def test_boxes_and_areas_match_plain_loops(masks):
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
@few_examples
def test_ious_match_sets_of_pixels(pair):
    first, second = pair
    ious = mask_ious(first, second)
    assert ious.shape == (3, 2)
    for i, a in enumerate(first):
        for j, b in enumerate(second):
            union = (a | b).sum()
            np.testing.assert_allclose(ious[i, j], (a & b).sum() / union if union else 1, rtol=1e-6)
    np.testing.assert_array_equal(ious.T, mask_ious(second, first))


@given(
    st.lists(st.tuples(*[st.integers(0, 6)] * 4, st.integers(0, 3)), max_size=8),
    st.sampled_from([0, 1 / 3, 0.5, 0.75, 0.99, 1, 2]),
)
@few_examples
def test_suppression_keeps_what_overlaps_no_better_box_too_much(rows, threshold):
    boxes = np.array([(x, y, x + w, y + h) for x, y, w, h, _ in rows], np.float64).reshape(-1, 4)
    scores = np.array([score for *_, score in rows], np.float64)
    pixels = np.zeros((len(rows), 12, 12), bool)
    for inside, (x, y, w, h, _) in zip(pixels, rows, strict=True):
        inside[y : y + h, x : x + w] = True
    kept = []
    for index in sorted(range(len(rows)), key=lambda index: -scores[index]):
        pairs = [((pixels[index] & pixels[one]).sum(), (pixels[index] | pixels[one]).sum()) for one in kept]
        if threshold >= 1 or all(shared <= threshold * union for shared, union in pairs):
            kept.append(index)
    assert box_nms(boxes, scores, threshold).tolist() == kept


def test_an_empty_stack_has_no_ious():
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
def test_arrays_that_are_not_masks_are_refused(function, masks):
    with pytest.raises(
        ValueError, match=r"expected bool masks \(masks, height, width\), got \w+ of shape .*mask\[None\]"
    ):
        function(masks)
