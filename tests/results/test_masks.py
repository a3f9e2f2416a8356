import os
import re
import sys
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from mask_results import any_masks, assert_fields_equal, few_examples, rectangles
from PIL import Image

from masklet.results import Masks
from masklet.results.visualisation import PALETTE


def test_an_index_gives_masks(three):
    bools, numbers = np.array([True, False, True]), np.array([2, 0])
    for index, expected in [
        (1, [1]),
        (-1, [2]),
        (np.int64(0), [0]),
        (slice(1, None), [1, 2]),
        ([0, 2], [0, 2]),
        (bools, [0, 2]),
        (numbers, [2, 0]),
        ([], []),
    ]:
        chosen = three[index]
        assert isinstance(chosen, Masks)
        for name in ("masks", "logits", "iou_scores", "object_ids"):
            np.testing.assert_array_equal(getattr(chosen, name), getattr(three, name)[expected])


def test_an_index_keeps_the_image():
    image = np.zeros((6, 8, 3), np.uint8)
    assert rectangles((0, 0, 1, 1), image=image)[0].image.base is image


@pytest.mark.parametrize("index", [3, -4, np.ones(5, bool)])
def test_an_index_beyond_the_masks_is_refused(three, index):
    with pytest.raises(IndexError):
        three[index]


def test_iterating_gives_masks_one_by_one(three):
    ones = list(three)
    assert [len(one) for one in ones] == [1, 1, 1]
    assert [one.iou_scores[0] for one in ones] == three.iou_scores.tolist()


def test_boxes_and_areas_of_rectangles(three):
    np.testing.assert_array_equal(three.boxes, [(0, 0, 3, 2), (1, 1, 4, 5), (5, 0, 8, 6)])
    np.testing.assert_array_equal(three.areas, [6, 12, 18])


def test_masks_are_immutable(three):
    with pytest.raises(FrozenInstanceError):
        three.iou_scores = np.zeros(3, np.float32)
    with pytest.raises(ValueError, match="read-only"):
        three.masks[0] = True


def test_the_callers_arrays_stay_writable():
    masks = np.zeros((1, 2, 2), bool)
    Masks(masks, np.zeros((1, 1, 1), np.float32), np.zeros(1, np.float32), np.zeros(1, int))
    masks[0] = True


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"masks": np.zeros((2, 4, 4))}, "masks of shape (2, 4, 4), float64"),
        ({"masks": np.zeros((4, 4), bool)}, "masks of shape (4, 4), bool"),
        ({"logits": np.zeros((1, 2, 2), np.float32)}, "logits of shape (1, 2, 2), float32, do not fit"),
        (
            {"iou_scores": np.zeros(3, np.float32)},
            "iou_scores of shape (3,), float32, do not fit masks of shape (2, 4, 4)",
        ),
        ({"object_ids": np.zeros(2)}, "object_ids of shape (2,), float64"),
        ({"image": np.zeros((4, 5, 3), np.uint8)}, "an image of shape (4, 5, 3) does not fit masks of 4×4 pixels"),
    ],
)
def test_arrays_that_do_not_fit_each_other_are_refused(changed, message):
    arrays = {
        "masks": np.zeros((2, 4, 4), bool),
        "logits": np.zeros((2, 2, 2), np.float32),
        "iou_scores": np.zeros(2, np.float32),
        "object_ids": np.zeros(2, int),
    }
    with pytest.raises(ValueError, match=re.escape(message)):
        Masks(**(arrays | changed))


def test_repr_is_one_readable_line(three, nothing):
    assert repr(three) == "Masks(3 masks of 2 objects, 8×6, best score 0.80)"
    assert repr(three[0]) == "Masks(1 mask of 1 object, 8×6, best score 0.60)"
    assert repr(nothing) == "Masks(no masks, 8×6)"


@pytest.mark.parametrize("packed", [False, True])
def test_no_masks_work_everywhere(nothing, tmp_path, monkeypatch, packed):
    if packed:
        nothing = replace(Masks.from_coco([], size_hw=(6, 8), packed=True), image=nothing.image)
    assert len(nothing) == len(nothing[:5]) == len(list(nothing)) == 0
    assert nothing.boxes.shape == (0, 4)
    assert nothing.areas.shape == (0,)
    assert nothing.to_rle() == nothing.to_coco() == nothing.to_polygons() == []
    np.testing.assert_array_equal(nothing.overlay(), nothing.image)
    nothing.save(tmp_path / "nothing.png")
    np.testing.assert_array_equal(Image.open(tmp_path / "nothing.png"), np.zeros((6, 8)))
    assert len(Masks.from_png(tmp_path / "nothing.png")) == 0
    np.testing.assert_array_equal(nothing.index_map(by_object=True), np.zeros((6, 8)))
    nothing.save(tmp_path / "nothing.json")
    assert (tmp_path / "nothing.json").read_text() == "[]"
    nothing.save(tmp_path / "nothing.svg")
    assert "<path" not in (tmp_path / "nothing.svg").read_text()
    cleaned = nothing.clean(smooth_px=1, fill_holes=3, remove_islands=3, keep_largest=True)
    assert cleaned.masks.shape == (0, 6, 8)
    assert nothing.to_geojson()["features"] == nothing.to_labelme("a.jpg")["shapes"] == []
    assert nothing.to_yolo() == ""
    monkeypatch.setitem(sys.modules, "pandas", SimpleNamespace(DataFrame=dict))
    assert {name: len(column) for name, column in nothing.to_pandas().items()} == dict.fromkeys(
        ("object_id", "score", "area", "x0", "y0", "x1", "y1", "segmentation"), 0
    )
    monkeypatch.setitem(sys.modules, "supervision", SimpleNamespace(Detections=SimpleNamespace))
    detections = nothing.to_supervision()
    assert (detections.xyxy.shape, detections.mask.shape) == ((0, 4), (0, 6, 8))
    assert "no masks" in nothing._repr_html_()
    with pytest.raises(ValueError, match="there is nothing to cut out: all masks are empty"):
        nothing.cutout()
    if not packed:
        assert nothing.without_overlap().masks.shape == (0, 6, 8)
        nothing.save(tmp_path / "nothing.npz")
        assert Masks(**np.load(tmp_path / "nothing.npz")).masks.shape == (0, 6, 8)


def test_an_empty_mask_works_everywhere(tmp_path):
    empty = rectangles((0, 0, 0, 0), image=np.full((6, 8, 3), 9, np.uint8))
    assert empty.to_polygons() == [[]]
    assert empty.to_coco()[0]["bbox"] == [0, 0, 0, 0]
    np.testing.assert_array_equal(empty.overlay(), empty.image)
    empty.save(tmp_path / "empty.png")
    assert not np.array(Image.open(tmp_path / "empty.png")).any()


def test_a_mask_of_one_pixel_works_everywhere(tmp_path):
    dot = rectangles((0, 0, 1, 1), size_hw=(1, 1), image=np.full((1, 1, 3), 100, np.uint8))
    assert dot.to_polygons()[0][0].exterior.tolist() == [[0, 0], [1, 0], [1, 1], [0, 1]]
    assert dot.overlay(alpha=1).getpixel((0, 0)) == tuple(PALETTE[0])
    dot.save(tmp_path / "dot.png")
    assert Image.open(tmp_path / "dot.png").getpixel((0, 0)) == 255


def test_cleaning_and_without_overlap_change_the_masks_only(three):
    cleaned = three.clean(remove_islands=3, keep_largest=True)
    np.testing.assert_array_equal(cleaned.masks, three.masks)
    apart = three.without_overlap()
    np.testing.assert_array_equal(apart.masks.sum(0), three.masks.any(0))
    for masks in (cleaned, apart):
        assert masks.object_ids.tolist() == three.object_ids.tolist()
        np.testing.assert_array_equal(masks.logits, three.logits)
    np.testing.assert_array_equal(apart.masks[1], three.masks[1])  # its logits are higher than those of the first
    assert len(three[:0].without_overlap()) == 0


@given(any_masks())
@few_examples
def test_packed_masks_export_like_unpacked_ones(tmp_path, masks):
    height, width = masks.masks.shape[1:]
    masks = replace(masks, image=np.full((height, width, 3), 90, np.uint8))
    packed = replace(Masks.from_coco(masks.to_coco(), size_hw=(height, width), packed=True), image=masks.image)
    assert repr(packed) == repr(masks)
    assert_fields_equal(masks, packed, "masks", "iou_scores", "object_ids", "boxes", "areas")
    assert_fields_equal(masks[::-1], packed[::-1], "masks", "iou_scores", "object_ids")
    assert_fields_equal(masks.clean(remove_islands=3), packed.clean(remove_islands=3), "masks")
    for ids in (False, True):
        np.testing.assert_array_equal(packed.overlay(ids=ids), masks.overlay(ids=ids))
    for by_object in (False, True):
        np.testing.assert_array_equal(packed.index_map(by_object=by_object), masks.index_map(by_object=by_object))
    if masks.masks.any():
        np.testing.assert_array_equal(packed.cutout(), masks.cutout())
    assert packed.to_coco() == masks.to_coco()
    assert packed.to_geojson() == masks.to_geojson()
    assert packed.to_labelme("a.jpg") == masks.to_labelme("a.jpg")
    assert packed.to_yolo() == masks.to_yolo()
    assert list(map(len, packed.to_polygons())) == list(map(len, masks.to_polygons()))
    for one in (masks, packed):
        one.save(tmp_path / f"{type(one.masks).__name__}.svg")
    assert (tmp_path / "PackedMasks.svg").read_text() == (tmp_path / "ndarray.svg").read_text()


def test_what_packed_masks_cannot_do_is_refused(three, tmp_path):
    packed = Masks.from_coco(three.to_coco(), packed=True)
    with pytest.raises(ValueError, match="packed masks have no logits to decide which is on top"):
        packed.without_overlap()
    with pytest.raises(ValueError, match=re.escape("packed masks are saved as .png, .json or .svg: 'a.npz' would")):
        packed.save(tmp_path / "a.npz")
    assert os.listdir(tmp_path) == []
    with pytest.raises(ValueError, match="do not fill their size of 3×2 pixels"):
        Masks.from_coco([{"segmentation": {"size": [2, 3], "counts": "23"}}], packed=True)


def test_a_mask_of_the_whole_image_is_exported_exactly():
    whole = rectangles((0, 0, 8, 6), image=np.full((6, 8, 3), 9, np.uint8))
    assert (np.array(whole.overlay(alpha=1)) == PALETTE[0]).all(), "the border of the image is not outlined"
    assert whole.to_geojson()["features"][0]["geometry"]["coordinates"] == [[[0, 0], [8, 0], [8, 6], [0, 6], [0, 0]]]
    assert whole.to_yolo() == "0 0 0 1 0 1 1 0 1\n"


@pytest.mark.parametrize("suffix", ["png", "npz", "json", "svg"])
def test_an_error_of_a_full_disk_names_the_file(tmp_path, monkeypatch, suffix):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    monkeypatch.setattr(np, "savez_compressed", full)
    monkeypatch.setattr(Path, "write_text", full)
    path = tmp_path / f"m.{suffix}"
    with pytest.raises(OSError, match=f"No space left on device: '{path}'"):
        rectangles((1, 1, 3, 4)).save(path)
    assert not list(tmp_path.iterdir())
