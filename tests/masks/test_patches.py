import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from mask_shapes import bool_masks, few_examples

from masklet.masks import (
    PackedMasks,
    Patch,
    encode_masks,
    encode_patch,
    encode_rle,
    mask_areas,
    mask_boxes,
    patches,
)


@given(bool_masks(min_masks=1, max_side=20), st.booleans())
@few_examples
def test_encoding_a_patch_matches_coco_on_the_whole_image(masks, packed):
    size_hw = masks.shape[1:]
    stack = PackedMasks(encode_rle(masks), size_hw) if packed else masks
    for patch, mask, rle in zip(patches(stack), masks, encode_rle(masks), strict=True):
        np.testing.assert_array_equal(mask[patch.place], patch.inside)
        assert patch.inside.sum() == mask.sum()
        assert encode_patch(patch, size_hw) == rle
        assert encode_masks(mask[None]) == [rle]
        (x0, y0), (height, width) = patch.corner_xy, patch.inside.shape
        assert [x0, y0, x0 + width, y0 + height] == mask_boxes(mask[None])[0].tolist()


def test_a_patch_of_a_gigapixel_image_survives_encoding():
    size_hw, inside = (30_000, 40_000), np.random.default_rng(0).random((50, 70)) > 0.4
    inside[[0, -1]] = inside[:, [0, -1]] = True
    place = np.s_[29_950:30_000, 39_930:40_000]
    packed = PackedMasks([encode_patch(Patch(place, inside), size_hw)], size_hw)
    assert mask_boxes(packed).tolist() == [[39_930, 29_950, 40_000, 30_000]]
    assert mask_areas(packed).tolist() == [inside.sum()]
    (patch,) = patches(packed)
    assert patch.place == place
    np.testing.assert_array_equal(patch.inside, inside)
