import io
import json
import os
import re
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from masklet.masks import decode_rle
from masklet.results import PALETTE, Masks, colour_of, grow


def masks_of(*pieces, size_hw=(6, 8), scores=None, objects=None, picture=None):
    """Masks of rectangles (x0, y0, x1, y1)."""
    masks = np.zeros((len(pieces), *size_hw), bool)
    for mask, (x0, y0, x1, y1) in zip(masks, pieces, strict=True):
        mask[y0:y1, x0:x1] = True
    return Masks(
        masks,
        np.arange(len(pieces) * 4, dtype=np.float32).reshape(-1, 2, 2),
        np.linspace(0.5, 0.9, len(pieces), dtype=np.float32) if scores is None else np.array(scores, np.float32),
        np.arange(len(pieces)) if objects is None else np.array(objects),
        picture,
    )


@pytest.fixture
def three():
    """Two candidates for object 7, then one mask of object 2."""
    return masks_of((0, 0, 3, 2), (1, 1, 4, 5), (5, 0, 8, 6), scores=[0.6, 0.8, 0.7], objects=[7, 7, 2])


@pytest.fixture
def nothing():
    return masks_of(picture=np.full((6, 8, 3), 9, np.uint8))


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
        for name in ("masks", "logits", "scores", "objects"):
            np.testing.assert_array_equal(getattr(chosen, name), getattr(three, name)[expected])


def test_an_index_keeps_the_picture():
    picture = np.zeros((6, 8, 3), np.uint8)
    assert masks_of((0, 0, 1, 1), picture=picture)[0].picture.base is picture


@pytest.mark.parametrize("index", [3, -4, np.ones(5, bool)])
def test_an_index_beyond_the_masks_is_refused(three, index):
    with pytest.raises(IndexError):
        three[index]


def test_iterating_gives_masks_of_one_each(three):
    ones = list(three)
    assert [len(one) for one in ones] == [1, 1, 1]
    assert [one.scores[0] for one in ones] == three.scores.tolist()


def test_boxes_and_areas_are_those_of_the_rectangles(three):
    np.testing.assert_array_equal(three.boxes, [(0, 0, 3, 2), (1, 1, 4, 5), (5, 0, 8, 6)])
    np.testing.assert_array_equal(three.areas, [6, 12, 18])


def test_best_is_the_highest_score_of_each_object_in_order_of_appearance(three):
    assert three.best.objects.tolist() == [7, 2]
    np.testing.assert_array_equal(three.best.scores, three.scores[[1, 2]])
    np.testing.assert_array_equal(three.best.masks, three.masks[[1, 2]])


def test_best_of_equal_scores_is_the_first():
    masks = masks_of((0, 0, 1, 1), (0, 0, 2, 2), (0, 0, 3, 3), scores=[0.5, 0.5, 0.5], objects=[1, 1, 0])
    assert masks.best.areas.tolist() == [1, 9]


def test_masks_cannot_be_changed(three):
    with pytest.raises(FrozenInstanceError):
        three.scores = np.zeros(3, np.float32)
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
        ({"scores": np.zeros(3, np.float32)}, "scores of shape (3,), float32, do not fit masks of shape (2, 4, 4)"),
        ({"objects": np.zeros(2)}, "objects of shape (2,), float64"),
        ({"picture": np.zeros((4, 5, 3), np.uint8)}, "a picture of shape (4, 5, 3) does not fit masks of 4×4 pixels"),
    ],
)
def test_arrays_that_do_not_fit_each_other_are_refused(changed, message):
    arrays = {
        "masks": np.zeros((2, 4, 4), bool),
        "logits": np.zeros((2, 2, 2), np.float32),
        "scores": np.zeros(2, np.float32),
        "objects": np.zeros(2, int),
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
    np.testing.assert_array_equal(nothing.overlay(), nothing.picture)
    nothing.save(tmp_path / "nothing.png")
    np.testing.assert_array_equal(Image.open(tmp_path / "nothing.png"), np.zeros((6, 8)))


def test_an_empty_mask_works_everywhere(tmp_path):
    empty = masks_of((0, 0, 0, 0), picture=np.full((6, 8, 3), 9, np.uint8))
    assert empty.to_polygons() == [[]]
    assert empty.to_coco()[0]["bbox"] == [0, 0, 0, 0]
    np.testing.assert_array_equal(empty.overlay(), empty.picture)
    empty.save(tmp_path / "empty.png")
    assert not np.array(Image.open(tmp_path / "empty.png")).any()


def test_a_mask_of_one_pixel_works_everywhere(tmp_path):
    dot = masks_of((0, 0, 1, 1), size_hw=(1, 1), picture=np.full((1, 1, 3), 100, np.uint8))
    assert dot.to_polygons()[0][0].exterior.tolist() == [[0, 0], [1, 0], [1, 1], [0, 1]]
    assert dot.overlay(alpha=1).getpixel((0, 0)) == tuple(PALETTE[0])
    dot.save(tmp_path / "dot.png")
    assert Image.open(tmp_path / "dot.png").getpixel((0, 0)) == 255


# Overlay


@pytest.fixture
def square():
    return masks_of((20, 20, 60, 60), size_hw=(80, 100), objects=[3], picture=np.full((80, 100, 3), 200, np.uint8))


def test_an_overlay_fills_inside_outlines_light_and_dark_and_leaves_the_rest(square):
    picture = np.array(square.overlay(alpha=0.5))
    colour = PALETTE[3].astype(int)
    np.testing.assert_allclose(picture[40, 40], (200 + colour) / 2, atol=1)
    assert picture[20, 40].min() >= 191
    np.testing.assert_array_equal(picture[19, 40], [66, 66, 66])
    np.testing.assert_array_equal(picture[18, 40], [200, 200, 200])
    assert np.array_equal(square.picture, np.full((80, 100, 3), 200))


def test_without_alpha_an_overlay_is_contours_alone(square):
    picture = np.array(square.overlay(alpha=0))
    np.testing.assert_array_equal(picture[22:58, 22:58], square.picture[22:58, 22:58])
    assert (picture[20, 40] != 200).any()


def test_contours_grow_with_the_picture():
    picture = np.full((100, 1800, 3), 200, np.uint8)
    painted = np.array(masks_of((50, 20, 90, 80), size_hw=(100, 1800)).overlay(picture, alpha=0))
    assert [bool((painted[50, x] != 200).any()) for x in range(45, 55)] == [False] * 2 + [True] * 6 + [False] * 2


def test_the_smallest_mask_is_painted_last_and_fills_do_not_mix():
    picture = np.zeros((40, 40, 3), np.uint8)
    small, large = (15, 15, 25, 25), (0, 0, 40, 40)
    for pieces, objects in [((small, large), [0, 1]), ((large, small), [1, 0])]:
        painted = masks_of(*pieces, size_hw=(40, 40), objects=objects).overlay(picture, alpha=1)
        assert painted.getpixel((20, 20)) == tuple(PALETTE[0])
        assert painted.getpixel((5, 5)) == tuple(PALETTE[1])


def test_an_overlay_can_be_painted_on_another_picture(square):
    black = Image.new("L", (100, 80))
    assert square.overlay(black, alpha=0.5).getpixel((90, 5)) == (0, 0, 0)


def test_objects_keep_their_colours_and_neighbours_differ():
    assert len(np.unique(PALETTE, axis=0)) == len(PALETTE)
    np.testing.assert_array_equal(colour_of(np.array([0, 5, 12, 300, -1])), PALETTE[[0, 5, 0, 0, 11]])


@pytest.mark.parametrize("alpha", [-0.1, 1.5, float("nan")])
def test_an_alpha_out_of_range_is_refused(square, alpha):
    with pytest.raises(ValueError, match="alpha must be from 0 "):
        square.overlay(alpha=alpha)


def test_an_overlay_without_a_picture_says_to_pass_one(three):
    with pytest.raises(ValueError, match=re.escape("without their picture: pass it, overlay('truck.jpg')")):
        three.overlay()


def test_an_overlay_on_a_picture_of_another_size_is_refused(three):
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
    first, second = masks_of((0, 0, 4, 4), (0, 0, 2, 2), scores=[0.9, 0.1]), tmp_path / "first.png"
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
    with pytest.raises(ValueError, match="65536 masks do not fit the 65535 values"):
        many.save(tmp_path / "many.png")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["mask.jpg", "mask", "mask.PNG.tmp"])
def test_another_suffix_is_refused_before_anything_is_written(three, tmp_path, name):
    with pytest.raises(ValueError, match=re.escape(f"masks are saved as .png, not as {name!r}")):
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


def test_an_overlay_can_be_written_as_any_picture(square):
    file = io.BytesIO()
    square.overlay().save(file, "JPEG")
    assert file.tell()
