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
    np.testing.assert_allclose(a.scores, b.scores, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(a.objects, b.objects)
    assert (a.masks != b.masks).mean() < 1e-3


def assert_equal(a, b):
    for name in ("masks", "logits", "scores", "objects"):
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
def test_a_prompt_gives_masks_of_the_pictures_size(photo, picture, prompt, count):
    masks = photo.predict(**prompt)
    assert isinstance(masks, Masks)
    assert masks.masks.shape == (count, 48, 80)
    assert masks.masks.dtype == bool
    assert masks.logits.shape == (count, 16, 16)
    assert masks.scores.shape == (count,)
    assert masks.objects.tolist() == [0] * count
    np.testing.assert_array_equal(masks.picture, picture)
    assert masks.overlay().size == (80, 48)


def test_candidates_of_an_object_follow_each_other(photo):
    masks = photo.predict([[(30, 20)], [(70, 40)]])
    assert masks.objects.tolist() == [0, 0, 0, 1, 1, 1]
    assert masks.best.objects.tolist() == [0, 1]


@given(counts=st.lists(st.integers(1, 4), min_size=2, max_size=4), seed=st.integers(0, 99))
@settings(max_examples=10)
def test_ragged_objects_together_equal_each_alone(photo, counts, seed):
    rng = np.random.default_rng(seed)
    objects = [[(80 * u, 48 * v, rng.integers(0, 2)) for u, v in rng.random((count, 2))] for count in counts]
    together = photo.predict(objects, multimask=True)
    for index, points in enumerate(objects):
        alone = photo.predict(points, multimask=True)
        own = together[together.objects == index]
        np.testing.assert_allclose(own.logits, alone.logits, rtol=1e-5, atol=1e-5 * np.abs(alone.logits).max())
        np.testing.assert_allclose(own.scores, alone.scores, rtol=1e-5, atol=1e-5)


@given(order=st.permutations(range(4)), seed=st.integers(0, 99))
@settings(max_examples=20)
def test_the_order_of_points_does_not_matter(photo, order, seed):
    rng = np.random.default_rng(seed)
    points = [(80 * u, 48 * v, label) for (u, v), label in zip(rng.random((4, 2)), (1, 0, 1, 0), strict=True)]
    assert_same(photo.predict([points[i] for i in order], multimask=True), photo.predict(points, multimask=True))


@pytest.mark.parametrize("count", [OBJECTS_AT_ONCE, OBJECTS_AT_ONCE + 1, 2 * OBJECTS_AT_ONCE + 5])
def test_more_objects_than_are_decoded_at_once_equal_one_by_one(photo, count):
    rng = np.random.default_rng(count)
    corners = rng.random((count, 2)) * (60, 30)
    boxes = np.concatenate([corners, corners + rng.random((count, 2)) * 18 + 1], axis=1)
    together = photo.predict(boxes=boxes, multimask=True)
    assert together.objects.tolist() == [index for index in range(count) for _ in range(3)]
    for index in {0, OBJECTS_AT_ONCE - 1, count // 2, count - 1}:
        alone = photo.predict(box=boxes[index], multimask=True)
        own = together[together.objects == index]
        np.testing.assert_allclose(own.logits, alone.logits, rtol=1e-5, atol=1e-5 * np.abs(alone.logits).max())
        np.testing.assert_allclose(own.scores, alone.scores, rtol=1e-5, atol=1e-5)


def test_points_and_masks_of_many_objects_are_cut_alike(photo, monkeypatch):
    points = [[(10 * i, 5 * i)] for i in range(5)]
    mask = np.random.default_rng(0).normal(size=(5, 16, 16))
    at_once = photo.predict(points, mask=mask, multimask=True)
    monkeypatch.setattr(image_module, "OBJECTS_AT_ONCE", 2)
    assert_same(photo.predict(points, mask=mask, multimask=True), at_once)


# Masks as prompts


def test_a_result_goes_back_in_as_it_came_out(photo):
    first = photo.predict(CLICK).best
    for mask in (first.logits, first.logits[0], torch.tensor(first.logits), first.logits.astype(np.float64)):
        assert_same(photo.predict(CLICK, mask=mask), photo.predict(CLICK, mask=first.logits.copy()))
    without = photo.predict(CLICK, multimask=False)
    assert not np.allclose(photo.predict(CLICK, mask=first.logits).logits, without.logits)


def test_a_plain_mask_acts_as_its_logits_and_box(photo):
    plain = np.zeros((48, 80), bool)
    plain[12:36, 20:60] = True
    by_mask = photo.predict(mask=plain)
    assert by_mask.masks.shape == (1, 48, 80)
    assert_equal(by_mask, photo.predict(mask=plain[None].astype(np.uint8) * 255))
    assert_equal(by_mask, photo.predict(mask=plain, box=(20, 12, 60, 36)))
    assert not np.allclose(by_mask.logits, photo.predict(box=(20, 12, 60, 36)).logits)


def test_a_mask_of_a_result_goes_back_in_too(photo):
    first = photo.predict(CLICK).best
    assert photo.predict(mask=first.masks).masks.shape == (1, 48, 80)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (
            np.ones((80, 48), bool),
            "mask has shape (1, 80, 48) of bool: expected the picture's size (48, 80) (rows, col",
        ),
        (np.zeros((48, 80), bool), "mask 0 is empty: expected at least one pixel of the object"),
    ],
)
def test_a_mask_that_does_not_fit_is_refused(photo, mask, message):
    with pytest.raises(PromptError) as caught:
        photo.predict(mask=mask)
    assert str(caught.value).startswith(message)


def test_a_whole_result_is_no_mask(photo):
    masks = photo.predict(CLICK)
    with pytest.raises(PromptError, match=r"mask is a Masks and holds no plain numbers: .*, mask=result.logits"):
        photo.predict(mask=masks)


def test_three_candidates_are_no_mask_of_one_object(photo):
    masks = photo.predict(CLICK)
    with pytest.raises(PromptError, match=r"different numbers of objects: points for 1, mask for 3"):
        photo.predict(CLICK, mask=masks.logits)


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
def test_prompts_that_make_no_sense_are_refused(photo, prompt, message):
    with pytest.raises(PromptError) as caught:
        photo.predict(**prompt)
    assert str(caught.value) == message


# Cleaning


@pytest.mark.parametrize("areas", [(5, 0), (0, 5), (10**6, 10**6)])
def test_masks_are_cleaned_if_asked_for(photo, areas):
    fill_holes, remove_islands = areas
    plain = photo.predict(CLICK)
    cleaned = photo.predict(CLICK, fill_holes=fill_holes, remove_islands=remove_islands)
    np.testing.assert_array_equal(
        cleaned.masks, clean_masks(plain.masks, fill_holes=fill_holes, remove_islands=remove_islands)
    )
    np.testing.assert_array_equal(cleaned.logits, plain.logits)
    if min(areas):
        assert not np.array_equal(cleaned.masks, plain.masks)


# Other sizes


@pytest.mark.parametrize("resolution", [32, 64, 128, (96, 160), (160, 96), [96, 160]])
def test_the_network_runs_at_other_sizes(sam, picture, resolution):
    photo = sam.image(picture, resolution=resolution)
    h, w = (resolution, resolution) if isinstance(resolution, int) else resolution
    assert photo.input_hw == (h, w)
    masks = photo.predict([(30, 20), (70, 40, 0)])
    assert masks.masks.shape == (1, 48, 80)
    assert masks.logits.shape == (1, h // 4, w // 4)
    assert np.isfinite(masks.logits).all()
    assert_equal(sam.image(picture, resolution=resolution).predict([(30, 20), (70, 40, 0)]), masks)
    assert_same(photo.predict(mask=masks.logits), photo.predict(mask=masks.logits.copy()))
    assert photo.predict(mask=masks.masks).masks.shape == (1, 48, 80)


@pytest.mark.parametrize("size_hw", [(1, 1), (1, 500), (500, 1), (7, 3)])
def test_the_smallest_pictures_work(sam, size_hw):
    h, w = size_hw
    photo = sam.image(np.full((h, w, 3), 200, np.uint8))
    masks = photo.predict([(w, h)], mask=np.ones((h, w), np.uint8))
    assert masks.masks.shape == (1, h, w)
    assert photo.predict(box=(0, 0, w, h), fill_holes=3, remove_islands=3).masks.shape == (1, h, w)
    assert masks.overlay().size == (w, h)


# A value


def test_prompting_changes_nothing(sam, picture):
    photo = sam.image(picture)
    before = [level.clone() for level in photo.embeddings]
    first = photo.predict(CLICK)
    photo.predict(box=(0, 0, 80, 48), mask=first.best.logits, fill_holes=9, remove_islands=9)
    assert_equal(photo.predict(CLICK), first)
    for level, old in zip(photo.embeddings, before, strict=True):
        assert torch.equal(level, old)


def test_the_callers_picture_is_not_kept(sam, picture):
    own = picture.copy()
    photo = sam.image(own)
    own[:] = 0
    np.testing.assert_array_equal(photo.picture, picture)
    with pytest.raises(ValueError, match="read-only"):
        photo.picture[0] = 0
    assert sam.image(photo.picture).size_hw == (48, 80)


def test_photos_may_be_compared_and_kept_in_sets(sam, photo, picture):
    other = sam.image(picture)
    assert photo == photo
    assert photo != other
    assert len({photo, other, photo}) == 2


def test_a_photo_says_what_it_is(sam, picture):
    assert repr(sam.image(picture, resolution=(32, 96))) == "Photo(80×48, encoded at 96×32)"


def test_threads_may_share_one_model(sam):
    rng = np.random.default_rng(7)
    pictures = [rng.integers(0, 256, (40 + i, 60, 3), dtype=np.uint8) for i in range(8)]

    def segment(picture):
        photo = sam.image(picture, resolution=64 if picture.shape[0] % 2 else (96, 64))
        return [photo.predict(CLICK), photo.predict(box=(5, 5, 40, 30)), photo.predict([[(9, 9)], [(20, 20)]])]

    one_by_one = [segment(picture) for picture in pictures]
    with ThreadPoolExecutor(8) as threads:
        for _ in range(3):
            for together, alone in zip(threads.map(segment, pictures), one_by_one, strict=True):
                for a, b in zip(together, alone, strict=True):
                    assert_same(a, b)


def test_threads_may_share_one_photo(photo):
    prompts = [{"points": [(10 * i, 5 * i)]} for i in range(8)]
    alone = [photo.predict(**prompt) for prompt in prompts]
    with ThreadPoolExecutor(8) as threads:
        together = list(threads.map(lambda prompt: photo.predict(**prompt), prompts))
    for a, b in zip(together, alone, strict=True):
        assert_same(a, b)


# Saved and opened


@pytest.mark.parametrize("resolution", [None, (96, 160)])
def test_a_photo_returns_from_its_file(sam, picture, tmp_path, resolution, monkeypatch):
    photo = sam.image(picture, resolution=resolution)
    photo.save(tmp_path / "made" / "truck.safetensors")
    monkeypatch.setattr(Sam2Model, "get_image_features", None)  # nothing is encoded again
    opened = sam.open(str(tmp_path / "made" / "truck.safetensors"))
    assert repr(opened) == repr(photo)
    assert opened.picture is None
    for prompt in ({"points": CLICK}, {"box": (20, 10, 50, 30)}, {"mask": np.eye(48, 80, dtype=bool)}):
        assert_equal(opened.predict(**prompt), photo.predict(**prompt))
    with pytest.raises(ValueError, match="without their picture"):
        opened.predict(CLICK).overlay()
    assert opened.predict(CLICK).overlay(picture).size == (80, 48)


def test_a_photo_is_the_same_for_every_copy_of_the_model(photo, tiny_folder, tmp_path):
    photo.save(tmp_path / "photo.safetensors")
    assert_equal(load(tiny_folder).open(tmp_path / "photo.safetensors").predict(CLICK), photo.predict(CLICK))


def test_a_photo_of_half_precision_returns_too(tiny_folder, picture, tmp_path):
    half = load(tiny_folder, dtype=torch.float16)
    photo = half.image(picture)
    photo.save(tmp_path / "half.safetensors")
    opened = half.open(tmp_path / "half.safetensors")
    assert {level.dtype for level in opened.embeddings} == {torch.float16}
    assert_equal(opened.predict(CLICK), photo.predict(CLICK))


def with_another(part, model):
    other = Sam2Model(model.config).eval()
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        other.get_parameter(part).view(-1)[-1] += 1e-3
    return Segmenter(other, Sam2ImageProcessor(64))


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
def test_a_photo_of_another_encoder_is_refused(photo, tiny_model, tmp_path, part):
    path = tmp_path / "photo.safetensors"
    photo.save(path)
    with pytest.raises(CheckpointError) as caught:
        with_another(part, tiny_model).open(path)
    assert str(caught.value) == (
        f"{path} was encoded by another model: expected the one that is loaded. Load that model, or encode the picture "
        "again"
    )


def test_a_photo_serves_another_decoder_on_the_same_encoder(photo, tiny_model, tmp_path):
    photo.save(tmp_path / "photo.safetensors")
    other = with_another("mask_decoder.iou_token.weight", tiny_model)
    assert len(other.open(tmp_path / "photo.safetensors").predict(CLICK)) == 3


def foreign_safetensors(path, photo):
    save_file({"embeddings.0": torch.zeros(1)}, path)


def truncated_photo(path, photo):
    photo.save(path)
    path.write_bytes(path.read_bytes()[:-50])


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (foreign_safetensors, "{path} is a safetensors file, but not an encoded photo (Photo.save)"),
        (truncated_photo, "cannot open {path} as an encoded photo: "),
        (lambda path, photo: path.write_bytes(b"\xff\xd8\xff\xe0"), "cannot open {path} as an encoded photo: "),
        (lambda path, photo: path.write_bytes(b""), "cannot open {path} as an encoded photo: "),
        (lambda path, photo: path.write_bytes(pickle.dumps(1)), "cannot open {path} as an encoded photo: "),
        (lambda path, photo: path.mkdir(), "cannot open {path} as an encoded photo: "),
        (lambda path, photo: None, "cannot open {path} as an encoded photo: "),
    ],
    ids=["safetensors", "truncated", "JPEG", "empty", "pickle", "folder", "missing"],
)
def test_what_is_no_photo_is_refused(sam, photo, tmp_path, write, message):
    path = tmp_path / "photo.safetensors"
    write(path, photo)
    with pytest.raises(CheckpointError) as caught:
        sam.open(path)
    assert str(caught.value).startswith(message.format(path=path))


def test_a_photo_that_cannot_be_saved_leaves_the_old_file(photo, tmp_path, monkeypatch):
    path = tmp_path / "photo.safetensors"
    path.write_bytes(b"old")

    def fail(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(image_module, "save_file", fail)
    with pytest.raises(CheckpointError) as caught:
        photo.save(path)
    assert str(caught.value) == f"cannot save the photo to {path}: [Errno 28] No space left on device"
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["photo.safetensors"]


def test_a_notebook_shows_a_photo_that_has_its_picture(photo, picture):
    np.testing.assert_array_equal(Image.open(io.BytesIO(photo._repr_png_())), picture)
    assert f"<figcaption>{photo!r}</figcaption>" in photo._repr_html_()
    without = replace(photo, picture=None)
    assert without._repr_png_() is None
    assert "<img" not in without._repr_html_()
