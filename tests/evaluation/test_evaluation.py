"""Clicks, IoU and the readers of the evaluation."""

import numpy as np
import pytest
from PIL import Image

from masklet.errors import PictureError
from masklet.evaluation.clicks import centre_click, squared_border_distances
from masklet.evaluation.folder import read_folder
from masklet.evaluation.measure import ObjectScore, box_of, mask_iou, roughen, summarise


@pytest.mark.parametrize("seed", range(6))
def test_distances_to_the_border_agree_with_a_search_of_all_pixels(seed):
    rng = np.random.default_rng(seed)
    mask = rng.random((9, 13)) < 0.9
    outside = np.argwhere(~np.pad(mask, 1)) - 1
    places = np.argwhere(np.ones_like(mask))
    nearest = ((places[:, None] - outside) ** 2).sum(-1).min(1).reshape(mask.shape)
    assert np.array_equal(squared_border_distances(mask), nearest)


def test_the_click_is_in_the_middle_of_a_disc_and_in_the_thick_part_of_a_spoon():
    y, x = np.mgrid[:60, :80]
    disc = (x - 30) ** 2 + (y - 20) ** 2 <= 15**2
    assert centre_click(disc) == (30, 20)
    handle = (abs(y - 20) <= 1) & (x >= 30)
    assert centre_click(disc | handle) == (30, 20)


def test_the_click_avoids_a_hole():
    ring = np.zeros((21, 21), bool)
    ring[2:19, 2:19] = True
    ring[6:15, 6:15] = False
    x, y = centre_click(ring)
    assert ring[int(y), int(x)]


def test_a_click_on_one_pixel_hits_it():
    mask = np.zeros((5, 7), bool)
    mask[4, 6] = True
    assert centre_click(mask) == (6, 4)


def test_iou_by_hand():
    one, other, nothing = np.array([[1, 1, 0]], bool), np.array([[0, 1, 1]], bool), np.zeros((1, 3), bool)
    assert mask_iou(one, other) == pytest.approx(1 / 3)
    assert mask_iou(one, one) == 1
    assert mask_iou(one, nothing) == mask_iou(nothing, nothing) == 0


def test_the_box_of_a_mask_ends_behind_its_last_pixel():
    mask = np.zeros((5, 7), bool)
    mask[1:3, 2:6] = True
    assert box_of(mask) == (2, 1, 6, 3)


def test_a_rough_mask_is_blocky_and_near():
    y, x = np.mgrid[:100, :120]
    disc = (x - 50) ** 2 + (y - 45) ** 2 <= 30**2
    rough = roughen(disc)
    assert 0.8 < mask_iou(rough, disc) < 0.97
    assert np.array_equal(rough[:96, :120], rough[:96:6, :120:6].repeat(6, 0).repeat(6, 1))


def test_an_object_too_thin_for_the_brush_stays_as_it_is():
    line = np.zeros((50, 50), bool)
    line[20, 5:45] = True
    assert np.array_equal(roughen(line), line)


def test_means_are_over_objects():
    one, other = (0.5, 0.6, 1.0, 0.9, 0.8, 0.7), (0.7, 0.8, 0.0, 0.9, 0.8, 0.7)
    means = summarise([ObjectScore("a", 1, *one), ObjectScore("a", 2, *other)])
    assert means.pop("objects") == 2
    assert list(means.values()) == pytest.approx([0.6, 0.7, 0.5, 0.9, 0.8, 0.7])
    assert list(means) == ["one_click", "oracle_click", "box", "rough", "rough_box", "rough_mask"]
    with pytest.raises(ValueError, match="no picture has an object"):
        summarise([])


@pytest.fixture
def folder(tmp_path):
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    Image.new("RGB", (6, 4), "red").save(tmp_path / "images/one.jpg")
    mask = Image.new("P", (6, 4))
    mask.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    mask.putpixel((5, 1), 2)
    mask.save(tmp_path / "masks/one.png")
    return tmp_path


def test_a_folder_is_read_with_its_palette_masks(folder):
    (example,) = read_folder(folder)
    assert example.name == "one"
    assert example.picture.shape == (4, 6, 3)
    assert np.argwhere(example.labels == 2).tolist() == [[1, 5]]


def test_what_is_wrong_with_a_folder_is_said(folder):
    Image.new("P", (5, 4)).save(folder / "masks/one.png")
    with pytest.raises(PictureError, match="expected \\(4, 6\\)"):
        list(read_folder(folder))
    (folder / "masks/one.png").unlink()
    with pytest.raises(PictureError, match="has no mask"):
        list(read_folder(folder))
    with pytest.raises(PictureError, match="no pictures"):
        list(read_folder(folder / "masks"))
