import base64
import io
import json
import os
import re
import sys
from base64 import b64encode
from collections import Counter
from dataclasses import FrozenInstanceError, replace
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, ImageFilter
from pycocotools.coco import COCO

from masklet.errors import ImageError
from masklet.masks import decode_rle
from masklet.results import Masks
from masklet.results.exporters import coco_data
from masklet.results.visualisation import PALETTE, colour_of, grow


def masks_of(*pieces, size_hw=(6, 8), iou_scores=None, object_ids=None, image=None):
    """Masks of rectangles (x0, y0, x1, y1)."""
    masks = np.zeros((len(pieces), *size_hw), bool)
    for mask, (x0, y0, x1, y1) in zip(masks, pieces, strict=True):
        mask[y0:y1, x0:x1] = True
    return Masks(
        masks,
        np.arange(len(pieces) * 4, dtype=np.float32).reshape(-1, 2, 2),
        np.linspace(0.5, 0.9, len(pieces), dtype=np.float32)
        if iou_scores is None
        else np.array(iou_scores, np.float32),
        np.arange(len(pieces)) if object_ids is None else np.array(object_ids),
        image,
    )


@pytest.fixture
def three():
    """Two candidates for object 7, then one mask of object 2."""
    return masks_of((0, 0, 3, 2), (1, 1, 4, 5), (5, 0, 8, 6), iou_scores=[0.6, 0.8, 0.7], object_ids=[7, 7, 2])


@pytest.fixture
def nothing():
    return masks_of(image=np.full((6, 8, 3), 9, np.uint8))


def test_an_index_gives_masks_again(three):
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
    assert masks_of((0, 0, 1, 1), image=image)[0].image.base is image


@pytest.mark.parametrize("index", [3, -4, np.ones(5, bool)])
def test_an_index_beyond_the_masks_is_refused(three, index):
    with pytest.raises(IndexError):
        three[index]


def test_iterating_gives_masks_of_one_each(three):
    ones = list(three)
    assert [len(one) for one in ones] == [1, 1, 1]
    assert [one.iou_scores[0] for one in ones] == three.iou_scores.tolist()


def test_boxes_and_areas_are_those_of_the_rectangles(three):
    np.testing.assert_array_equal(three.boxes, [(0, 0, 3, 2), (1, 1, 4, 5), (5, 0, 8, 6)])
    np.testing.assert_array_equal(three.areas, [6, 12, 18])


def test_best_is_the_highest_score_of_each_object_in_order_of_appearance(three):
    assert three.best.object_ids.tolist() == [7, 2]
    np.testing.assert_array_equal(three.best.iou_scores, three.iou_scores[[1, 2]])
    np.testing.assert_array_equal(three.best.masks, three.masks[[1, 2]])


def test_best_of_equal_scores_is_the_first():
    masks = masks_of((0, 0, 1, 1), (0, 0, 2, 2), (0, 0, 3, 3), iou_scores=[0.5, 0.5, 0.5], object_ids=[1, 1, 0])
    assert masks.best.areas.tolist() == [1, 9]


def test_masks_cannot_be_changed(three):
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


def test_repr_is_one_line_a_person_can_read(three, nothing):
    assert repr(three) == "Masks(3 masks of 2 objects, 8×6, best score 0.80)"
    assert repr(three[0]) == "Masks(1 mask of 1 object, 8×6, best score 0.60)"
    assert repr(nothing) == "Masks(no masks, 8×6)"


def test_no_masks_work_everywhere(nothing, tmp_path):
    assert len(nothing) == len(nothing.best) == len(nothing[:5]) == len(list(nothing)) == 0
    assert nothing.boxes.shape == (0, 4)
    assert nothing.areas.shape == (0,)
    assert nothing.to_rle() == nothing.to_coco() == nothing.to_polygons() == []
    np.testing.assert_array_equal(nothing.overlay(), nothing.image)
    nothing.save(tmp_path / "nothing.png")
    np.testing.assert_array_equal(Image.open(tmp_path / "nothing.png"), np.zeros((6, 8)))


def test_an_empty_mask_works_everywhere(tmp_path):
    empty = masks_of((0, 0, 0, 0), image=np.full((6, 8, 3), 9, np.uint8))
    assert empty.to_polygons() == [[]]
    assert empty.to_coco()[0]["bbox"] == [0, 0, 0, 0]
    np.testing.assert_array_equal(empty.overlay(), empty.image)
    empty.save(tmp_path / "empty.png")
    assert not np.array(Image.open(tmp_path / "empty.png")).any()


def test_a_mask_of_one_pixel_works_everywhere(tmp_path):
    dot = masks_of((0, 0, 1, 1), size_hw=(1, 1), image=np.full((1, 1, 3), 100, np.uint8))
    assert dot.to_polygons()[0][0].exterior.tolist() == [[0, 0], [1, 0], [1, 1], [0, 1]]
    assert dot.overlay(alpha=1).getpixel((0, 0)) == tuple(PALETTE[0])
    dot.save(tmp_path / "dot.png")
    assert Image.open(tmp_path / "dot.png").getpixel((0, 0)) == 255


# Overlay


@pytest.fixture
def square():
    return masks_of((20, 20, 60, 60), size_hw=(80, 100), object_ids=[3], image=np.full((80, 100, 3), 200, np.uint8))


def test_an_overlay_fills_inside_outlines_light_and_dark_and_leaves_the_rest(square):
    image = np.array(square.overlay(alpha=0.5))
    colour = PALETTE[3].astype(int)
    np.testing.assert_allclose(image[40, 40], (200 + colour) / 2, atol=1)
    assert image[20, 40].min() >= 191
    np.testing.assert_array_equal(image[19, 40], [66, 66, 66])
    np.testing.assert_array_equal(image[18, 40], [200, 200, 200])
    assert np.array_equal(square.image, np.full((80, 100, 3), 200))


def test_without_alpha_an_overlay_is_contours_alone(square):
    image = np.array(square.overlay(alpha=0))
    np.testing.assert_array_equal(image[22:58, 22:58], square.image[22:58, 22:58])
    assert (image[20, 40] != 200).any()


def test_contours_grow_with_the_image():
    image = np.full((100, 1800, 3), 200, np.uint8)
    painted = np.array(masks_of((50, 20, 90, 80), size_hw=(100, 1800)).overlay(image, alpha=0))
    assert [bool((painted[50, x] != 200).any()) for x in range(45, 55)] == [False] * 2 + [True] * 6 + [False] * 2


def test_the_smallest_mask_is_painted_last_and_fills_do_not_mix():
    image = np.zeros((40, 40, 3), np.uint8)
    small, large = (15, 15, 25, 25), (0, 0, 40, 40)
    for pieces, objects in [((small, large), [0, 1]), ((large, small), [1, 0])]:
        painted = masks_of(*pieces, size_hw=(40, 40), object_ids=objects).overlay(image, alpha=1)
        assert painted.getpixel((20, 20)) == tuple(PALETTE[0])
        assert painted.getpixel((5, 5)) == tuple(PALETTE[1])


def test_an_overlay_can_be_painted_on_another_image(square):
    black = Image.new("L", (100, 80))
    assert square.overlay(black, alpha=0.5).getpixel((90, 5)) == (0, 0, 0)


def test_objects_keep_their_colours_and_neighbours_differ():
    assert len(np.unique(PALETTE, axis=0)) == len(PALETTE)
    np.testing.assert_array_equal(colour_of(np.array([0, 5, 12, 300, -1])), PALETTE[[0, 5, 0, 0, 11]])


@pytest.mark.parametrize("alpha", [-0.1, 1.5, float("nan")])
def test_an_alpha_out_of_range_is_refused(square, alpha):
    with pytest.raises(ValueError, match="alpha must be from 0 "):
        square.overlay(alpha=alpha)


def test_an_overlay_without_an_image_says_to_pass_one(three):
    with pytest.raises(ValueError, match=re.escape("without their image: pass it, overlay('truck.jpg')")):
        three.overlay()


def test_an_overlay_on_an_image_of_another_size_is_refused(three):
    with pytest.raises(ValueError, match=re.escape("shape (8, 6, 3) does not fit masks of 8×6 pixels")):
        three.overlay(np.zeros((8, 6, 3), np.uint8))


def test_grow_reaches_as_far_along_rows_as_along_columns_and_less_far_across():
    dot = np.zeros((15, 15), bool)
    dot[7, 7] = True
    for by_px in range(6):
        grown = grow(dot, by_px)
        reach = [np.flatnonzero(line).tolist() for line in (grown[7], grown[:, 7])]
        assert reach == [list(range(7 - by_px, 8 + by_px))] * 2
        assert grown[7 + by_px, 7 + by_px] == (by_px == 0)
    assert grow(dot, 5).sum() < 11 * 11


# Files


def test_one_mask_is_saved_black_and_white(three, tmp_path):
    three[0].save(tmp_path / "one.png")
    image = Image.open(tmp_path / "one.png")
    assert image.mode == "L"
    np.testing.assert_array_equal(image, three.masks[0] * 255)


def test_several_masks_are_saved_by_number_with_the_higher_score_on_top(three, tmp_path):
    three.save(tmp_path / "several.png")
    image = Image.open(tmp_path / "several.png")
    assert image.mode == "P"
    expected = np.zeros((6, 8), int)
    expected[0:2, 0:3] = 1
    expected[1:5, 1:4] = 2
    expected[0:6, 5:8] = 3
    np.testing.assert_array_equal(image, expected)
    first, second = masks_of((0, 0, 4, 4), (0, 0, 2, 2), iou_scores=[0.9, 0.1]), tmp_path / "first.png"
    first.save(second)
    assert np.unique(Image.open(second)).tolist() == [0, 1]


def test_the_palette_of_a_file_is_that_of_the_overlay(three, tmp_path):
    three.save(tmp_path / "map.png")
    seen = Image.open(tmp_path / "map.png").convert("RGB")
    assert seen.getpixel((4, 0)) == (0, 0, 0)
    assert seen.getpixel((2, 3)) == tuple(PALETTE[7])
    assert seen.getpixel((6, 3)) == tuple(PALETTE[2])


@pytest.mark.parametrize(("count", "mode"), [(255, "P"), (256, "I;16"), (300, "I;16")])
def test_more_than_255_masks_take_16_bits(count, mode, tmp_path):
    columns = masks_of(*[(x, 0, x + 1, 1) for x in range(count)], size_hw=(1, count))
    columns.save(tmp_path / "many.png")
    image = Image.open(tmp_path / "many.png")
    assert image.mode == mode
    np.testing.assert_array_equal(np.array(image)[0], np.arange(1, count + 1))


def test_more_masks_than_16_bits_can_number_are_refused(tmp_path):
    count = 65536
    many = Masks(np.ones((count, 1, 1), bool), np.zeros((count, 1, 1), "f4"), np.zeros(count), np.zeros(count, int))
    with pytest.raises(ValueError, match="values from 1 to 65536 do not fit the 65535 values"):
        many.save(tmp_path / "many.png")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["mask.jpg", "mask", "mask.PNG.tmp"])
def test_another_suffix_is_refused_before_anything_is_written(three, tmp_path, name):
    with pytest.raises(ValueError, match=re.escape(f"masks are saved as .png, .npz, .json or .svg, not as {name!r}")):
        three.save(tmp_path / "folder" / name)
    assert os.listdir(tmp_path) == []


def test_save_makes_folders_and_takes_any_name(three, tmp_path):
    path = tmp_path / "a" / "b" / "máscara 掩码.PNG"
    three[0].save(str(path))
    assert os.listdir(path.parent) == [path.name]


def test_save_replaces_a_file_whole(three, tmp_path):
    three.save(tmp_path / "mask.png")
    three[2].save(tmp_path / "mask.png")
    np.testing.assert_array_equal(Image.open(tmp_path / "mask.png"), three.masks[2] * 255)
    assert os.listdir(tmp_path) == ["mask.png"]


def test_a_save_that_fails_leaves_the_old_file(three, tmp_path, monkeypatch):
    three[0].save(tmp_path / "mask.png")

    def save_half(image, path, format):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", save_half)
    with pytest.raises(OSError, match="No space left"):
        three[1].save(tmp_path / "mask.png")
    assert os.listdir(tmp_path) == ["mask.png"]
    np.testing.assert_array_equal(Image.open(tmp_path / "mask.png"), three.masks[0] * 255)


# COCO and polygons


def test_coco_instances_survive_json_and_load_in_pycocotools(three, capsys):
    instances = json.loads(json.dumps(three.to_coco(image_id=5, category_id=4)))
    assert instances[1]["bbox"] == [1, 1, 3, 4]
    assert instances[1]["area"] == 12
    assert instances[1]["score"] == pytest.approx(0.8)
    assert [instance["object_id"] for instance in instances] == [7, 7, 2]
    coco = COCO()
    coco.dataset = {
        "info": {},
        "images": [{"id": 5, "width": 8, "height": 6}],
        "categories": [{"id": 4, "name": "thing"}],
        "annotations": instances,
    }
    coco.createIndex()
    assert coco.getAnnIds(imgIds=5, catIds=4) == [1, 2, 3]
    runs = [coco.annToRLE(coco.anns[number]) for number in (1, 2, 3)]
    np.testing.assert_array_equal(decode_rle(runs), three.masks)
    assert len(coco.loadRes(instances).anns) == 3
    capsys.readouterr()  # pycocotools prints


def test_polygons_are_listed_mask_by_mask(three):
    polygons = three.to_polygons()
    assert [len(pieces) for pieces in polygons] == [1, 1, 1]
    assert polygons[0][0].exterior.tolist() == [[0, 0], [3, 0], [3, 2], [0, 2]]


def test_an_overlay_can_be_written_as_any_image(square):
    file = io.BytesIO()
    square.overlay().save(file, "JPEG")
    assert file.tell()


def test_ids_are_written_on_a_plate_inside_the_part_that_is_seen():
    large, small = (0, 0, 300, 60), (100, 0, 300, 60)
    masks = masks_of(large, small, size_hw=(60, 300), image=np.full((60, 300, 3), 240, np.uint8))
    changed = (np.array(masks.overlay(ids=True)) != np.array(masks.overlay())).any(2)
    pieces = np.flatnonzero(np.diff(np.pad(changed.any(0), 1).astype(int)))
    assert len(pieces) == 4, "two plates"
    assert pieces[1] < 100 < pieces[2], "one on each"
    assert abs(pieces[:2].mean() - 50) <= 1
    assert abs(pieces[2:].mean() - 200) <= 1


def test_ids_stay_within_the_image_even_if_it_is_small():
    corner = masks_of((0, 0, 1, 1), size_hw=(40, 60), object_ids=[70000], image=np.zeros((40, 60, 3), np.uint8))
    plate = np.array(corner.overlay(ids=True)).any(2)
    assert plate[:, -5:].sum() == 0
    assert plate[0].any()
    dot = masks_of((0, 0, 1, 1), size_hw=(1, 1), image=np.zeros((1, 1, 3), np.uint8))
    assert dot.overlay(ids=True).size == (1, 1)


# Cut-outs and notebooks


def test_a_cutout_is_the_image_under_all_masks_cropped_to_their_box(image):
    masks = masks_of((10, 5, 20, 15), (30, 8, 32, 40), size_hw=(48, 80), image=image)
    cutout = np.array(masks.cutout())
    together = masks.masks.any(0)[5:40, 10:32]
    assert cutout.shape == (35, 22, 4)
    np.testing.assert_array_equal(cutout[..., 3], together * 255)
    np.testing.assert_array_equal(cutout[together][:, :3], image[5:40, 10:32][together])
    assert not cutout[~together].any()
    np.testing.assert_array_equal(masks_of((10, 5, 20, 15), size_hw=(48, 80)).cutout(image), masks[0].cutout())


def test_a_cutout_needs_an_image_and_something_to_cut_out(three, nothing):
    with pytest.raises(ValueError, match=re.escape("without their image: pass it, cutout('truck.jpg')")):
        three.cutout()
    with pytest.raises(ValueError, match="nothing to cut out: no mask has a pixel"):
        nothing.cutout()


def test_a_notebook_shows_the_overlay_or_masks_on_black(square, three):
    shown = Image.open(io.BytesIO(square._repr_png_()))
    np.testing.assert_array_equal(shown, square.overlay())
    np.testing.assert_array_equal(
        Image.open(io.BytesIO(three._repr_png_())), three.overlay(np.zeros((6, 8, 3), np.uint8))
    )


def test_a_notebook_shows_a_table_of_the_objects_below(square, three, nothing):
    page = three._repr_html_()
    assert b64encode(three._repr_png_()).decode() in page
    assert page.count("<tr>") == 1 + len(three)
    x0, y0, x1, y1 = three.boxes[0]
    cells = (three.object_ids[0], f"{three.iou_scores[0]:.2f}", three.areas[0], f"{x0:g}, {y0:g}, {x1:g}, {y1:g}")
    assert "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>" in page
    assert repr(three) in page
    assert "<table>" not in nothing._repr_html_()
    many = square[[0] * 30]._repr_html_()
    assert many.count("<tr>") == 21
    assert "the first 20" in many


def test_a_notebook_is_spared_large_images():
    wide = masks_of((0, 0, 9, 9), size_hw=(20, 3000))
    assert Image.open(io.BytesIO(wide._repr_png_())).size == (1024, 7)


# Cleaning


def test_cleaning_and_parting_keep_all_but_the_masks(three):
    cleaned = three.clean(remove_islands=3, keep_largest=True)
    np.testing.assert_array_equal(cleaned.masks, three.masks)
    apart = three.without_overlap()
    np.testing.assert_array_equal(apart.masks.sum(0), three.masks.any(0))
    for masks in (cleaned, apart):
        assert masks.object_ids.tolist() == three.object_ids.tolist()
        np.testing.assert_array_equal(masks.logits, three.logits)
    np.testing.assert_array_equal(apart.masks[1], three.masks[1])  # its logits are higher than those of the first
    assert len(three[:0].without_overlap()) == 0


# There and back

some = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


@st.composite
def any_masks(draw, apart=False):
    """Masks of any pixels with objects beyond 255; ``apart``: none is empty and none overlap, objects ascend."""
    height, width, count = draw(st.integers(1, 9)), draw(st.integers(1, 9)), draw(st.integers(0, 4))
    if apart:
        numbers = draw(arrays(np.int64, (height, width), elements=st.integers(0, count)))
        masks = numbers == np.unique(numbers[numbers > 0])[:, None, None]
    else:
        masks = draw(arrays(bool, (count, height, width)))
    objects = sorted(draw(st.sets(st.integers(0, 65534), min_size=len(masks), max_size=len(masks))))
    return Masks(
        masks,
        np.zeros((len(masks), 2, 2), np.float32),
        np.linspace(0.25, 1, len(masks), dtype=np.float32),
        np.array(objects, int),
    )


def same(first, second, *names):
    for name in names:
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))


@given(any_masks())
@some
def test_masks_return_from_coco(masks):
    size_hw = masks.masks.shape[1:]
    instances = json.loads(json.dumps(masks.to_coco()))
    returned = Masks.from_coco(instances, size_hw=size_hw)
    same(masks, returned, "masks", "iou_scores", "object_ids")
    assert Masks.from_coco([], size_hw=size_hw).masks.shape == (0, *size_hw)
    if len(masks):
        same(masks, Masks.from_coco(instances), "masks")


@given(any_masks())
@some
def test_packed_masks_leave_by_every_way_as_the_others_do(tmp_path, masks):
    height, width = masks.masks.shape[1:]
    masks = replace(masks, image=np.full((height, width, 3), 90, np.uint8))
    packed = replace(Masks.from_coco(masks.to_coco(), size_hw=(height, width), packed=True), image=masks.image)
    assert repr(packed) == repr(masks)
    same(masks, packed, "masks", "iou_scores", "object_ids", "boxes", "areas")
    same(masks[::-1], packed[::-1], "masks", "iou_scores", "object_ids")
    same(masks.best, packed.best, "masks", "object_ids")
    same(masks.clean(remove_islands=3), packed.clean(remove_islands=3), "masks")
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


def test_packed_masks_say_what_they_cannot(three, tmp_path):
    packed = Masks.from_coco(three.to_coco(), packed=True)
    with pytest.raises(ValueError, match="packed masks have no logits to tell which is on top"):
        packed.without_overlap()
    with pytest.raises(ValueError, match=re.escape("packed masks are saved as .png, .json or .svg, not as 'a.npz'")):
        packed.save(tmp_path / "a.npz")
    assert os.listdir(tmp_path) == []
    with pytest.raises(ValueError, match="do not fill their size of 3×2 pixels"):
        Masks.from_coco([{"segmentation": {"size": [2, 3], "counts": "23"}}], packed=True)


@given(any_masks(apart=True))
@some
def test_masks_return_from_a_png_with_their_objects(tmp_path, masks):
    masks.save(tmp_path / "objects.png", by_object=True)
    same(masks, Masks.from_png(tmp_path / "objects.png"), "masks", "object_ids")
    masks.save(tmp_path / "masks.png")
    returned = Masks.from_png(tmp_path / "masks.png")
    same(masks, returned, "masks")
    assert returned.object_ids.tolist() == list(range(len(masks)))
    assert returned.iou_scores.tolist() == [1] * len(masks)


@given(any_masks())
@some
def test_masks_return_from_npz(tmp_path, masks):
    masks.save(tmp_path / "masks.npz")
    same(masks, Masks(**np.load(tmp_path / "masks.npz")), "masks", "logits", "iou_scores", "object_ids")


def even_odd(rings, size_hw):
    """(height, width) bool: pixels whose centre has an odd number of edges to its left."""
    y, x = np.mgrid[: size_hw[0], : size_hw[1]] + 0.5
    edges = Counter((tuple(a), tuple(b)) for ring in rings for a, b in zip(ring, [*ring[1:], ring[0]], strict=True))
    crossings = np.zeros(size_hw, int)
    for ((x0, y0), (x1, y1)), count in edges.items():
        if y0 != y1 and not edges[(x1, y1), (x0, y0)]:  # ways there and back cancel
            crossings += count * ((min(y0, y1) < y) & (y < max(y0, y1)) & (x > x0 + (y - y0) * (x1 - x0) / (y1 - y0)))
    return crossings % 2 == 1


def outlines(feature):
    """Polygons of a GeoJSON Feature."""
    match feature["geometry"]:
        case None:
            return []
        case {"type": "Polygon", "coordinates": polygon}:
            return [polygon]
        case {"type": "MultiPolygon", "coordinates": polygons}:
            return polygons


def signed_area(ring):
    """Positive where a ring runs against the clock, y up."""
    x, y = np.array(ring).T
    return (x[:-1] * y[1:] - x[1:] * y[:-1]).sum() / 2


@given(any_masks(), st.sampled_from([None, (0.5, 0, 100, 0, -0.5, 900), (0, 2, 3, 2, 0, 5), (3, 1, 0, 1, 2, 0)]))
@some
def test_geojson_fills_to_the_masks_by_the_right_hand_rule(masks, transform):
    collection = json.loads(json.dumps(masks.to_geojson(transform)))
    assert collection["type"] == "FeatureCollection"
    a, b, c, d, e, f = transform or (1, 0, 0, 0, 1, 0)
    back = np.linalg.inv([[a, b], [d, e]])
    for feature, mask in zip(collection["features"], masks.masks, strict=True):
        polygons = outlines(feature)
        assert feature["properties"]["area"] == mask.sum()
        ground_area = sum(signed_area(ring) for polygon in polygons for ring in polygon)
        assert ground_area == pytest.approx(mask.sum() * abs(a * e - b * d))
        for exterior, *holes in polygons:
            assert signed_area(exterior) > 0
            assert all(signed_area(hole) < 0 for hole in holes)
            assert all(ring[0] == ring[-1] and len(ring) >= 5 for ring in (exterior, *holes))
        rings = [np.rint((np.array(r[:-1]) - (c, f)) @ back.T).tolist() for polygon in polygons for r in polygon]
        np.testing.assert_array_equal(even_odd(rings, mask.shape), mask)


@given(any_masks())
@some
def test_yolo_lines_fill_to_the_masks_that_are_not_empty(masks):
    lines = masks.to_yolo(class_id=7).splitlines()
    full = [mask for mask in masks.masks if mask.any()]
    for line, mask in zip(lines, full, strict=True):
        class_id, *numbers = line.split(" ")
        assert class_id == "7"
        shares = np.array(numbers, float).reshape(-1, 2)
        assert shares.min() >= 0
        assert shares.max() <= 1
        ring = np.rint(shares * mask.shape[::-1]).tolist()
        np.testing.assert_array_equal(even_odd([ring], mask.shape), mask)


@given(any_masks())
@some
def test_labelme_shapes_fill_to_the_masks(masks):
    page = json.loads(json.dumps(masks.to_labelme("truck.jpg", label="cat")))
    height, width = masks.masks.shape[1:]
    assert (page["imagePath"], page["imageHeight"], page["imageWidth"]) == ("truck.jpg", height, width)
    painted = {object_id: np.zeros((height, width), bool) for object_id in masks.object_ids.tolist()}
    for shape in page["shapes"]:
        assert shape["label"] == "cat"
        into = painted[shape["group_id"]]
        if shape["shape_type"] == "polygon":
            into ^= even_odd([shape["points"]], (height, width))
        else:
            (x0, y0), (x1, y1) = np.array(shape["points"]).astype(int)
            into[y0 : y1 + 1, x0 : x1 + 1] |= np.array(Image.open(io.BytesIO(base64.b64decode(shape["mask"]))))
    for object_id, mask in zip(masks.object_ids.tolist(), masks.masks, strict=True):
        np.testing.assert_array_equal(painted[object_id], mask)


@given(any_masks())
@some
def test_an_svg_has_a_path_for_each_mask_that_fills_to_it(tmp_path, masks):
    masks.save(tmp_path / "masks.svg")
    height, width = masks.masks.shape[1:]
    svg = ElementTree.parse(tmp_path / "masks.svg").getroot()
    assert svg.get("viewBox") == f"0 0 {width} {height}"
    paths = {path.get("id"): path for path in svg}
    assert set(paths) == {f"mask-{i}" for i, area in enumerate(masks.areas) if area}
    sizes = [masks.areas[int(name.removeprefix("mask-"))] for name in paths]
    assert sizes == sorted(sizes, reverse=True)
    for name, path in paths.items():
        i = int(name.removeprefix("mask-"))
        assert path.get("fill-rule") == "evenodd"
        assert path.get("data-object") == str(masks.object_ids[i])
        assert bytes.fromhex(path.get("fill")[1:]) == colour_of(masks.object_ids[i]).tobytes()
        rings = []
        for step, x, y in re.findall(r"([MHV])(\d+)(?: (\d+))?", path.get("d")):
            if step == "M":
                rings.append([(int(x), int(y))])
            else:
                before = rings[-1][-1]
                rings[-1].append((int(x), before[1]) if step == "H" else (before[0], int(x)))
        np.testing.assert_array_equal(even_odd(rings, (height, width)), masks.masks[i])


def test_the_json_file_is_the_list_of_coco(three, tmp_path):
    three.save(tmp_path / "masks.json")
    assert json.loads((tmp_path / "masks.json").read_text()) == three.to_coco()


@pytest.mark.parametrize("suffix", [".png", ".npz", ".json", ".svg"])
def test_every_kind_of_file_takes_any_name_no_masks_and_one_pixel(nothing, tmp_path, suffix):
    nothing.save(tmp_path / f"nada ñ 掩码{suffix}")
    dot = masks_of((0, 0, 1, 1), size_hw=(1, 1), object_ids=[300])
    dot.save(tmp_path / f"🐕{suffix.upper()}")
    assert len(os.listdir(tmp_path)) == 2


def test_masks_at_every_border_leave_as_they_are():
    whole = masks_of((0, 0, 8, 6), image=np.full((6, 8, 3), 9, np.uint8))
    assert (np.array(whole.overlay(alpha=1)) == PALETTE[0]).all(), "the border of the image is no outline"
    assert whole.to_geojson()["features"][0]["geometry"]["coordinates"] == [[[0, 0], [8, 0], [8, 6], [0, 6], [0, 0]]]
    assert whole.to_yolo() == "0 0 0 1 0 1 1 0 1\n"


@pytest.mark.parametrize(
    ("objects", "mode", "values"), [([0, 254], "P", [1, 255]), ([0, 255], "I;16", [1, 256]), ([3], "P", [4])]
)
def test_a_png_by_object_has_their_numbers_from_1(tmp_path, objects, mode, values):
    masks = masks_of(*[(x, 0, x + 1, 6) for x in range(len(objects))], object_ids=objects)
    masks.save(tmp_path / "objects.png", by_object=True)
    image = Image.open(tmp_path / "objects.png")
    assert image.mode == mode
    assert np.unique(image).tolist() == [0, *values]
    if mode == "P":
        assert image.convert("RGB").getpixel((0, 0)) == tuple(colour_of(objects[0]))


@pytest.mark.parametrize(("object_id", "shown"), [(65535, "values from 65536 to 65536"), (-1, "values from 0 to 0")])
def test_objects_that_16_bits_cannot_number_are_refused(tmp_path, object_id, shown):
    with pytest.raises(ValueError, match=shown + " do not fit the 65535 values of a 16-bit PNG"):
        masks_of((0, 0, 1, 1), object_ids=[object_id]).save(tmp_path / "objects.png", by_object=True)
    assert os.listdir(tmp_path) == []


def test_by_object_is_for_png_alone(three, tmp_path):
    with pytest.raises(ValueError, match=re.escape("by_object is about the pixels of a .png, and 'a.svg' is none")):
        three.save(tmp_path / "a.svg", by_object=True)


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "RGBA", "LA"])
def test_a_black_and_white_image_is_one_mask(three, tmp_path, mode):
    Image.fromarray(three.masks[1] * np.uint8(255)).convert(mode).save(tmp_path / "mask.png")
    masks = Masks.from_png(tmp_path / "mask.png")
    np.testing.assert_array_equal(masks.masks, three.masks[1:2])
    assert masks.object_ids.tolist() == [0]


@pytest.mark.parametrize("name", ["soft.png", "soft.jpg", "hard.jpg"])
def test_a_mask_of_soft_edges_needs_a_threshold(tmp_path, name):
    mask = np.zeros((40, 60), bool)
    mask[10:30, 10:50] = True
    image = Image.fromarray(mask.astype(np.uint8) * np.uint8(255))
    if "soft" in name:
        image = image.filter(ImageFilter.GaussianBlur(2))
    image.save(tmp_path / name)
    with pytest.raises(ImageError, match="shades of grey, .* If it is one mask, pass threshold=128; if they are num"):
        Masks.from_png(tmp_path / name)
    masks = Masks.from_png(tmp_path / name, threshold=128)
    assert masks.object_ids.tolist() == [0]
    assert (masks.masks[0] != mask).sum() <= 12  # corners


def test_a_threshold_takes_any_kind_of_mask(three, tmp_path):
    three[0].save(tmp_path / "mask.png")
    np.testing.assert_array_equal(Masks.from_png(tmp_path / "mask.png", threshold=128).masks, three[0].masks)
    Image.new("L", (8, 6)).save(tmp_path / "black.png")
    assert not Masks.from_png(tmp_path / "black.png", threshold=128).masks.any()


def test_grey_values_that_number_masks_are_numbers(tmp_path):
    numbers = np.repeat(np.arange(256, dtype=np.uint8)[None], 4, axis=0)
    for name, values in (
        ("all", numbers),
        ("few", numbers[:, ::32]),
        ("void", np.pad(numbers[:, :21], 1, constant_values=255)),
    ):
        Image.fromarray(np.ascontiguousarray(values)).save(tmp_path / f"{name}.png")
        assert len(Masks.from_png(tmp_path / f"{name}.png")) == len(np.unique(values[values > 0]))


def test_what_are_no_masks_is_refused(tmp_path):
    Image.new("RGB", (4, 4), (1, 2, 3)).save(tmp_path / "image.png")
    with pytest.raises(ImageError, match=r"image.png is an image in colours or with transparency \(RGB\), not masks"):
        Masks.from_png(tmp_path / "image.png")
    with pytest.raises(ImageError, match="there is no image at"):
        Masks.from_png(tmp_path / "none.png")


def test_logits_of_masks_from_elsewhere_say_what_the_masks_say(encoded):
    given_masks = Masks.from_coco(encoded.predict(box=(20, 10, 50, 30)).to_coco())
    assert given_masks.logits.shape == (1, 256, 256)
    np.testing.assert_array_equal(given_masks.without_overlap().masks, given_masks.masks)
    inside = np.array(Image.fromarray(given_masks.masks[0]).resize((256, 256), Image.Resampling.NEAREST))
    assert ((given_masks.logits[0] > 0) == inside).mean() > 0.98


def test_every_form_of_segmentation_in_coco_is_read():
    drawn = masks_of((1, 1, 4, 5)).masks[0]
    compressed = masks_of((1, 1, 4, 5)).to_rle()[0]
    counts = [
        int(n) for n in np.diff(np.flatnonzero(np.diff(np.pad(drawn.T.ravel(), 1, constant_values=2).astype(int))))
    ]
    assert sum(counts) == 48
    segmentations = [
        compressed,
        {**compressed, "counts": compressed["counts"].encode()},
        {"size": [6, 8], "counts": counts},
        [[1, 1, 4, 1, 4, 5, 1, 5]],
        [[1, 1, 4, 1, 4, 3, 1, 3], [1.0, 3, 4, 3, 4, 5, 1, 5]],
    ]
    masks = Masks.from_coco([{"segmentation": s} for s in segmentations] + [{"segmentation": []}], size_hw=(6, 8))
    for mask in masks.masks[:-1]:
        np.testing.assert_array_equal(mask, drawn)
    assert not masks.masks[-1].any()
    assert masks.object_ids.tolist() == list(range(6))
    assert masks.iou_scores.tolist() == [1] * 6


def test_a_data_set_of_one_image_is_read_and_scores_that_are_null(three):
    data = coco_data(three.to_coco(image_id=7), "a.png", three.size_hw, image_id=7)
    same(three, Masks.from_coco(json.loads(json.dumps(data))), "masks", "iou_scores", "object_ids")
    data["annotations"][0] |= {"score": None, "object_id": None}
    returned = Masks.from_coco(data)
    assert (returned.iou_scores[0], returned.object_ids[0]) == (1, 0)
    assert Masks.from_coco(data | {"annotations": []}).size_hw == three.size_hw == (6, 8)


def test_annotations_of_several_images_are_refused(three):
    choose = r"expected one. Choose its annotations: \[a for a in annotations if a\['image_id'\] == …\]"
    with pytest.raises(ValueError, match=f"the annotations are of 2 images: {choose}"):
        Masks.from_coco(three.to_coco() + three.to_coco(image_id=2))
    data = coco_data(three.to_coco(), "a.png", three.size_hw)
    with pytest.raises(ValueError, match=f"the COCO data set has 2 images: {choose}"):
        Masks.from_coco(data | {"images": 2 * data["images"]})
    with pytest.raises(ValueError, match=r"a dict of \['images'\] is no COCO data set"):
        Masks.from_coco({"images": []})


@pytest.mark.parametrize("packed", [False, True])
def test_runs_of_no_pixels_are_left_out(packed):
    counts = [3, 0, 1, 2, 0, 1, 5, 0]
    masks = Masks.from_coco([{"segmentation": {"size": [3, 4], "counts": counts}}], packed=packed)
    assert masks.boxes.tolist() == [[1, 0, 3, 3]]
    assert masks.to_rle() == Masks.from_coco(masks.to_coco()).to_rle()


@pytest.mark.parametrize(
    ("annotations", "size_hw", "message"),
    [
        ([], None, "no annotations do not tell the size of the image: pass size_hw=(height, width)"),
        ([{"segmentation": [[0, 0, 1, 0, 1, 1]]}], None, "polygons do not tell the size of the image"),
        ([{"segmentation": {"size": [6, 8], "counts": "`1"}}], (8, 6), "size [6, 8] do not fit size_hw=(8, 6)"),
        ([{"segmentation": [[0, 0, 5, 5]]}], (8, 6), "annotation 0 has the segmentation [[0, 0, 5, 5]]: expected run"),
        ([{"segmentation": [0, 0, 5, 5, 6, 6]}], (8, 6), "annotation 0 has the segmentation [0, 0, 5, 5, 6, 6]"),
        ([{"bbox": [0, 0, 1, 1]}], (8, 6), "annotation 0 has the segmentation None"),
    ],
)
def test_annotations_that_make_no_sense_are_refused(annotations, size_hw, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Masks.from_coco(annotations, size_hw=size_hw)


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        ((1, 0, 0, 0, 1), "expected 6 finite numbers a, b, c, d, e, f"),
        ((1, 0, 0, 0, float("nan"), 0), "expected 6 finite numbers"),
        ((1, 2, 0, 2, 4, 0), "maps all pixels to one line: expected rasterio's order"),
    ],
)
def test_a_transform_that_makes_no_sense_is_refused(three, transform, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        three.to_geojson(transform)


def test_the_nine_numbers_of_rasterio_are_six(three):
    assert three.to_geojson((2, 0, 1, 0, -2, 3, 0, 0, 1)) == three.to_geojson((2, 0, 1, 0, -2, 3))


# Packages that may be absent


@pytest.mark.parametrize("package", ["supervision", "pandas"])
def test_an_absent_package_is_named_with_the_way_to_get_it(three, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    message = rf"to_{package}\(\) needs the package {package}: pip install {package}"
    with pytest.raises(ModuleNotFoundError, match=message):
        getattr(three, f"to_{package}")()


def test_supervision_gets_boxes_masks_scores_and_objects(three, monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", SimpleNamespace(Detections=SimpleNamespace))
    detections = three.to_supervision(class_id=4)
    np.testing.assert_array_equal(detections.xyxy, three.boxes)
    assert detections.mask is three.masks
    assert detections.confidence is three.iou_scores
    assert detections.tracker_id is three.object_ids
    assert detections.class_id.tolist() == [4, 4, 4]


def test_pandas_gets_a_row_for_each_mask(three, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", SimpleNamespace(DataFrame=dict))
    frame = three.to_pandas()
    assert list(frame) == ["object_id", "score", "area", "x0", "y0", "x1", "y1", "segmentation"]
    assert [frame[name][1] for name in ("object_id", "area", "x0", "y0", "x1", "y1")] == [7, 12, 1, 1, 4, 5]
    assert frame["segmentation"] == three.to_rle()


def test_the_detections_of_supervision_are_the_masks(three):
    supervision = pytest.importorskip("supervision")
    detections = three.to_supervision(class_id=4)
    assert isinstance(detections, supervision.Detections)
    np.testing.assert_array_equal(detections.mask, three.masks)
    np.testing.assert_array_equal(detections.area, three.areas)
    np.testing.assert_array_equal(detections[detections.tracker_id == 2].xyxy, three[2:].boxes)
    assert len(Masks.from_coco(three.to_coco(), packed=True).to_supervision()) == 3
    assert len(three[[]].to_supervision()) == 0


def test_the_table_of_pandas_has_the_masks(three, nothing):
    pandas = pytest.importorskip("pandas")
    frame = three.to_pandas()
    assert isinstance(frame, pandas.DataFrame)
    assert frame["area"].tolist() == three.areas.tolist()
    np.testing.assert_array_equal(frame[["x0", "y0", "x1", "y1"]], three.boxes)
    assert frame.sort_values("score").iloc[-1]["segmentation"] == three.to_rle()[1]
    assert len(nothing.to_pandas()) == 0
