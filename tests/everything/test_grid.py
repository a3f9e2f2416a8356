"""Points and crops of automatic masks."""

import numpy as np
import pytest

from masklet.errors import ImageError
from masklet.everything.grid import make_crops, make_grid
from masklet.everything.options import EverythingOptions


def test_points_are_the_centres_of_cells():
    assert make_grid(2).tolist() == [[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]]
    assert make_grid(1).tolist() == [[0.5, 0.5]]


@pytest.mark.parametrize("size_hw", [(48, 80), (333, 97), (16, 16), (1000, 1501)])
def test_crops_cover_the_image_and_overlap(size_hw):
    crops = make_crops(size_hw, EverythingOptions(crops=2))
    assert [c.layer for c in crops] == [0] + 4 * [1] + 16 * [2]
    for layer in range(3):
        covered = np.zeros(size_hw, int)
        for c in crops:
            assert 0 <= c.x0 < c.x1 <= size_hw[1]
            assert 0 <= c.y0 < c.y1 <= size_hw[0]
            covered[c.place] += c.layer == layer
        assert covered.min() == 1
        assert covered.max() == (1, 4, 4)[layer]


def test_an_image_may_be_one_pixel_but_not_cut_into_crops(sam):
    pixel = np.full((1, 1, 3), 200, np.uint8)
    masks = sam.everything(pixel, points_per_side=2, iou_threshold=0, stability_threshold=0)
    assert masks.masks.shape[1:] == (1, 1)
    with pytest.raises(ImageError) as caught:
        sam.everything(pixel, crops=1)
    assert str(caught.value) == (
        "an image of 1×1 pixels cannot be cut into 2 by 2 crops: expected fewer layers than crops=1, or a larger image"
    )
