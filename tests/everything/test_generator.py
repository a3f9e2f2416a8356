"""Everything in an image, compared with a straightforward generator that decides on masks of the image's size."""

import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from everything_reference import all_masks
from PIL import Image

import masklet
from masklet.engine import make_engine
from masklet.everything import generator
from masklet.everything.filters import Candidates
from masklet.everything.generator import decode_points
from masklet.everything.grid import make_grid
from masklet.everything.options import EverythingOptions
from masklet.masks import PackedMasks, mask_ious, upscale_logits
from masklet.model.prompt_encoder import Prompts
from masklet.segmenter import Segmenter
from masklet.video.frames import open_video

GRIDS = [np.random.default_rng(0).random((count, 2)).tolist() for count in (30, 9)]
ANY = {"iou_threshold": 0.0, "stability_threshold": 0.0}


def matched(ours, theirs, least=0.99):
    """Share of masks on either side that have a counterpart on the other, each used once."""
    if not len(ours) or not len(theirs):
        return float(len(ours) == len(theirs))
    ious, pairs = mask_ious(ours, theirs), 0
    while ious.max() > least:
        i, j = np.unravel_index(ious.argmax(), ious.shape)
        ious[i], ious[:, j], pairs = 0, 0, pairs + 1
    return pairs / max(len(ours), len(theirs))


@pytest.fixture(scope="module")
def nano():
    return masklet.load(device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def images():
    examples = Path(__file__).parents[2] / "examples"
    with Image.open(examples / "images/truck.jpg") as image:
        return {"truck": np.array(image.convert("RGB")), "dog": open_video(examples / "videos/dog.mp4")[10].image}


@pytest.mark.parametrize(
    ("name", "size_wh", "engine", "options", "theirs"),
    [
        ("truck", (450, 300), "cpu", {}, {}),
        pytest.param("truck", (450, 300), "eager", {}, {}, marks=pytest.mark.slow),
        ("dog", (480, 270), "cpu", {}, {}),
        ("truck", (450, 300), "cpu", {"box_nms": 1.1}, {"nms": 1.1}),
        pytest.param(
            "truck", (900, 600), "cpu", {}, {}, marks=pytest.mark.slow
        ),  # larger than the logits, where scores at low resolution are used
        ("truck", (200, 380), "cpu", {"min_area": 60}, {"min_area": 60}),
        ("truck", (450, 300), "cpu", {"crops": 1, "points_per_side": 4}, {"crops": 1, "side": 4}),
        pytest.param(
            "truck",
            (300, 200),
            "cpu",
            {"refine": True, "points_per_side": 5},
            {"refine": True, "side": 5},
            marks=pytest.mark.slow,
        ),
        ("truck", (450, 300), "cpu", {"mask_threshold": 0.7}, {"threshold": 0.7}),
        ("truck", (450, 300), "cpu", {"candidates": False, "points_per_side": 10}, {"multimask": False, "side": 10}),
        (
            "truck",
            (300, 200),
            "cpu",
            {"candidates": False, "refine": True, "points_per_side": 5, "mask_threshold": -0.5},
            {"multimask": False, "refine": True, "side": 5, "threshold": -0.5},
        ),
        pytest.param(
            "truck",
            (450, 300),
            "cpu",
            {"point_grids": GRIDS, "crops": 1},
            {"grids": GRIDS, "crops": 1},
            marks=pytest.mark.slow,
        ),
    ],
    ids=[
        "plain",
        "eager engine",
        "another image",
        "no nms",
        "large",
        "min area, portrait",
        "crops",
        "refine",
        "mask threshold",
        "one mask a point",
        "one refined mask",
        "points of one's own",
    ],
)
def test_the_masks_are_those_of_a_straightforward_generator(nano, images, name, size_wh, engine, options, theirs):
    sam = Segmenter(make_engine(nano.model, engine), nano.image_processor)
    image = np.array(Image.fromarray(images[name]).resize(size_wh))
    ours = sam.everything(image, **({"points_per_side": 8} | options if "point_grids" not in options else options))
    expected = all_masks(nano, image, **({"side": 8, "iou": 0.4, "stability": 0.3} | theirs))
    assert len(expected) > 3
    assert matched(ours.masks, expected) >= 0.98
    assert (np.diff(ours.iou_scores) <= 0).all()
    assert ours.object_ids.tolist() == list(range(len(ours)))


def test_packed_masks_are_the_same_without_logits(sam, image):
    for options in ({}, {"min_area": 40}, {"crops": 1, "points_per_side": 4}):
        masks = sam.everything(image, **(ANY | {"points_per_side": 6} | options))
        packed = sam.everything(image, packed=True, **(ANY | {"points_per_side": 6} | options))
        assert len(masks)
        assert isinstance(packed.masks, PackedMasks)
        assert packed.logits.shape == (len(masks), 0, 0)
        assert packed.to_coco() == masks.to_coco()
        np.testing.assert_array_equal(np.asarray(packed.masks), masks.masks)
        np.testing.assert_array_equal(packed.image, image)


def test_logits_of_a_crop_lie_over_the_whole_image(sam, image):
    masks = sam.everything(image, points_per_side=6, crops=1, crop_nms=1.1, box_nms=1.1, **ANY)
    upscaled = (upscale_logits(torch.tensor(masks.logits), image.shape[:2]) > 0).numpy()
    agree = (upscaled & masks.masks).sum((1, 2)) / (upscaled | masks.masks).sum((1, 2))
    assert np.median(agree) > 0.9


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("crops", [0, 1])
def test_there_may_be_no_masks(sam, image, packed, crops):
    found = sam.everything(image, iou_threshold=1, points_per_side=3, crops=crops, packed=packed)
    assert len(found) == 0
    assert found.masks.shape == (0, 48, 80)
    assert found.logits.shape == ((0, 0, 0) if packed else (0, 16, 16))


def test_the_masks_do_not_depend_on_the_batch(sam, image, monkeypatch):
    expected = sam.everything(image, points_per_side=9, **ANY)
    monkeypatch.setattr(generator, "POINT_BATCH", 7)
    found = sam.everything(image, points_per_side=9, **ANY)
    np.testing.assert_array_equal(found.masks, expected.masks)


def test_an_image_that_is_encoded_is_not_encoded_again(sam, image, encoded, monkeypatch):
    expected = sam.everything(image, points_per_side=4, **ANY)
    monkeypatch.setattr(type(sam.engine), "encode", lambda *_: pytest.fail("it was encoded again"))
    options = EverythingOptions(points_per_side=4, **ANY)
    found = generator.everything(sam.engine, sam.image_processor, image, options, features=encoded.features)
    np.testing.assert_array_equal(found.masks, expected.masks)


def test_the_image_is_kept_for_the_overlay(sam, image):
    masks = sam.everything(image, points_per_side=3, **ANY)
    np.testing.assert_array_equal(masks.image, image)
    assert masks.overlay().size == (80, 48)


# Decoding


@pytest.fixture(params=["eager", "cpu"])
def engine(request, tiny_model):
    return make_engine(tiny_model, request.param)


def test_logits_are_prompted_again_within_the_limits_of_training(engine, encoded, monkeypatch):
    prompted, decode = [], engine.decode

    def loud(features, prompts, **options):
        prompted.append(prompts.masks)
        decoded = decode(features, prompts, **options)
        return decoded if prompts.masks is not None else replace(decoded, logits=decoded.logits * 1e4)

    monkeypatch.setattr(engine, "decode", loud)
    with torch.inference_mode():
        points = torch.from_numpy(make_grid(2)) * 64
        decode_points(engine, encoded.features, points, EverythingOptions(refine=True, **ANY))
    assert prompted[0] is None
    assert [(masks.min().item(), masks.max().item()) for masks in prompted[1:]] == 3 * [(-32, 32)]


def test_confident_candidates_are_those_of_a_full_decode(engine, encoded):
    points = torch.from_numpy(make_grid(5))[None, :, None] * 64
    prompts = Prompts(points, torch.ones(1, 25, 1, dtype=torch.long))
    with torch.inference_mode():
        full = engine.decode(encoded.features, prompts, multimask=True)
        # A threshold in the middle of a gap, since engines differ in the last bit of a score.
        ranked = full.iou_scores.flatten().sort().values
        gap = 30 + int(ranked[30:46].diff().argmax())
        assert ranked[gap + 1] - ranked[gap] > 1e-5
        for threshold in (-1.0, float(ranked[gap : gap + 2].mean()), float(ranked[-1]) + 1e-3):
            confident = engine.decode_confident(encoded.features, prompts, iou_threshold=threshold)
            is_confident = full.iou_scores[0] > threshold
            torch.testing.assert_close(confident.iou_scores, full.iou_scores[0][is_confident])
            torch.testing.assert_close(confident.logits, full.logits[0][is_confident], rtol=1e-4, atol=1e-4)
            assert confident.objects.tolist() == is_confident.nonzero()[:, 0].tolist()


@pytest.mark.parametrize("packed", [False, True])
def test_masks_that_cleaning_makes_duplicates_are_removed_without_a_copy_of_all(sam, monkeypatch, packed):
    """Each rectangle comes twice, once with an island that is cleaned away."""
    size_hw, cells = (400, 600), torch.full((40, 64, 64), -9.0)
    for number in range(20):
        cells[2 * number : 2 * number + 2, 3 * number : 3 * number + 6, 10:30] = 9
        cells[2 * number, (3 * number + 32) % 64, 50] = 9
    scores = np.linspace(1, 0.5, 40, dtype=np.float32)
    columns = (np.zeros((40, 4), np.float32), np.zeros(40, int), np.ones(40, np.float32), np.zeros((40, 2), np.float32))
    found = Candidates(cells, scores, *columns)
    monkeypatch.setattr(generator, "find_candidates", lambda *args: found)
    tracemalloc.start()
    masks = sam.everything(np.zeros((*size_hw, 3), np.uint8), packed=packed, min_area=200)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    one_mask = 400 * 600
    assert peak < (0 if packed else 40 * one_mask) + 15 * one_mask
    np.testing.assert_array_equal(masks.iou_scores, scores[1::2])
    np.testing.assert_array_equal(masks.object_ids, np.arange(20))
    np.testing.assert_array_equal(masks.masks, (upscale_logits(cells[1::2], size_hw) > 0).numpy())
