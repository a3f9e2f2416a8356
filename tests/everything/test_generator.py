"""Everything in an image, against a straightforward version that decides on masks of the image's size."""

import itertools
import math
from dataclasses import replace
from pathlib import Path

import cc3d
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import masklet
from masklet.errors import ConfigError, ImageError
from masklet.everything.generator import Candidates, Options, decode, draw, is_cut, make_crops, make_grid
from masklet.masks import box_nms, decode_rle, mask_ious, upscale_logits
from masklet.video.frames import open_video

ANY = {"iou_threshold": 0.0, "stability_threshold": 0.0}


def matched(ours, theirs, least=0.99):
    """Share of masks on either side that have one on the other, each used once."""
    if not len(ours) or not len(theirs):
        return float(len(ours) == len(theirs))
    ious, pairs = mask_ious(ours, theirs), 0
    while ious.max() > least:
        i, j = np.unravel_index(ious.argmax(), ious.shape)
        ious[i], ious[:, j], pairs = 0, 0, pairs + 1
    return pairs / max(len(ours), len(theirs))


# The straightforward version: one click at a time, full-size masks, loops


def straightforward(sam, image, *, side, iou, stability, nms=0.7, crops=0, min_area=0, refine=False):
    height, width = image.shape[:2]
    boxes = [(0, 0, width, height)]
    for layer in range(1, crops + 1):
        n = 2**layer
        overlap = int(512 / 1500 * min(height, width) * 2 / n)
        w, h = (math.ceil((overlap * (n - 1) + s) / n) for s in (width, height))
        for i, j in itertools.product(range(n), range(n)):
            x, y = (w - overlap) * i, (h - overlap) * j
            boxes.append((x, y, min(x + w, width), min(y + h, height)))
    everywhere = []
    for crop in boxes:
        x0, y0, x1, y1 = crop
        encoded = sam.image(np.ascontiguousarray(image[y0:y1, x0:x1]))
        found = []
        for row, column in itertools.product(range(side), range(side)):
            point = ((column + 0.5) / side * (x1 - x0), (row + 0.5) / side * (y1 - y0))
            guess = encoded.predict([point], candidates=True)[0]
            candidates = list(guess)
            if refine:
                candidates = [encoded.predict([point], mask=one.logits.clip(-32, 32), multimask=False) for one in guess]
            for one in candidates:
                logits = F.interpolate(torch.tensor(one.logits)[None], (y1 - y0, x1 - x0), mode="bilinear")[0, 0]
                strict, loose = (logits > 1).sum().item(), (logits > -1).sum().item()
                if not one.iou_scores[0] > iou or not loose or strict / loose < stability or not (logits > 0).any():
                    continue
                mask = np.zeros((height, width), bool)
                mask[y0:y1, x0:x1] = (logits > 0).numpy()
                box = box_of(mask)
                cut = (abs(a - b) <= 20 and abs(a - c) > 20 for a, b, c in zip(box, crop, boxes[0], strict=True))
                if not any(cut):
                    found.append((one.iou_scores[0], -(x1 - x0) * (y1 - y0), mask, box))
        everywhere += distinct(sorted(found, key=lambda f: -f[0]), nms)
    everywhere = distinct(sorted(everywhere, key=lambda f: f[1], reverse=True), 0.7) if crops else everywhere
    everywhere.sort(key=lambda f: -f[0])
    if min_area:
        cleaned = []
        for score, _, mask, _ in everywhere:
            new = without_small_regions(mask, min_area)
            cleaned.append((score, np.array_equal(new, mask), new, box_of(new)))
        everywhere = distinct(sorted(cleaned, key=lambda f: not f[1]), max(nms, 0.7))
    return np.array([mask for _, _, mask, _ in everywhere]).reshape(-1, height, width)


def without_small_regions(mask, min_area):
    """As SAM's generator: regions of 8 neighbours, first holes, then islands."""
    for is_hole in (True, False):
        regions = cc3d.connected_components((mask ^ is_hole).astype(np.uint8), connectivity=8)
        areas = np.bincount(regions.ravel())
        small = [i for i in range(1, len(areas)) if areas[i] < min_area]
        if is_hole:
            mask = mask | np.isin(regions, small)
        else:
            kept = [i for i in range(1, len(areas)) if i not in small] or [1 + np.argmax(areas[1:])]
            mask = np.isin(regions, kept)
    return mask


def box_of(mask):
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return columns[0], rows[0], columns[-1], rows[-1]


def iou_of(a, b):
    w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(w, 0) * max(h, 0)
    areas = [(c[2] - c[0]) * (c[3] - c[1]) for c in (a, b)]
    return shared / (sum(areas) - shared) if sum(areas) else 0


def distinct(found, threshold):
    kept = []
    for candidate in found:
        if all(iou_of(candidate[3], other[3]) <= threshold for other in kept):
            kept.append(candidate)
    return kept


@pytest.fixture(scope="module")
def nano():
    return masklet.load(device="cpu")


@pytest.fixture(scope="module")
def images():
    examples = Path(__file__).parents[2] / "examples"
    with Image.open(examples / "images/truck.jpg") as image:
        return {"truck": np.array(image.convert("RGB")), "dog": open_video(examples / "videos/dog.mp4")[10].image}


# A model that is barely trained is sure and stable of little.
@pytest.mark.parametrize(
    ("name", "size_wh", "options", "theirs"),
    [
        ("truck", (450, 300), {}, {}),
        ("dog", (480, 270), {}, {}),
        ("truck", (450, 300), {"box_nms": 1.1}, {"nms": 1.1}),
        ("truck", (1350, 900), {}, {}),  # larger than the network's input, where scores are counted
        ("truck", (200, 380), {"min_area": 60}, {"min_area": 60}),
        ("truck", (450, 300), {"crops": 1, "points_per_side": 6}, {"crops": 1, "side": 6}),
        ("truck", (300, 200), {"refine": True}, {"refine": True}),
    ],
    ids=["plain", "another image", "no nms", "large", "min area, portrait", "crops", "refine"],
)
def test_the_masks_are_those_of_a_straightforward_version(nano, images, name, size_wh, options, theirs):
    image = np.array(Image.fromarray(images[name]).resize(size_wh))
    ours = nano.everything(
        image, **({"points_per_side": 8, "iou_threshold": 0.3, "stability_threshold": 0.25} | options)
    )
    expected = straightforward(nano, image, **({"side": 8, "iou": 0.3, "stability": 0.25} | theirs))
    assert len(expected) > 3
    assert matched(ours.masks, expected) >= 0.98
    assert (np.diff(ours.iou_scores) <= 0).all()
    assert ours.object_ids.tolist() == list(range(len(ours)))


def test_run_lengths_are_the_same_masks(sam, image):
    for options in ({}, {"min_area": 40}, {"crops": 1, "points_per_side": 4}):
        masks = sam.everything(image, **(ANY | {"points_per_side": 6} | options))
        instances = sam.everything(image, output="rle", **(ANY | {"points_per_side": 6} | options))
        assert len(masks)
        assert instances == masks.to_coco()
        np.testing.assert_array_equal(decode_rle([i["segmentation"] for i in instances]), masks.masks)


def test_logits_of_a_crop_lie_over_the_whole_image(sam, image):
    masks = sam.everything(image, points_per_side=6, crops=1, crop_nms=1.1, box_nms=1.1, **ANY)
    drawn = (upscale_logits(torch.tensor(masks.logits), image.shape[:2]) > 0).numpy()
    agree = (drawn & masks.masks).sum((1, 2)) / (drawn | masks.masks).sum((1, 2))
    assert np.median(agree) > 0.9


@pytest.mark.parametrize("output", ["masks", "rle"])
@pytest.mark.parametrize("crops", [0, 1])
def test_nothing_may_be_found(sam, image, output, crops):
    found = sam.everything(image, iou_threshold=1, points_per_side=3, crops=crops, output=output)
    assert len(found) == 0
    if output == "masks":
        assert found.masks.shape == (0, 48, 80)
        assert found.logits.shape == (0, 16, 16)


def test_more_than_one_size_of_batch_finds_the_same(sam, image, monkeypatch):
    expected = sam.everything(image, points_per_side=9, **ANY)
    monkeypatch.setattr("masklet.everything.generator.POINTS_AT_ONCE", 7)
    monkeypatch.setattr("masklet.everything.generator.CPU_PIXELS", 1)
    found = sam.everything(image, points_per_side=9, **ANY)
    np.testing.assert_array_equal(found.masks, expected.masks)


def test_an_image_may_be_one_pixel_but_not_cut_into_crops(sam):
    pixel = np.full((1, 1, 3), 200, np.uint8)
    assert sam.everything(pixel, points_per_side=2, **ANY).masks.shape[1:] == (1, 1)
    with pytest.raises(ImageError) as caught:
        sam.everything(pixel, crops=1)
    assert str(caught.value) == (
        "an image of 1×1 pixels cannot be cut into 2 by 2 crops: expected fewer layers than crops=1, or a larger image"
    )


def test_the_image_is_kept_for_the_overlay(sam, image):
    masks = sam.everything(image, points_per_side=3, **ANY)
    np.testing.assert_array_equal(masks.image, image)
    assert masks.overlay().size == (80, 48)


# Parts


def test_logits_are_fed_back_as_they_were_trained_on_within_their_limits(sam, encoded, monkeypatch):
    """With logits far beyond the limit, the network is given the limit, and decides so."""
    given, real = [], sam.model.decode

    def loud(embeddings, *, masks=None, **how):
        given.append(masks)
        decoded = real(embeddings, masks=masks, **how)
        return decoded if masks is not None else replace(decoded, logits=decoded.logits * 1e4)

    monkeypatch.setattr(type(sam.model), "decode", lambda self, *a, **kw: loud(*a, **kw))
    with torch.inference_mode():
        decode(sam.model, encoded.embeddings, make_grid(2) * 64, Options(refine=True, **ANY))
    assert given[0] is None
    assert [(masks.min().item(), masks.max().item()) for masks in given[1:]] == 3 * [(-32, 32)]


def test_holes_are_those_of_the_reference_which_leak_through_corners():
    logits = torch.full((9, 9), -1.0)
    logits[1:5, 1:5] = 1
    logits[2, 2] = logits[3, 3] = logits[4, 4] = -1  # a way out
    found = Candidates(logits[None], np.ones(1), np.array([[1, 1, 5, 5]]), np.zeros(1, int))
    ((mask, is_as_found),) = draw(found, make_crops((9, 9), Options()), (9, 9), Options(min_area=4))
    np.testing.assert_array_equal(mask, without_small_regions((logits > 0).numpy(), 4))
    assert is_as_found


def test_a_click_is_in_the_middle_of_its_cell():
    assert make_grid(2).tolist() == [[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]]
    assert make_grid(1).tolist() == [[0.5, 0.5]]


@pytest.mark.parametrize("size_hw", [(48, 80), (333, 97), (16, 16), (1000, 1501)])
def test_crops_cover_the_image_and_overlap(size_hw):
    crops = make_crops(size_hw, Options(crops=2))
    assert [c.layer for c in crops] == [0] + 4 * [1] + 16 * [2]
    for layer in range(3):
        covered = np.zeros(size_hw, int)
        for c in crops:
            assert 0 <= c.x0 < c.x1 <= size_hw[1]
            assert 0 <= c.y0 < c.y1 <= size_hw[0]
            covered[c.y0 : c.y1, c.x0 : c.x1] += c.layer == layer
        assert covered.min() == 1
        assert covered.max() == (1, 4, 4)[layer]


def test_a_box_is_cut_where_its_crop_ends_inside_the_image():
    (crop,) = (c for c in make_crops((600, 900), Options(crops=1)) if c.layer and not c.x0 and not c.y0)
    boxes = np.array(
        [[0, 0, 100, 100], [100, 100, crop.x1, 200], [100, 100, 200, crop.y1 - 19], [100, 100, 200, crop.y1 - 30]]
    )
    assert is_cut(boxes, crop, (600, 900)).tolist() == [False, True, True, False]
    assert not is_cut(boxes, make_crops((600, 900), Options())[0], (600, 900)).any()


def test_of_boxes_that_overlap_the_best_stays():
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 8], [0, 0, 10, 7], [20, 0, 30, 10], [5, 5, 5, 5], [5, 5, 5, 5]])
    scores = np.array([0.5, 0.9, 0.4, 0.95, 0.1, 0.1])
    assert box_nms(boxes, scores, 0.7).tolist() == [3, 1, 4, 5]
    assert box_nms(boxes, scores, 0.8).tolist() == [3, 1, 0, 4, 5]
    assert box_nms(boxes, scores, 1.1).tolist() == [3, 1, 0, 2, 4, 5]
    assert box_nms(boxes[:0], scores[:0], 0.7).tolist() == []


def test_only_likely_candidates_are_drawn_and_drawn_alike(sam, encoded):
    points = make_grid(5)[None, :, None] * 64
    labels = torch.ones(1, 25, 1, dtype=torch.long)
    with torch.inference_mode():
        full = sam.model.decode(encoded.embeddings, points=points, labels=labels, multimask=True)
        # In the middle of a gap, since the last bit of a score may be another.
        ranked = full.iou_scores.flatten().sort().values
        gap = 30 + int(ranked[30:46].diff().argmax())
        assert ranked[gap + 1] - ranked[gap] > 1e-5
        for threshold in (-1.0, float(ranked[gap : gap + 2].mean()), float(ranked[-1]) + 1e-3):
            likely = sam.model.decode_likely(encoded.embeddings, points=points, labels=labels, iou_threshold=threshold)
            chosen = full.iou_scores[0] > threshold
            torch.testing.assert_close(likely.iou_scores, full.iou_scores[0][chosen])
            torch.testing.assert_close(likely.logits, full.logits[0][chosen], rtol=1e-4, atol=1e-4)
            assert likely.objects.tolist() == chosen.nonzero()[:, 0].tolist()


# What is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"points_per_side": 0}, "points_per_side is 0: expected a whole number, 1 or more"),
        ({"points_per_side": 2.5}, "points_per_side is 2.5: expected a whole number, 1 or more"),
        ({"crops": -1}, "crops is -1: expected a whole number, 0 or more"),
        ({"min_area": "9"}, "min_area is '9': expected a whole number, 0 or more"),
        ({"iou_threshold": 1.5}, "iou_threshold is 1.5: expected a number, 0 to 1"),
        ({"stability_threshold": float("nan")}, "stability_threshold is nan: expected a number, 0 to 1"),
        ({"stability_offset": -1}, "stability_offset is -1: expected a number, 0 or more"),
        ({"refine": "false"}, "refine is 'false': expected True or False"),
        ({"box_nms": None}, "box_nms is None: expected a number, 0 or more"),
        ({"output": "png"}, "output is 'png': expected 'masks' or 'rle'"),
        (
            {"points_per_side": 3, "crops": 2, "crop_points_divisor": 2},
            "points_per_side 3 leaves no click for a crop of layer 2, which has 3 / 2**2: expected more, or fewer "
            "crops",
        ),
    ],
)
def test_an_option_that_makes_no_sense_is_refused(sam, image, options, message):
    with pytest.raises(ConfigError) as caught:
        sam.everything(image, **options)
    assert str(caught.value) == message


def test_an_unknown_option_is_refused_with_the_known_ones(sam, image):
    with pytest.raises(ConfigError) as caught:
        sam.everything(image, points=3)
    assert str(caught.value) == (
        "there is no option points: expected resolution, output, tile, overlap, points_per_side, crops, crop_overlap, "
        "crop_points_divisor, iou_threshold, stability_threshold, stability_offset, box_nms, crop_nms, min_area, refine"
    )
