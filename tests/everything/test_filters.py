"""The filters of automatic masks, one by one."""

import numpy as np
import pytest
import torch
from everything_reference import without_small_regions as reference_without_small_regions

from masklet.everything import filters
from masklet.everything.filters import (
    Candidates,
    distinct_after_cleaning,
    distinct_between_crops,
    distinct_in_crop,
    is_cut,
    stable_masks,
    without_small_regions,
)
from masklet.everything.grid import make_crops
from masklet.everything.options import EverythingOptions
from masklet.masks import box_nms, stability_scores, upscale_logits


def test_masks_are_stable_and_not_empty_at_the_size_of_the_image(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(40, 4, 4, generator=generator)
    logits[7] = -5  # stable, since it is empty at both cut-offs
    logits = upscale_logits(logits, (16, 16))
    upscaled = upscale_logits(logits, (48, 80))
    scores = stability_scores(upscaled)
    options = EverythingOptions(stability_threshold=float(scores.median()))
    expected = [i for i in range(40) if scores[i] >= options.stability_threshold and (upscaled[i] > 0).any()]
    assert 10 < len(expected) < 30
    for elements in (filters.CPU_ELEMENTS, 1):  # one chunk or many
        monkeypatch.setattr(filters, "CPU_ELEMENTS", elements)
        kept, boxes, stability = stable_masks(logits, (48, 80), options)
        assert kept.tolist() == expected
        np.testing.assert_array_equal(stability, scores[kept])
        for mask, (x0, y0, x1, y1) in zip(upscaled[kept] > 0, boxes.astype(int), strict=True):
            assert mask[y0:y1, x0:x1].sum() == mask.sum()
            assert all(edge.any() for edge in (mask[y0], mask[y1 - 1], mask[:, x0], mask[:, x1 - 1]))


def test_a_mask_is_cut_where_its_crop_ends_inside_the_image():
    (crop,) = (c for c in make_crops((600, 900), EverythingOptions(crops=1)) if c.layer and not c.x0 and not c.y0)
    boxes = np.array(
        [[0, 0, 100, 100], [100, 100, crop.x1, 200], [100, 100, 200, crop.y1 - 19], [100, 100, 200, crop.y1 - 30]]
    )
    assert is_cut(boxes, crop, (600, 900)).tolist() == [False, True, True, False]
    assert not is_cut(boxes, make_crops((600, 900), EverythingOptions())[0], (600, 900)).any()


def test_the_best_of_overlapping_boxes_is_kept():
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 8], [0, 0, 10, 7], [20, 0, 30, 10], [5, 5, 5, 5], [5, 5, 5, 5]])
    scores = np.array([0.5, 0.9, 0.4, 0.95, 0.1, 0.1])
    assert box_nms(boxes, scores, 0.7).tolist() == [3, 1, 4, 5]
    assert box_nms(boxes, scores, 0.8).tolist() == [3, 1, 0, 4, 5]
    assert box_nms(boxes, scores, 1.1).tolist() == [3, 1, 0, 2, 4, 5]
    assert box_nms(boxes[:0], scores[:0], 0.7).tolist() == []


def test_duplicates_of_lines_of_one_pixel_are_removed():
    lines = np.array([[0, 4, 50, 5], [1, 4, 50, 5], [0, 6, 50, 7], [7, 0, 8, 30], [7, 0, 8, 29]], np.float32)
    scores, crops = np.linspace(0.9, 0.5, 5, dtype=np.float32), np.zeros(5, int)
    candidates = Candidates(torch.zeros(5, 2, 2), scores, lines, crops, np.ones(5, np.float32), lines[:, :2])
    assert distinct_in_crop(candidates, EverythingOptions()).boxes.tolist() == lines[[0, 2, 3]].tolist()
    kept = distinct_between_crops(candidates, make_crops((60, 60), EverythingOptions()), EverythingOptions())
    assert kept.boxes.tolist() == lines[[0, 2, 3]].tolist()


def test_holes_are_those_of_the_reference_which_leak_through_corners():
    mask = np.zeros((9, 9), bool)
    mask[1:5, 1:5] = True
    mask[2, 2] = mask[3, 3] = mask[4, 4] = False  # connected to the outside through corners
    cleaned = without_small_regions(mask, EverythingOptions(min_area=4))
    np.testing.assert_array_equal(cleaned, reference_without_small_regions(mask, 4))
    np.testing.assert_array_equal(cleaned, mask)


@pytest.mark.parametrize(
    ("box_nms", "crop_nms", "kept"), [(0.7, 0.7, [1, 2]), (1.0, 0.7, [0, 1, 2]), (0.7, 1.0, [0, 1, 2])]
)
def test_a_mask_that_cleaning_left_unchanged_is_kept(box_nms, crop_nms, kept):
    boxes = np.array([[0, 0, 11, 11], [0, 0, 11, 10], [20, 0, 31, 11]], np.float32)
    options = EverythingOptions(box_nms=box_nms, crop_nms=crop_nms)
    assert distinct_after_cleaning(boxes, np.array([False, True, False]), options).tolist() == kept
