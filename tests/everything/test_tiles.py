"""Large images, tile by tile: masks are joined across tiles, and memory does not grow with the image."""

import weakref

import numpy as np
import pycocotools.mask as coco
import pytest

from masklet.errors import ConfigError, ImageError
from masklet.everything import tiles
from masklet.everything.tiles import make_tiles
from masklet.masks import PackedMasks, clean_masks, decode_rle, encode_rle, mask_boxes
from masklet.results import Masks

ANY = {"iou_threshold": 0.0, "stability_threshold": 0.0}


def packed(masks, iou_scores):
    """(masks, height, width) bool as the generator returns them."""
    stack = PackedMasks(encode_rle(masks), masks.shape[1:])
    logits, scores = np.zeros((len(masks), 0, 0), np.float32), np.asarray(iou_scores, np.float32)
    return Masks(stack, logits, scores, np.arange(len(masks)))


@pytest.fixture
def each_value_is_an_object(monkeypatch):
    """Replaces the network: each value above 0 of a grey image is a mask in every tile that contains it."""

    def find(engine, processor, pixels, options, **_):
        values = np.unique(pixels[pixels > 0])
        return packed(pixels[..., 0] == values[:, None, None], values / 255)

    monkeypatch.setattr(tiles, "everything", find)


def shapes(size_hw, *boxes):
    image = np.zeros(size_hw, np.uint8)
    for value, (x0, y0, x1, y1) in enumerate(boxes, start=1):
        image[y0:y1, x0:x1] = value
    return image


def masks_by_value(instances, size_hw):
    masks = decode_rle([i["segmentation"] for i in instances])
    return {round(i["score"] * 255): mask for i, mask in zip(instances, masks, strict=True)}


@pytest.mark.parametrize("size_hw", [(100, 140), (40, 300), (300, 40), (33, 20)])
def test_masks_are_joined_across_tiles(sam, each_value_is_an_object, size_hw):
    height, width = size_hw
    image = shapes(
        size_hw,
        (0, 0, width, height),  # the background: it touches every border, and every tile
        (2, 2, 3, 3),  # one pixel
        (5, 6, 13, 9),
        (width // 2 - 10, height // 2 - 3, width // 2 + 25, height // 2 + 4),
        (width - 4, 3, width, height - 2),
        (3, height - 5, width - 6, height - 1),
    )
    instances = list(sam.everything_tiled(image, tile=32, overlap=8))
    found = masks_by_value(instances, size_hw)
    assert len(instances) == len(np.unique(image))
    for value, mask in found.items():
        np.testing.assert_array_equal(mask, image == value)
    for number, instance in enumerate(instances):
        assert (instance["id"], instance["object_id"]) == (number + 1, number)
        mask = found[round(instance["score"] * 255)]
        assert instance["area"] == mask.sum()
        x0, y0, x1, y1 = mask_boxes(mask[None])[0].tolist()
        assert instance["bbox"] == [x0, y0, x1 - x0, y1 - y0]
    assert Masks.from_coco(instances, packed=True).to_coco() == instances


def test_objects_on_both_sides_of_a_seam_stay_apart(sam, each_value_is_an_object):
    image = shapes((32, 60), (4, 4, 29, 14), (30, 4, 50, 14), (4, 20, 27, 30), (33, 20, 50, 30))
    assert len(list(sam.everything_tiled(image, tile=32, overlap=4))) == 4


def test_parts_that_are_joined_by_a_later_tile_are_one_object(sam, each_value_is_an_object):
    image = shapes((96, 96), (8, 8, 12, 88), (8, 84, 88, 88), (84, 8, 88, 88))  # a U; one value
    image[image > 0] = 7
    (one,) = sam.everything_tiled(image, tile=32, overlap=8)
    np.testing.assert_array_equal(decode_rle([one["segmentation"]])[0], image > 0)


def test_a_mask_is_joined_to_one_mask_of_the_next_tile(sam, monkeypatch):
    """A part and a whole that are equal in the overlap of two tiles stay two objects."""

    def find(engine, processor, pixels, options, **_):
        inside = pixels[..., 0] > 0
        masks = np.stack([inside, inside & (pixels[..., 0] < 3)])
        masks = masks[masks.any((1, 2))]
        return packed(masks, np.full(len(masks), 0.5))

    monkeypatch.setattr(tiles, "everything", find)
    image = shapes((30, 56), (10, 5, 50, 25), (20, 5, 40, 25), (10, 5, 15, 25))
    whole, part = sorted(sam.everything_tiled(image, tile=32, overlap=8), key=lambda i: -i["area"])
    assert (whole["area"], part["area"]) == (40 * 20, 35 * 20)


def test_the_score_of_a_joined_object_is_the_mean_over_its_pixels(sam, monkeypatch):
    """Tiles are 24 pixels apart: the left one contains 22 columns of the object, the right one 18."""
    scores = iter([0.5, 0.9])

    def find(engine, processor, pixels, options, **_):
        return packed(pixels[None, ..., 0] > 0, [next(scores)])

    monkeypatch.setattr(tiles, "everything", find)
    image = shapes((20, 56), (10, 5, 42, 15))
    (one,) = sam.everything_tiled(image, tile=32, overlap=8)
    assert one["area"] == 320
    assert one["score"] == pytest.approx((22 * 0.5 + 18 * 0.9) / 40)


def test_memory_does_not_grow_with_the_image(sam, each_value_is_an_object, monkeypatch):
    objects, keep, window = weakref.WeakSet(), tiles.TiledObject.__init__, tiles.Windows.__getitem__

    def counting(self, *args):
        keep(self, *args)
        objects.add(self)

    def small(self, place):
        pixels = window(self, place)
        assert pixels.size <= 40 * 40 * 3
        return pixels

    monkeypatch.setattr(tiles.TiledObject, "__init__", counting)
    monkeypatch.setattr(tiles.Windows, "__getitem__", small)
    most = {}
    for height in (200, 800):
        image = np.zeros((height, 160), np.uint8)
        corners = [(x, y) for y in range(4, height - 8, 25) for x in range(4, 150, 25)]
        for number, (x, y) in enumerate(corners):
            image[y : y + 5, x : x + 5] = 1 + number % 250
        held = [len(objects) for _ in sam.everything_tiled(image, tile=40, overlap=10)]
        assert len(held) == len(corners)
        most[height] = max(held)
    assert most[800] == most[200] < 40


def test_each_tile_is_an_image_of_its_own(sam, image):
    """With the network: the objects are those of the tiles, some of them joined."""
    whole = list(sam.everything_tiled(image, tile=48, overlap=16, points_per_side=4, **ANY))
    assert whole
    assert sum(len(sam.everything(image[:, x : x + 48], points_per_side=4, **ANY)) for x in (0, 32)) >= len(whole)
    assert coco.area([one["segmentation"] for one in whole]).tolist() == [one["area"] for one in whole]
    alone = list(sam.everything_tiled(image, tile=100, points_per_side=4, **ANY))
    assert alone == sam.everything(image, points_per_side=4, **ANY).to_coco()


def test_masks_of_a_tile_are_cleaned(sam, image):
    options = {"points_per_side": 6, "min_area": 30, **ANY}
    masks = decode_rle([one["segmentation"] for one in sam.everything_tiled(image, tile=80, **options)])
    np.testing.assert_array_equal(clean_masks(masks, fill_holes=30, remove_islands=30, hole_connectivity=8), masks)


def test_there_may_be_no_masks(sam, each_value_is_an_object):
    assert list(sam.everything_tiled(np.zeros((50, 70), np.uint8), tile=32)) == []


@pytest.mark.parametrize("size_hw", [(1, 1), (32, 33), (100, 57), (31, 200)])
def test_tiles_cover_the_image_evenly(size_hw):
    rows = make_tiles(size_hw, 32, 8)
    seen = np.zeros(size_hw, int)
    for row in rows:
        for crop in row:
            assert crop.size_hw == (min(32, size_hw[0]), min(32, size_hw[1]))
            seen[crop.y0 : crop.y1, crop.x0 : crop.x1] += 1
        assert all(first.x1 - second.x0 >= 8 for first, second in zip(row, row[1:], strict=False))
    assert seen.min() == 1
    assert all(first[0].y1 - second[0].y0 >= 8 for first, second in zip(rows, rows[1:], strict=False))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tile": 8}, "tile is 8: expected a whole number, 16 or more"),
        ({"tile": "64"}, "tile is '64': expected a whole number, 16 or more"),
        ({"tile": 64.5}, "tile is 64.5: expected a whole number, 16 or more"),
        ({"tile": 32, "overlap": 8.5}, "overlap is 8.5: expected a whole number"),
        ({"tile": 32, "overlap": 17}, "overlap is 17: expected 1 to 16 pixels, half of tile=32"),
        ({"tile": 32, "overlap": 0}, "overlap is 0: expected 1 to 16 pixels, half of tile=32"),
    ],
)
def test_invalid_tiles_are_refused_when_called(sam, image, options, message):
    with pytest.raises(ConfigError) as caught:
        sam.everything_tiled(image, **options)
    assert str(caught.value) == message


def test_an_image_that_coco_cannot_count_is_refused(sam):
    endless = np.broadcast_to(np.zeros(1, np.uint8), (50_000, 50_000))
    with pytest.raises(ImageError, match="the image has 50000×50000 pixels: expected 2147483647 at most"):
        sam.everything_tiled(endless, tile=1024)


def test_a_large_image_is_read_window_by_window(sam, each_value_is_an_object, tmp_path):
    """A memory map whose size would be large as masks of the whole image."""
    pixels = np.memmap(tmp_path / "large.raw", np.uint8, "w+", shape=(64, 60_000))
    pixels[20:40, 30_000:30_700] = 9
    (one,) = sam.everything_tiled(pixels, tile=64, overlap=16, points_per_side=1)
    (mask,) = PackedMasks([one["segmentation"]], (64, 60_000)).__array__()
    assert one["bbox"] == [30_000, 20, 700, 20]
    assert mask.sum() == one["area"] == 700 * 20
