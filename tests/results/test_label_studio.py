import json
import re

import numpy as np
import pytest
from hypothesis import given
from mask_results import any_masks, even_odd, few_examples, rectangles

from masklet.results import Masks


def unpacked(stream):
    """The values of a stream of @thi.ng/rle-pack, read bit by bit as its description says."""
    bits = iter("".join(f"{byte:08b}" for byte in stream))

    def number(length):
        return int("".join(next(bits) for _ in range(length)), 2)

    total, word = number(32), number(5) + 1
    sizes = [number(4) + 1 for _ in range(4)]
    values = []
    while len(values) < total:
        is_run = number(1)
        count = number(sizes[number(2)]) + 1
        values += [number(word)] * count if is_run else [number(word) for _ in range(count)]
    assert not any(int(bit) for bit in bits), "zeros fill the last byte"
    return np.array(values)


def regions_of(masks, **options):
    task = json.loads(json.dumps(masks.to_label_studio("/data/ü.jpg", **options), allow_nan=False))
    assert task["data"] == {"image": "/data/ü.jpg"}
    (prediction,) = task["predictions"]
    ids = [region["id"] for region in prediction["result"]]
    assert len(set(ids)) == len(ids)
    return prediction["result"]


def test_the_stream_of_one_pixel_is_that_written_by_hand():
    (region,) = regions_of(rectangles((0, 0, 1, 1), size_hw=(1, 1)))
    header = f"{4:032b}" + f"{8 - 1:05b}" + "".join(f"{size - 1:04b}" for size in (3, 4, 8, 16))
    run = "1" + "00" + f"{4 - 1:03b}" + f"{255:08b}"
    assert "".join(f"{byte:08b}" for byte in region["value"]["rle"]) == (header + run).ljust(72, "0")


@given(any_masks())
@few_examples
def test_brushes_are_the_masks_in_all_four_channels(masks):
    height, width = masks.size_hw
    full = [number for number, mask in enumerate(masks.masks) if mask.any()]
    regions = regions_of(masks, categories="cat")
    assert regions == regions_of(Masks.from_coco(masks.to_coco(), size_hw=masks.size_hw, packed=True), categories="cat")
    for number, region in zip(full, regions, strict=True):
        assert region["value"]["format"] == "rle"
        assert (region["original_width"], region["original_height"]) == (width, height)
        assert region["meta"]["object_id"] == masks.object_ids[number]
        image = unpacked(region["value"]["rle"]).reshape(height, width, 4)
        np.testing.assert_array_equal(image, masks.masks[number][..., None].repeat(4, axis=2) * 255)


@pytest.mark.parametrize("box", [(0, 0, 300, 200), (0, 100, 300, 200), (10, 0, 20, 200), (0, 0, 1, 1)])
def test_runs_longer_than_a_block_are_divided(box):
    masks = rectangles(box, size_hw=(200, 300))
    (region,) = regions_of(masks)
    image = unpacked(region["value"]["rle"]).reshape(200, 300, 4)
    np.testing.assert_array_equal(image[..., 3] > 0, masks.masks[0])


@given(any_masks())
@few_examples
def test_polygons_are_the_masks_in_percent(masks):
    height, width = masks.size_hw
    painted = {object_id: np.zeros(masks.size_hw, bool) for object_id in masks.object_ids.tolist()}
    for region in regions_of(masks, polygons=True, categories="cat"):
        assert region["type"] == "polygonlabels"
        assert region["value"]["polygonlabels"] == ["cat"]
        ring = np.rint(np.array(region["value"]["points"]) / 100 * (width, height)).tolist()
        painted[region["meta"]["object_id"]] ^= even_odd([ring], masks.size_hw)
    for object_id, mask in zip(masks.object_ids.tolist(), masks.masks, strict=True):
        np.testing.assert_array_equal(painted[object_id], mask)


def test_names_of_tags_are_those_of_the_templates_or_of_the_caller(three):
    assert {(region["from_name"], region["to_name"]) for region in regions_of(three)} == {("tag", "image")}
    assert {region["from_name"] for region in regions_of(three, polygons=True)} == {"label"}
    task = three.to_label_studio("a.jpg", from_name="brush", to_name="photo")
    assert task["data"] == {"photo": "a.jpg"}
    assert {(r["from_name"], r["to_name"]) for r in task["predictions"][0]["result"]} == {("brush", "photo")}


def test_a_tolerance_is_for_polygons(three):
    with pytest.raises(ValueError, match=re.escape("tolerance=1 simplifies polygons, but brush masks are exact")):
        three.to_label_studio("a.jpg", tolerance=1)


def test_an_image_that_the_format_cannot_count_is_refused():
    side = 2**15
    pixel = {"size": [side, side], "counts": [5, 1, side * side - 6]}
    masks = Masks.from_coco([{"segmentation": pixel}], packed=True)
    with pytest.raises(ValueError, match="fewer than"):
        masks.to_label_studio("a.jpg")
