import io
import os
import pickle
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mask_results import assert_fields_equal
from PIL import Image
from safetensors.torch import save_file

from masklet import image as image_module
from masklet.engine import make_engine
from masklet.errors import CheckpointError, PromptError
from masklet.image import OBJECTS_PER_BATCH
from masklet.masks import PackedMasks, clean_masks, upscale_logits
from masklet.masks import logits as logits_module
from masklet.model.sam2 import Sam2Model
from masklet.processing import ImageProcessor
from masklet.results import CandidateMasks, Masks
from masklet.segmenter import Segmenter, load

CLICK = [(30, 20)]


def assert_same(a, b):
    """Equal within a relative 1e-5; masks may differ where the logit is 0 up to rounding.

    Where the arithmetic differs, compare all candidates: rounding may decide which of them becomes the single mask.
    """
    scale = np.abs(b.logits).max()
    np.testing.assert_allclose(a.logits, b.logits, rtol=1e-5, atol=1e-5 * scale)
    np.testing.assert_allclose(a.iou_scores, b.iou_scores, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(a.object_ids, b.object_ids)
    assert (a.masks != b.masks).mean() < 1e-3


def assert_equal(a, b):
    for name in ("masks", "logits", "iou_scores", "object_ids"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


# Predictions


@pytest.mark.parametrize(
    ("prompt", "count"),
    [
        ({"points": CLICK}, 1),
        ({"points": CLICK, "multimask": False}, 1),
        ({"points": [CLICK, [(70, 40)]]}, 2),
        ({"points": [(30, 20), (70, 40, 0)]}, 1),
        ({"points": [(30, 20), (70, 40)], "labels": [1, 0], "multimask": True}, 1),
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
    assert masks.object_ids.tolist() == list(range(count))
    np.testing.assert_array_equal(masks.image, image)
    assert masks.overlay().size == (80, 48)


@pytest.mark.parametrize("prompt", [{"points": [[(30, 20)], [(70, 40)]]}, {"boxes": [(20, 10, 50, 30), (1, 1, 9, 9)]}])
def test_candidates_are_addressed_by_object_and_candidate(encoded, image, prompt):
    candidates = encoded.predict(**prompt, candidates=True)
    assert isinstance(candidates, CandidateMasks)
    assert candidates.masks.shape == (2, 3, 48, 80)
    assert candidates.logits.shape == (2, 3, 16, 16)
    assert candidates.iou_scores.shape == (2, 3)
    np.testing.assert_array_equal(candidates.masks, upscale_logits(torch.tensor(candidates.logits), (48, 80)) > 0)
    np.testing.assert_array_equal(candidates.image, image)
    assert_equal(candidates.best, encoded.predict(**prompt, multimask=True))
    for number, scores in enumerate(candidates.iou_scores):
        assert_equal(candidates.best[number], candidates[number, scores.argmax()])
        assert len(set(scores)) == 3, "the comparison is of different candidates"


def test_a_single_click_returns_the_best_of_three_candidates_and_other_prompts_the_single_mask(encoded):
    for prompt in ({"points": CLICK}, {"points": [CLICK, [(70, 40)]]}):
        assert_equal(encoded.predict(**prompt), encoded.predict(**prompt, multimask=True))
        assert not np.array_equal(encoded.predict(**prompt, multimask=False).logits, encoded.predict(**prompt).logits)
    for prompt in ({"points": [(30, 20), (70, 40, 0)]}, {"box": (20, 10, 50, 30)}):
        assert_equal(encoded.predict(**prompt), encoded.predict(**prompt, multimask=False))


def test_candidates_without_multimask_are_refused(encoded):
    with pytest.raises(PromptError, match="candidates=True returns three masks .*: multimask=False allows only one"):
        encoded.predict(CLICK, candidates=True, multimask=False)


@given(counts=st.lists(st.integers(1, 4), min_size=2, max_size=4), seed=st.integers(0, 99))
@settings(max_examples=10)
def test_ragged_objects_together_equal_each_alone(encoded, counts, seed):
    rng = np.random.default_rng(seed)
    objects = [[(80 * u, 48 * v, rng.integers(0, 2)) for u, v in rng.random((count, 2))] for count in counts]
    together = encoded.predict(objects, candidates=True)
    for own, points in zip(together, objects, strict=True):
        (alone,) = encoded.predict(points, candidates=True)
        np.testing.assert_allclose(own.logits, alone.logits, rtol=1e-5, atol=1e-5 * np.abs(alone.logits).max())
        np.testing.assert_allclose(own.iou_scores, alone.iou_scores, rtol=1e-5, atol=1e-5)


@given(order=st.permutations(range(4)), seed=st.integers(0, 99))
@settings(max_examples=20)
def test_the_order_of_points_does_not_matter(encoded, order, seed):
    rng = np.random.default_rng(seed)
    points = [(80 * u, 48 * v, label) for (u, v), label in zip(rng.random((4, 2)), (1, 0, 1, 0), strict=True)]
    assert_same(*(encoded.predict(p, candidates=True)[0] for p in ([points[i] for i in order], points)))


@pytest.mark.parametrize("count", [OBJECTS_PER_BATCH, OBJECTS_PER_BATCH + 1, 2 * OBJECTS_PER_BATCH + 5])
def test_objects_in_several_batches_equal_one_by_one(encoded, count):
    rng = np.random.default_rng(count)
    corners = rng.random((count, 2)) * (60, 30)
    boxes = np.concatenate([corners, corners + rng.random((count, 2)) * 18 + 1], axis=1)
    together = encoded.predict(boxes=boxes, candidates=True)
    assert len(together) == count
    for index in {0, OBJECTS_PER_BATCH - 1, count // 2, count - 1}:
        (alone,) = encoded.predict(box=boxes[index], candidates=True)
        own = together[index]
        np.testing.assert_allclose(own.logits, alone.logits, rtol=1e-5, atol=1e-5 * np.abs(alone.logits).max())
        np.testing.assert_allclose(own.iou_scores, alone.iou_scores, rtol=1e-5, atol=1e-5)


def test_batches_keep_points_and_masks_of_an_object_together(encoded, monkeypatch):
    points = [[(10 * i, 5 * i)] for i in range(5)]
    mask = np.random.default_rng(0).normal(size=(5, 16, 16))
    in_one_batch = encoded.predict(points, mask=mask, candidates=True).flatten()
    monkeypatch.setattr(image_module, "OBJECTS_PER_BATCH", 2)
    assert_same(encoded.predict(points, mask=mask, candidates=True).flatten(), in_one_batch)


# Masks as prompts


def test_the_logits_of_a_result_can_be_the_next_prompt(encoded):
    first = encoded.predict(CLICK)
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


def test_the_mask_of_a_result_can_be_the_next_prompt(encoded):
    first = encoded.predict(CLICK)
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


def test_a_result_instead_of_its_logits_is_refused(encoded):
    masks = encoded.predict(CLICK)
    with pytest.raises(PromptError, match=r"mask is a Masks and holds no plain numbers: .*, mask=result.logits"):
        encoded.predict(mask=masks)


def test_three_candidates_are_not_the_mask_of_one_object(encoded):
    candidates = encoded.predict(CLICK, candidates=True)
    with pytest.raises(PromptError, match=r"different numbers of objects: points for 1, mask for 3"):
        encoded.predict(CLICK, mask=candidates[0].logits)


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
def test_invalid_prompts_are_refused(encoded, prompt, message):
    with pytest.raises(PromptError) as caught:
        encoded.predict(**prompt)
    assert str(caught.value) == message


# Cleaning


@pytest.mark.parametrize("areas", [(5, 0), (0, 5), (10**6, 10**6)])
def test_masks_can_be_cleaned(encoded, areas):
    fill_holes, remove_islands = areas
    plain = encoded.predict(CLICK)
    cleaned = encoded.predict(CLICK, fill_holes=fill_holes, remove_islands=remove_islands)
    np.testing.assert_array_equal(
        cleaned.masks, clean_masks(plain.masks, fill_holes=fill_holes, remove_islands=remove_islands)
    )
    np.testing.assert_array_equal(cleaned.logits, plain.logits)
    candidates = encoded.predict(CLICK, fill_holes=fill_holes, remove_islands=remove_islands, candidates=True)
    assert_equal(candidates.best, cleaned)
    if min(areas):
        assert not np.array_equal(cleaned.masks, plain.masks)


# Memory


def some_boxes(count, seed=0):
    rng = np.random.default_rng(seed)
    corners = rng.random((count, 2)) * (60, 30)
    return np.concatenate([corners, corners + rng.random((count, 2)) * 18 + 1], axis=1)


@pytest.mark.parametrize("candidates", [False, True])
@pytest.mark.parametrize("chunk_pixels", [1, 3 * 48 * 80 + 5, 2**30])
def test_chunks_change_no_bit_of_a_result_and_bound_the_logits_of_full_size(
    encoded, monkeypatch, candidates, chunk_pixels
):
    boxes, cleaning, sizes = some_boxes(2 * OBJECTS_PER_BATCH + 3), {"fill_holes": 9, "remove_islands": 9}, []

    def counting(low_res, size_hw):
        sizes.append(len(low_res) * size_hw[0] * size_hw[1])
        return upscale_logits(low_res, size_hw)

    monkeypatch.setattr(logits_module, "upscale_logits", counting)
    monkeypatch.setattr(logits_module, "CHUNK_PIXELS", chunk_pixels)
    found = encoded.predict(boxes=boxes, candidates=candidates, **cleaning)
    assert sum(sizes) == found.masks.size
    assert max(sizes) <= max(chunk_pixels, 48 * 80)
    flat = found.flatten() if candidates else found
    inside = (upscale_logits(torch.tensor(flat.logits), (48, 80)) > 0).numpy()
    np.testing.assert_array_equal(flat.masks, clean_masks(inside, **cleaning))
    if not candidates:
        packed = encoded.predict(boxes=boxes, packed=True, **cleaning)
        np.testing.assert_array_equal(packed.masks, found.masks)
        assert len(sizes) > 1 or chunk_pixels > 48 * 80


@pytest.mark.parametrize("options", [{}, {"candidates": True}, {"fill_holes": 9}, {"packed": True}])
def test_a_prediction_takes_little_more_memory_than_its_result(sam, options):
    size_hw, boxes = (500, 700), 8 * some_boxes(OBJECTS_PER_BATCH + 8)
    encoded = sam.image(np.zeros((*size_hw, 3), np.uint8))
    encoded.predict(boxes=boxes[:1])  # what is made once
    tracemalloc.start()
    found = encoded.predict(boxes=boxes, **options)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    kept = 0 if options.get("packed") else found.masks.nbytes + found.logits.nbytes
    one_chunk = logits_module.CHUNK_PIXELS
    assert kept < peak < kept + 3 * one_chunk
    assert found.masks.shape[-2:] == size_hw
    if not options.get("packed"):
        assert kept > 3 * one_chunk, "a copy of the result would show"


def test_packed_predictions_equal_others_and_have_no_logits(encoded, image):
    boxes = some_boxes(5)
    packed, found = encoded.predict(boxes=boxes, packed=True), encoded.predict(boxes=boxes)
    assert isinstance(packed.masks, PackedMasks)
    assert packed.logits.shape == (5, 0, 0)
    assert_fields_equal(packed, found, "masks", "iou_scores", "object_ids", "image")
    assert packed.to_coco() == found.to_coco()
    np.testing.assert_array_equal(packed.overlay(), found.overlay())
    (click,) = encoded.predict(CLICK, packed=True)
    np.testing.assert_array_equal(click.masks, encoded.predict(CLICK).masks)


def test_packed_candidates_are_refused(encoded):
    with pytest.raises(
        PromptError, match="candidates=True and packed=True were both given: packed masks hold one mask for"
    ):
        encoded.predict(CLICK, candidates=True, packed=True)


# No objects


NO_OBJECTS = {
    "boxes (0, 4)": {"boxes": np.zeros((0, 4))},
    "boxes []": {"boxes": []},
    "boxes ()": {"boxes": ()},
    "boxes (0,)": {"boxes": np.zeros(0)},
    "boxes of a detector": {"boxes": torch.zeros(0, 4, dtype=torch.float16)},
    "points (0, 3, 2)": {"points": np.zeros((0, 3, 2))},
    "points and labels": {"points": torch.zeros(0, 1, 2), "labels": torch.zeros(0, 1)},
    "points, labels and boxes": {"points": [], "labels": [], "boxes": []},
    "logits": {"mask": np.zeros((0, 16, 16), np.float32)},
    "masks": {"mask": np.zeros((0, 48, 80), bool), "boxes": np.zeros((0, 4))},
}


@pytest.mark.parametrize("prompt", NO_OBJECTS.values(), ids=NO_OBJECTS)
def test_prompts_of_no_objects_give_no_masks(encoded, image, prompt):
    for packed in (False, True):
        masks = encoded.predict(**prompt, packed=packed)
        assert masks.masks.shape == (0, 48, 80)
        assert masks.logits.shape == ((0, 0, 0) if packed else (0, 16, 16))
        kinds = [array.dtype.kind for array in (masks.masks, masks.logits, masks.iou_scores, masks.object_ids)]
        assert kinds == ["b", "f", "f", "i"]
        np.testing.assert_array_equal(masks.overlay(), image)
    candidates = encoded.predict(**prompt, candidates=True, fill_holes=3)
    assert candidates.masks.shape == (0, 3, 48, 80)
    assert candidates.logits.shape == (0, 3, 16, 16)
    assert candidates.iou_scores.shape == (0, 3)
    assert len(candidates.best) == len(candidates.flatten()) == 0


def test_no_masks_can_be_the_next_prompt(encoded):
    nothing = encoded.predict(boxes=[])
    for mask in (nothing.logits, nothing.masks):
        assert len(encoded.predict(mask=mask)) == 0
    assert len(encoded.predict(boxes=nothing.boxes)) == 0


@pytest.mark.parametrize(
    "box", [[[20, 10, 50, 30]], np.array([[20, 10, 50, 30]]), torch.tensor([[20.0, 10, 50, 30]]), [(20, 10, 50, 30)]]
)
def test_a_box_may_be_nested_once_as_in_metas_examples(encoded, box):
    assert_equal(encoded.predict(box=box), encoded.predict(box=(20, 10, 50, 30)))


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ([[1, 2, 3, 4], [5, 6, 7, 8]], r"box holds 2 boxes: expected \(x0, y0, x1, y1\) around one object"),
        (np.zeros((0, 4)), "box holds 0 boxes: expected"),
        ([], "box holds 0 boxes: expected"),
        ([[[1, 2, 3, 4]]], r"boxes are \[\[\[1, 2, 3, 4\]\]\]: expected a list of"),
        ([[1, 2, 3]], "expected a list of"),
        (5, "boxes are .5.: expected a list of"),
    ],
)
def test_several_boxes_as_one_are_refused(encoded, box, message):
    with pytest.raises(PromptError, match=message):
        encoded.predict(box=box)


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
def test_tiny_images_work(sam, size_hw):
    h, w = size_hw
    encoded = sam.image(np.full((h, w, 3), 200, np.uint8))
    masks = encoded.predict([(w, h)], mask=np.ones((h, w), np.uint8))
    assert masks.masks.shape == (1, h, w)
    assert encoded.predict(box=(0, 0, w, h), fill_holes=3, remove_islands=3).masks.shape == (1, h, w)
    assert masks.overlay().size == (w, h)


# Immutable, thread-safe


def test_prompting_changes_nothing(sam, image):
    encoded = sam.image(image)
    before = [level.clone() for level in encoded.features]
    first = encoded.predict(CLICK)
    encoded.predict(box=(0, 0, 80, 48), mask=first.logits, fill_holes=9, remove_islands=9)
    assert_equal(encoded.predict(CLICK), first)
    for level, old in zip(encoded.features, before, strict=True):
        assert torch.equal(level, old)


def test_changing_the_callers_image_changes_nothing(sam, image):
    own = image.copy()
    encoded = sam.image(own)
    own[:] = 0
    np.testing.assert_array_equal(encoded.image, image)
    with pytest.raises(ValueError, match="read-only"):
        encoded.image[0] = 0
    assert sam.image(encoded.image).size_hw == (48, 80)


def test_encoded_images_can_be_compared_and_collected_in_sets(sam, encoded, image):
    other = sam.image(image)
    assert encoded == encoded
    assert encoded != other
    assert len({encoded, other, encoded}) == 2


def test_repr_has_both_sizes(sam, image):
    assert repr(sam.image(image, resolution=(32, 96))) == "EncodedImage(80×48, encoded at 96×32)"


def test_threads_can_share_a_model(sam):
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


def test_threads_can_share_an_encoded_image(encoded):
    prompts = [{"points": [(10 * i, 5 * i)]} for i in range(8)]
    alone = [encoded.predict(**prompt) for prompt in prompts]
    with ThreadPoolExecutor(8) as threads:
        together = list(threads.map(lambda prompt: encoded.predict(**prompt), prompts))
    for a, b in zip(together, alone, strict=True):
        assert_same(a, b)


# Saved and loaded


@pytest.mark.parametrize("resolution", [None, (96, 160)])
def test_a_saved_image_loads_without_encoding(sam, image, tmp_path, resolution, monkeypatch):
    encoded = sam.image(image, resolution=resolution)
    encoded.save(tmp_path / "made" / "truck.safetensors")
    monkeypatch.setattr(type(sam.engine), "encode", None)  # nothing is encoded again
    loaded = sam.load_image(str(tmp_path / "made" / "truck.safetensors"))
    assert repr(loaded) == repr(encoded)
    assert loaded.image is None
    for prompt in ({"points": CLICK}, {"box": (20, 10, 50, 30)}, {"mask": np.eye(48, 80, dtype=bool)}):
        assert_equal(loaded.predict(**prompt), encoded.predict(**prompt))
    with pytest.raises(ValueError, match="these masks have no image"):
        loaded.predict(CLICK).overlay()
    assert loaded.predict(CLICK).overlay(image).size == (80, 48)


def test_another_copy_of_the_model_loads_a_saved_image(encoded, tiny_folder, tmp_path):
    encoded.save(tmp_path / "encoded.safetensors")
    assert_equal(
        load(tiny_folder, dtype="float32").load_image(tmp_path / "encoded.safetensors").predict(CLICK),
        encoded.predict(CLICK),
    )


def test_a_saved_image_of_half_precision_loads(tiny_folder, image, tmp_path):
    half = load(tiny_folder, dtype=torch.float16)
    encoded = half.image(image)
    encoded.save(tmp_path / "half.safetensors")
    loaded = half.load_image(tmp_path / "half.safetensors")
    assert {level.dtype for level in loaded.features} == {torch.float16}
    assert_equal(loaded.predict(CLICK), encoded.predict(CLICK))


def with_another(part, model):
    other = Sam2Model(model.config).eval()
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        other.get_parameter(part).view(-1)[-1] += 1e-3
    return Segmenter(make_engine(other), ImageProcessor(64))


@pytest.mark.parametrize(
    "part",
    [
        "vision_encoder.backbone.pos_embed",
        "vision_encoder.backbone.blocks.2.attn.qkv.weight",
        "vision_encoder.backbone.blocks.4.mlp.proj_out.bias",
        "vision_encoder.neck.convs.0.weight",
        "mask_decoder.conv_s0.weight",
    ],
)
def test_an_image_of_another_encoder_is_refused(encoded, tiny_model, tmp_path, part):
    path = tmp_path / "encoded.safetensors"
    encoded.save(path)
    with pytest.raises(CheckpointError) as caught:
        with_another(part, tiny_model).load_image(path)
    assert str(caught.value) == (
        f"{path} was encoded by another model than the one that is loaded: load that model, or encode the image again"
    )


def test_a_saved_image_works_with_another_decoder_on_the_same_encoder(encoded, tiny_model, tmp_path):
    encoded.save(tmp_path / "encoded.safetensors")
    other = with_another("mask_decoder.iou_token.weight", tiny_model)
    assert len(other.load_image(tmp_path / "encoded.safetensors").predict(CLICK)) == 1


def foreign_safetensors(path, encoded):
    save_file({"embeddings.0": torch.zeros(1)}, path)


def truncated_image(path, encoded):
    encoded.save(path)
    path.write_bytes(path.read_bytes()[:-50])


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (foreign_safetensors, "{path} is a safetensors file, but not an encoded image (EncodedImage.save)"),
        (truncated_image, "cannot load {path} as an encoded image: "),
        (lambda path, encoded: path.write_bytes(b"\xff\xd8\xff\xe0"), "cannot load {path} as an encoded image: "),
        (lambda path, encoded: path.write_bytes(b""), "cannot load {path} as an encoded image: "),
        (lambda path, encoded: path.write_bytes(pickle.dumps(1)), "cannot load {path} as an encoded image: "),
        (lambda path, encoded: path.mkdir(), "cannot load {path} as an encoded image: "),
        (lambda path, encoded: None, "cannot load {path} as an encoded image: "),
    ],
    ids=["safetensors", "truncated", "JPEG", "empty", "pickle", "folder", "missing"],
)
def test_files_that_are_not_encoded_images_are_refused(sam, encoded, tmp_path, write, message):
    path = tmp_path / "encoded.safetensors"
    write(path, encoded)
    with pytest.raises(CheckpointError) as caught:
        sam.load_image(path)
    assert str(caught.value).startswith(message.format(path=path))


def test_a_save_that_fails_keeps_the_old_file(encoded, tmp_path, monkeypatch):
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


def test_a_notebook_displays_the_image_if_there_is_one(encoded, image):
    np.testing.assert_array_equal(Image.open(io.BytesIO(encoded._repr_png_())), image)
    assert f"<figcaption>{encoded!r}</figcaption>" in encoded._repr_html_()
    without = replace(encoded, image=None)
    assert without._repr_png_() is None
    assert "<img" not in without._repr_html_()
