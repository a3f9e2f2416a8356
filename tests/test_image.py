import io
import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file

from masklet import image as image_module
from masklet.engine import make_engine
from masklet.errors import CheckpointError, PromptError
from masklet.image import OBJECTS_AT_ONCE
from masklet.masks import clean_masks
from masklet.model.sam2 import Sam2Model
from masklet.processing import Sam2ImageProcessor
from masklet.results import Masks
from masklet.segmenter import Segmenter, load

CLICK = [(30, 20)]


def assert_same(a, b):
    """Equal to 1e-5 of what there is; masks but for pixels whose logit is 0 to rounding.

    Where the arithmetic differs, compare with ``multimask=True``: which candidate becomes the single mask depends on
    thresholds, and rounding may decide.
    """
    scale = np.abs(b.logits).max()
    np.testing.assert_allclose(a.logits, b.logits, rtol=1e-5, atol=1e-5 * scale)
    np.testing.assert_allclose(a.iou_scores, b.iou_scores, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(a.object_ids, b.object_ids)
    assert (a.masks != b.masks).mean() < 1e-3


def assert_equal(a, b):
    for name in ("masks", "logits", "iou_scores", "object_ids"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


# What is predicted


@pytest.mark.parametrize(
    ("prompt", "count"),
    [
        ({"points": CLICK}, 3),
        ({"points": CLICK, "multimask": False}, 1),
        ({"points": [(30, 20), (70, 40, 0)]}, 1),
        ({"points": [(30, 20), (70, 40)], "labels": [1, 0], "multimask": True}, 3),
        ({"box": (20, 10, 50, 30)}, 1),
        ({"box": np.array([20, 10, 50, 30])}, 1),
        ({"box": (20, 10, 50, 30), "points": [(30, 20, 0)]}, 1),
        ({"mask": np.zeros((16, 16), np.float32)}, 1),
        ({"points": CLICK, "mask": np.zeros((16, 16), np.float32)}, 1),
    ],
)
def test_a_prompt_gives_masks_of_the_images_size(encoded, image, prompt, count):
    masks = encoded.predict(**prompt)
    assert isinstance(masks, Masks)
    assert masks.masks.shape == (count, 48, 80)
    assert masks.masks.dtype == bool
    assert masks.logits.shape == (count, 16, 16)
    assert masks.iou_scores.shape == (count,)
    assert masks.object_ids.tolist() == [0] * count
    np.testing.assert_array_equal(masks.image, image)
    assert masks.overlay().size == (80, 48)


def test_candidates_of_an_object_follow_each_other(encoded):
    masks = encoded.predict([[(30, 20)], [(70, 40)]])
    assert masks.object_ids.tolist() == [0, 0, 0, 1, 1, 1]
    assert masks.best.object_ids.tolist() == [0, 1]


@given(counts=st.lists(st.integers(1, 4), min_size=2, max_size=4), seed=st.integers(0, 99))
@settings(max_examples=10)
def test_ragged_objects_together_equal_each_alone(encoded, counts, seed):
    rng = np.random.default_rng(seed)
    objects = [[(80 * u, 48 * v, rng.integers(0, 2)) for u, v in rng.random((count, 2))] for count in counts]
    together = encoded.predict(objects, multimask=True)
    for index, points in enumerate(objects):
        alone = encoded.predict(points, multimask=True)
        own = together[together.object_ids == index]
        np.testing.assert_allclose(own.logits, alone.logits, rtol=1e-5, atol=1e-5 * np.abs(alone.logits).max())
        np.testing.assert_allclose(own.iou_scores, alone.iou_scores, rtol=1e-5, atol=1e-5)


@given(order=st.permutations(range(4)), seed=st.integers(0, 99))
@settings(max_examples=20)
def test_the_order_of_points_does_not_matter(encoded, order, seed):
    rng = np.random.default_rng(seed)
    points = [(80 * u, 48 * v, label) for (u, v), label in zip(rng.random((4, 2)), (1, 0, 1, 0), strict=True)]
    assert_same(encoded.predict([points[i] for i in order], multimask=True), encoded.predict(points, multimask=True))


@pytest.mark.parametrize("count", [OBJECTS_AT_ONCE, OBJECTS_AT_ONCE + 1, 2 * OBJECTS_AT_ONCE + 5])
def test_more_objects_than_are_decoded_at_once_equal_one_by_one(encoded, count):
    rng = np.random.default_rng(count)
    corners = rng.random((count, 2)) * (60, 30)
    boxes = np.concatenate([corners, corners + rng.random((count, 2)) * 18 + 1], axis=1)
    together = encoded.predict(boxes=boxes, multimask=True)
    assert together.object_ids.tolist() == [index for index in range(count) for _ in range(3)]
    for index in {0, OBJECTS_AT_ONCE - 1, count // 2, count - 1}:
        alone = encoded.predict(box=boxes[index], multimask=True)
        own = together[together.object_ids == index]
        np.testing.assert_allclose(own.logits, alone.logits, rtol=1e-5, atol=1e-5 * np.abs(alone.logits).max())
        np.testing.assert_allclose(own.iou_scores, alone.iou_scores, rtol=1e-5, atol=1e-5)


def test_points_and_masks_of_many_objects_are_cut_alike(encoded, monkeypatch):
    points = [[(10 * i, 5 * i)] for i in range(5)]
    mask = np.random.default_rng(0).normal(size=(5, 16, 16))
    at_once = encoded.predict(points, mask=mask, multimask=True)
    monkeypatch.setattr(image_module, "OBJECTS_AT_ONCE", 2)
    assert_same(encoded.predict(points, mask=mask, multimask=True), at_once)


# Masks as prompts


def test_a_result_goes_back_in_as_it_came_out(encoded):
    first = encoded.predict(CLICK).best
    for mask in (first.logits, first.logits[0], torch.tensor(first.logits), first.logits.astype(np.float64)):
        assert_same(encoded.predict(CLICK, mask=mask), encoded.predict(CLICK, mask=first.logits.copy()))
    without = encoded.predict(CLICK, multimask=False)
    assert not np.allclose(encoded.predict(CLICK, mask=first.logits).logits, without.logits)


def test_a_plain_mask_acts_as_its_logits_and_box(encoded):
    plain = np.zeros((48, 80), bool)
    plain[12:36, 20:60] = True
    by_mask = encoded.predict(mask=plain)
    assert by_mask.masks.shape == (1, 48, 80)
    assert_equal(by_mask, encoded.predict(mask=plain[None].astype(np.uint8) * 255))
    assert_equal(by_mask, encoded.predict(mask=plain, box=(20, 12, 60, 36)))
    assert not np.allclose(by_mask.logits, encoded.predict(box=(20, 12, 60, 36)).logits)


def test_a_mask_of_a_result_goes_back_in_too(encoded):
    first = encoded.predict(CLICK).best
    assert encoded.predict(mask=first.masks).masks.shape == (1, 48, 80)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (
            np.ones((80, 48), bool),
            "mask has shape (1, 80, 48) of bool: expected the image's size (48, 80) (rows, col",
        ),
        (np.zeros((48, 80), bool), "mask 0 is empty: expected at least one pixel of the object"),
    ],
)
def test_a_mask_that_does_not_fit_is_refused(encoded, mask, message):
    with pytest.raises(PromptError) as caught:
        encoded.predict(mask=mask)
    assert str(caught.value).startswith(message)


def test_a_whole_result_is_no_mask(encoded):
    masks = encoded.predict(CLICK)
    with pytest.raises(PromptError, match=r"mask is a Masks and holds no plain numbers: .*, mask=result.logits"):
        encoded.predict(mask=masks)


def test_three_candidates_are_no_mask_of_one_object(encoded):
    masks = encoded.predict(CLICK)
    with pytest.raises(PromptError, match=r"different numbers of objects: points for 1, mask for 3"):
        encoded.predict(CLICK, mask=masks.logits)


# Refusals


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ({}, "nothing to segment: expected points, a box or a mask"),
        (
            {"box": (1, 2, 3, 4), "boxes": [(1, 2, 3, 4)]},
            "box and boxes were both given: expected box for one object, or boxes for several",
        ),
        (
            {"box": (30, 5, 10, 20)},
            "box 0 is (30, 5, 10, 20): expected x0 < x1 and y0 < y1 (pixels of the 80×48 image; corners, not a width "
            "and a height)",
        ),
        (
            {"points": [(30, 70)]},
            "point (30, 70) is outside the image: x runs from 0 to 80, y from 0 to 48. Points are (x, y) in pixels of "
            "the original image, not (row, column) and not 0 to 1",
        ),
        (
            {"points": CLICK, "labels": [1, 0]},
            "labels do not match the points: [2] labels and [1] points for each object. Expected one label (1 "
            "foreground, 0 background) for each point, nested as the points are",
        ),
    ],
)
def test_prompts_that_make_no_sense_are_refused(encoded, prompt, message):
    with pytest.raises(PromptError) as caught:
        encoded.predict(**prompt)
    assert str(caught.value) == message


# Cleaning


@pytest.mark.parametrize("areas", [(5, 0), (0, 5), (10**6, 10**6)])
def test_masks_are_cleaned_if_asked_for(encoded, areas):
    fill_holes, remove_islands = areas
    plain = encoded.predict(CLICK)
    cleaned = encoded.predict(CLICK, fill_holes=fill_holes, remove_islands=remove_islands)
    np.testing.assert_array_equal(
        cleaned.masks, clean_masks(plain.masks, fill_holes=fill_holes, remove_islands=remove_islands)
    )
    np.testing.assert_array_equal(cleaned.logits, plain.logits)
    if min(areas):
        assert not np.array_equal(cleaned.masks, plain.masks)


# Other sizes


@pytest.mark.parametrize("resolution", [32, 64, 128, (96, 160), (160, 96), [96, 160]])
def test_the_network_runs_at_other_sizes(sam, image, resolution):
    encoded = sam.image(image, resolution=resolution)
    h, w = (resolution, resolution) if isinstance(resolution, int) else resolution
    assert encoded.input_hw == (h, w)
    masks = encoded.predict([(30, 20), (70, 40, 0)])
    assert masks.masks.shape == (1, 48, 80)
    assert masks.logits.shape == (1, h // 4, w // 4)
    assert np.isfinite(masks.logits).all()
    assert_equal(sam.image(image, resolution=resolution).predict([(30, 20), (70, 40, 0)]), masks)
    assert_same(encoded.predict(mask=masks.logits), encoded.predict(mask=masks.logits.copy()))
    assert encoded.predict(mask=masks.masks).masks.shape == (1, 48, 80)


@pytest.mark.parametrize("size_hw", [(1, 1), (1, 500), (500, 1), (7, 3)])
def test_the_smallest_images_work(sam, size_hw):
    h, w = size_hw
    encoded = sam.image(np.full((h, w, 3), 200, np.uint8))
    masks = encoded.predict([(w, h)], mask=np.ones((h, w), np.uint8))
    assert masks.masks.shape == (1, h, w)
    assert encoded.predict(box=(0, 0, w, h), fill_holes=3, remove_islands=3).masks.shape == (1, h, w)
    assert masks.overlay().size == (w, h)


# A value


def test_prompting_changes_nothing(sam, image):
    encoded = sam.image(image)
    before = [level.clone() for level in encoded.embeddings]
    first = encoded.predict(CLICK)
    encoded.predict(box=(0, 0, 80, 48), mask=first.best.logits, fill_holes=9, remove_islands=9)
    assert_equal(encoded.predict(CLICK), first)
    for level, old in zip(encoded.embeddings, before, strict=True):
        assert torch.equal(level, old)


def test_the_callers_image_is_not_kept(sam, image):
    own = image.copy()
    encoded = sam.image(own)
    own[:] = 0
    np.testing.assert_array_equal(encoded.image, image)
    with pytest.raises(ValueError, match="read-only"):
        encoded.image[0] = 0
    assert sam.image(encoded.image).size_hw == (48, 80)


def test_images_may_be_compared_and_kept_in_sets(sam, encoded, image):
    other = sam.image(image)
    assert encoded == encoded
    assert encoded != other
    assert len({encoded, other, encoded}) == 2


def test_an_image_says_what_it_is(sam, image):
    assert repr(sam.image(image, resolution=(32, 96))) == "EncodedImage(80×48, encoded at 96×32)"


def test_threads_may_share_one_model(sam):
    rng = np.random.default_rng(7)
    images = [rng.integers(0, 256, (40 + i, 60, 3), dtype=np.uint8) for i in range(8)]

    def segment(image):
        encoded = sam.image(image, resolution=64 if image.shape[0] % 2 else (96, 64))
        return [encoded.predict(CLICK), encoded.predict(box=(5, 5, 40, 30)), encoded.predict([[(9, 9)], [(20, 20)]])]

    one_by_one = [segment(image) for image in images]
    with ThreadPoolExecutor(8) as threads:
        for _ in range(3):
            for together, alone in zip(threads.map(segment, images), one_by_one, strict=True):
                for a, b in zip(together, alone, strict=True):
                    assert_same(a, b)


def test_threads_may_share_one_image(encoded):
    prompts = [{"points": [(10 * i, 5 * i)]} for i in range(8)]
    alone = [encoded.predict(**prompt) for prompt in prompts]
    with ThreadPoolExecutor(8) as threads:
        together = list(threads.map(lambda prompt: encoded.predict(**prompt), prompts))
    for a, b in zip(together, alone, strict=True):
        assert_same(a, b)


# Saved and opened


@pytest.mark.parametrize("resolution", [None, (96, 160)])
def test_an_image_returns_from_its_file(sam, image, tmp_path, resolution, monkeypatch):
    encoded = sam.image(image, resolution=resolution)
    encoded.save(tmp_path / "made" / "truck.safetensors")
    monkeypatch.setattr(Sam2Model, "encode", None)  # nothing is encoded again
    opened = sam.open(str(tmp_path / "made" / "truck.safetensors"))
    assert repr(opened) == repr(encoded)
    assert opened.image is None
    for prompt in ({"points": CLICK}, {"box": (20, 10, 50, 30)}, {"mask": np.eye(48, 80, dtype=bool)}):
        assert_equal(opened.predict(**prompt), encoded.predict(**prompt))
    with pytest.raises(ValueError, match="without their image"):
        opened.predict(CLICK).overlay()
    assert opened.predict(CLICK).overlay(image).size == (80, 48)


def test_an_image_is_the_same_for_every_copy_of_the_model(encoded, tiny_folder, tmp_path):
    encoded.save(tmp_path / "encoded.safetensors")
    assert_equal(load(tiny_folder).open(tmp_path / "encoded.safetensors").predict(CLICK), encoded.predict(CLICK))


def test_an_image_of_half_precision_returns_too(tiny_folder, image, tmp_path):
    half = load(tiny_folder, dtype=torch.float16)
    encoded = half.image(image)
    encoded.save(tmp_path / "half.safetensors")
    opened = half.open(tmp_path / "half.safetensors")
    assert {level.dtype for level in opened.embeddings} == {torch.float16}
    assert_equal(opened.predict(CLICK), encoded.predict(CLICK))


def with_another(part, model):
    other = Sam2Model(model.config).eval()
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        other.get_parameter(part).view(-1)[-1] += 1e-3
    return Segmenter(make_engine(other), Sam2ImageProcessor(64))


@pytest.mark.parametrize(
    "part",
    [
        "vision_encoder.backbone.pos_embed",
        "vision_encoder.backbone.blocks.2.attn.qkv.weight",
        "vision_encoder.backbone.blocks.4.mlp.proj_out.bias",
        "vision_encoder.neck.convs.0.weight",
        "mask_decoder.conv_s0.weight",
        "no_memory_embedding",
    ],
)
def test_an_image_of_another_encoder_is_refused(encoded, tiny_model, tmp_path, part):
    path = tmp_path / "encoded.safetensors"
    encoded.save(path)
    with pytest.raises(CheckpointError) as caught:
        with_another(part, tiny_model).open(path)
    assert str(caught.value) == (
        f"{path} was encoded by another model: expected the one that is loaded. Load that model, or encode the image "
        "again"
    )


def test_an_image_serves_another_decoder_on_the_same_encoder(encoded, tiny_model, tmp_path):
    encoded.save(tmp_path / "encoded.safetensors")
    other = with_another("mask_decoder.iou_token.weight", tiny_model)
    assert len(other.open(tmp_path / "encoded.safetensors").predict(CLICK)) == 3


def foreign_safetensors(path, encoded):
    save_file({"embeddings.0": torch.zeros(1)}, path)


def truncated_image(path, encoded):
    encoded.save(path)
    path.write_bytes(path.read_bytes()[:-50])


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (foreign_safetensors, "{path} is a safetensors file, but not an encoded image (EncodedImage.save)"),
        (truncated_image, "cannot open {path} as an encoded image: "),
        (lambda path, encoded: path.write_bytes(b"\xff\xd8\xff\xe0"), "cannot open {path} as an encoded image: "),
        (lambda path, encoded: path.write_bytes(b""), "cannot open {path} as an encoded image: "),
        (lambda path, encoded: path.write_bytes(pickle.dumps(1)), "cannot open {path} as an encoded image: "),
        (lambda path, encoded: path.mkdir(), "cannot open {path} as an encoded image: "),
        (lambda path, encoded: None, "cannot open {path} as an encoded image: "),
    ],
    ids=["safetensors", "truncated", "JPEG", "empty", "pickle", "folder", "missing"],
)
def test_what_is_no_image_is_refused(sam, encoded, tmp_path, write, message):
    path = tmp_path / "encoded.safetensors"
    write(path, encoded)
    with pytest.raises(CheckpointError) as caught:
        sam.open(path)
    assert str(caught.value).startswith(message.format(path=path))


def test_an_image_that_cannot_be_saved_leaves_the_old_file(encoded, tmp_path, monkeypatch):
    path = tmp_path / "encoded.safetensors"
    path.write_bytes(b"old")

    def fail(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(image_module, "save_file", fail)
    with pytest.raises(CheckpointError) as caught:
        encoded.save(path)
    assert str(caught.value) == f"cannot save the image to {path}: [Errno 28] No space left on device"
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["encoded.safetensors"]


def test_a_notebook_shows_an_image_that_has_its_image(encoded, image):
    np.testing.assert_array_equal(Image.open(io.BytesIO(encoded._repr_png_())), image)
    assert f"<figcaption>{encoded!r}</figcaption>" in encoded._repr_html_()
    without = replace(encoded, image=None)
    assert without._repr_png_() is None
    assert "<img" not in without._repr_html_()
