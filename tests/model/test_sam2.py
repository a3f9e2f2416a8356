import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from masklet import Sam2Model, Sam2Processor
from masklet.errors import ImageError, PromptError
from masklet.model.hiera import join_windows, split_windows, window_positions
from masklet.model.prompt_encoder import Prompts


@pytest.fixture(scope="module")
def pixel_values():
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def features(tiny_model, pixel_values):
    with torch.inference_mode():
        return tiny_model.encode(pixel_values)


@pytest.fixture(scope="module")
def embeddings(tiny_model, pixel_values):
    with torch.inference_mode():
        return tiny_model.get_image_embeddings(pixel_values)


def assert_same(a, b):
    """Equal to 1e-5 of what there is."""
    for name in ("pred_masks", "iou_scores", "object_score_logits"):
        x, y = getattr(a, name), getattr(b, name)
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-5 * max(1, y.abs().max().item()), msg=name)


def one_image(embeddings, index=0):
    return [level[index : index + 1] for level in embeddings]


# The way of the documentation


@pytest.mark.parametrize("with_maps", [False, True])
def test_code_for_transformers_runs_as_it_stands(tiny_folder, image, with_maps):
    device = "cpu"
    raw_image = image
    maps = {"segmentation_maps": np.zeros(image.shape[:2], np.uint8)} if with_maps else {}

    model = Sam2Model.from_pretrained(tiny_folder).to(device)
    processor = Sam2Processor.from_pretrained(tiny_folder)
    inputs = processor(raw_image, input_points=[[[45, 30]]], return_tensors="pt", **maps).to(device)
    with torch.no_grad():
        outputs = model(**inputs)
    masks = processor.image_processor.post_process_masks(
        outputs.pred_masks.cpu(), inputs["original_sizes"].cpu(), inputs["reshaped_input_sizes"].cpu()
    )
    scores = outputs.iou_scores

    assert scores.shape == (1, 1, 3)
    assert masks[0].shape == (1, 3, 48, 80)
    assert masks[0].dtype == torch.bool
    assert ("labels" in inputs) == with_maps
    if with_maps:
        assert inputs["labels"].shape == (1, 16, 16)


def test_the_long_way_and_the_short_way_agree(tiny_folder, image, encoded):
    processor = Sam2Processor.from_pretrained(tiny_folder)
    inputs = processor(image, input_points=[[[[45, 30], [10, 10]]]], input_labels=[[[1, 0]]])
    with torch.no_grad():
        outputs = Sam2Model.from_pretrained(tiny_folder)(**inputs, multimask_output=False)
    (masks,) = processor.post_process_masks(outputs.pred_masks, inputs["original_sizes"])
    short = encoded.predict([(45, 30), (10, 10, 0)], multimask=False)
    np.testing.assert_array_equal(short.masks, masks[0])
    np.testing.assert_allclose(short.iou_scores, outputs.iou_scores[0, 0], rtol=1e-5)


# Shapes


@pytest.mark.parametrize(("multimask", "masks"), [(True, 3), (False, 1)])
@pytest.mark.parametrize("size_hw", [(64, 64), (96, 160), (160, 96), (32, 64)])
def test_results_follow_the_size_of_the_input(tiny_model, size_hw, multimask, masks):
    h, w = size_hw
    pixel_values = torch.randn(2, 3, h, w, generator=torch.Generator().manual_seed(2))
    points = torch.rand(2, 4, 5, 2, generator=torch.Generator().manual_seed(3)) * torch.tensor([w, h])
    with torch.inference_mode():
        outputs = tiny_model(pixel_values, input_points=points, multimask_output=multimask)
        again = tiny_model(pixel_values, input_points=points, multimask_output=multimask)
    assert outputs.pred_masks.shape == (2, 4, masks, h // 4, w // 4)
    assert outputs.iou_scores.shape == (2, 4, masks)
    assert outputs.object_score_logits.shape == (2, 4, 1)
    assert [tuple(level.shape) for level in outputs.image_embeddings] == [
        (2, 4, h // 4, w // 4),
        (2, 8, h // 8, w // 8),
        (2, 32, h // 16, w // 16),
    ]
    assert ((outputs.iou_scores >= 0) & (outputs.iou_scores <= 1)).all()
    assert outputs.pred_masks.isfinite().all()
    assert torch.equal(outputs.pred_masks, again.pred_masks)


def test_all_four_masks_are_the_single_one_then_the_candidates(tiny_model, features):
    points, labels = torch.rand(2, 3, 2, 2) * 64, torch.ones(2, 3, 2, dtype=torch.long)
    with torch.inference_mode():
        together, candidates = (
            tiny_model.decode(features, Prompts(points, labels), multimask=multimask) for multimask in (None, True)
        )
    assert together.logits.shape == (2, 3, 4, 16, 16)
    assert torch.equal(together.logits[:, :, 1:], candidates.logits)
    assert torch.equal(together.iou_scores[:, :, 1:], candidates.iou_scores)


def test_without_any_prompt_there_is_one_object_an_image(tiny_model, embeddings):
    with torch.inference_mode():
        assert tiny_model(image_embeddings=embeddings).pred_masks.shape == (2, 1, 3, 16, 16)


# One embedding, many prompts


def test_an_embedding_serves_many_prompts(tiny_model, pixel_values, embeddings):
    before = [level.clone() for level in embeddings]
    with torch.inference_mode():
        for prompt in (
            {"input_points": torch.tensor([[[[10.0, 20.0]]]] * 2)},
            {"input_boxes": torch.tensor([[[1.0, 2.0, 30.0, 40.0]]] * 2)},
            {"input_masks": torch.ones(2, 1, 16, 16)},
        ):
            anew, reused = tiny_model(pixel_values, **prompt), tiny_model(image_embeddings=embeddings, **prompt)
            assert_same(reused, anew)
    for level, old in zip(embeddings, before, strict=True):
        assert torch.equal(level, old)


def test_each_image_of_a_batch_is_segmented_as_alone(tiny_model, embeddings):
    points = 64 * torch.rand(2, 3, 2, 2, generator=torch.Generator().manual_seed(4))
    with torch.inference_mode():
        together = tiny_model(image_embeddings=embeddings, input_points=points)
        for i in range(2):
            alone = tiny_model(image_embeddings=one_image(embeddings, i), input_points=points[i : i + 1])
            torch.testing.assert_close(together.pred_masks[i : i + 1], alone.pred_masks, rtol=1e-5, atol=1e-3)
            torch.testing.assert_close(together.iou_scores[i : i + 1], alone.iou_scores, rtol=1e-5, atol=1e-5)


def check_ragged(tiny_model, embeddings, counts, seed, multimask):
    generator = torch.Generator().manual_seed(seed)
    points = 64 * torch.rand(1, len(counts), max(counts), 2, generator=generator)
    labels = torch.randint(0, 2, points.shape[:3], generator=generator)
    for index, count in enumerate(counts):
        points[:, index, count:], labels[:, index, count:] = -10, -10
    image = one_image(embeddings)
    with torch.inference_mode():
        together = tiny_model(
            image_embeddings=image, input_points=points, input_labels=labels, multimask_output=multimask
        )
        for i, count in enumerate(counts):
            alone = tiny_model(
                image_embeddings=image,
                input_points=points[:, i : i + 1, :count],
                input_labels=labels[:, i : i + 1, :count],
                multimask_output=multimask,
            )
            scale = alone.pred_masks.abs().max().item()
            torch.testing.assert_close(
                together.pred_masks[:, i : i + 1], alone.pred_masks, rtol=1e-5, atol=1e-5 * scale
            )
            torch.testing.assert_close(together.iou_scores[:, i : i + 1], alone.iou_scores, rtol=1e-5, atol=1e-5)


@given(counts=st.lists(st.integers(1, 4), min_size=2, max_size=4), seed=st.integers(0, 99))
@settings(max_examples=10)
def test_ragged_prompts_equal_each_alone(tiny_model, embeddings, counts, seed):
    check_ragged(tiny_model, embeddings, counts, seed, multimask=True)


def test_ragged_prompts_equal_each_alone_with_a_single_mask_too(tiny_model, embeddings):
    # With one seed: which candidate becomes the mask depends on thresholds, where rounding may decide.
    check_ragged(tiny_model, embeddings, counts=[3, 1, 4, 2], seed=0, multimask=False)


def test_padded_boxes_equal_no_boxes(tiny_model, embeddings):
    points = torch.tensor([[[[10.0, 20.0]], [[30.0, 40.0]]]])
    boxes = torch.tensor([[[5.0, 5.0, 40.0, 40.0], [-10.0] * 4]])
    image = one_image(embeddings)
    with torch.inference_mode():
        together = tiny_model(image_embeddings=image, input_points=points, input_boxes=boxes)
        without = tiny_model(image_embeddings=image, input_points=points[:, 1:])
    torch.testing.assert_close(together.pred_masks[:, 1:], without.pred_masks, rtol=1e-5, atol=1e-3)


@given(order=st.permutations(range(5)), seed=st.integers(0, 99))
@settings(max_examples=10)
def test_the_order_of_points_does_not_matter(tiny_model, embeddings, order, seed):
    generator = torch.Generator().manual_seed(seed)
    points = 64 * torch.rand(1, 1, 5, 2, generator=generator)
    labels = torch.randint(0, 2, (1, 1, 5), generator=generator)
    image = one_image(embeddings)
    with torch.inference_mode():
        a = tiny_model(image_embeddings=image, input_points=points, input_labels=labels)
        b = tiny_model(image_embeddings=image, input_points=points[:, :, order], input_labels=labels[:, :, order])
    assert_same(a, b)


# Ways to say the same


def test_points_without_labels_are_foreground(tiny_model, embeddings):
    points = torch.tensor([[[[10.0, 20.0], [5.0, 5.0]]]] * 2)
    with torch.inference_mode():
        a = tiny_model(image_embeddings=embeddings, input_points=points)
        b = tiny_model(
            image_embeddings=embeddings, input_points=points, input_labels=torch.ones(2, 1, 2, dtype=torch.long)
        )
    assert_same(a, b)


def test_labels_2_and_3_are_the_corners_of_a_box(tiny_model, embeddings):
    boxes = torch.tensor([[[5.0, 6.0, 40.0, 50.0]]] * 2)
    labels = torch.tensor([[[2, 3]]] * 2)
    with torch.inference_mode():
        a = tiny_model(image_embeddings=embeddings, input_boxes=boxes)
        b = tiny_model(image_embeddings=embeddings, input_points=boxes.view(2, 1, 2, 2), input_labels=labels)
        assert_same(a, b)
        clicks = torch.tensor([[[[10.0, 20.0]]]] * 2)
        a = tiny_model(image_embeddings=embeddings, input_boxes=boxes, input_points=clicks)
        b = tiny_model(
            image_embeddings=embeddings,
            input_points=torch.cat([boxes.view(2, 1, 2, 2), clicks], 2),
            input_labels=torch.tensor([[[2, 3, 1]]] * 2),
        )
        assert_same(a, b)


@pytest.mark.parametrize("shape", [(2, 3, 16, 16), (6, 1, 16, 16), (6, 16, 16)])
def test_masks_may_be_grouped_in_any_way(tiny_model, embeddings, shape):
    masks = 10 * torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(5))
    points = 64 * torch.rand(2, 3, 1, 2, generator=torch.Generator().manual_seed(6))
    with torch.inference_mode():
        a = tiny_model(image_embeddings=embeddings, input_points=points, input_masks=masks)
        b = tiny_model(image_embeddings=embeddings, input_points=points, input_masks=masks.reshape(shape))
        none = tiny_model(image_embeddings=embeddings, input_points=points)
        alone = tiny_model(
            image_embeddings=one_image(embeddings, 1), input_points=points[1:, 2:], input_masks=masks[1:, 2:]
        )
    assert_same(a, b)
    torch.testing.assert_close(a.pred_masks[1:, 2:], alone.pred_masks, rtol=1e-5, atol=1e-3)
    assert not torch.allclose(a.pred_masks, none.pred_masks)


def test_integer_points_are_points(tiny_model, embeddings):
    points = torch.tensor([[[[10, 20]]]] * 2)
    with torch.inference_mode():
        a = tiny_model(image_embeddings=embeddings, input_points=points)
        b = tiny_model(image_embeddings=embeddings, input_points=points.float())
    assert_same(a, b)


def test_gradients_reach_every_part_that_draws(tiny_config):
    model = Sam2Model(tiny_config)
    model(torch.randn(1, 3, 64, 64), input_points=torch.tensor([[[[9.0, 9.0]]]])).pred_masks.sum().backward()
    for part in ("vision_encoder", "mask_decoder", "prompt_encoder"):
        gradients = [p.grad for name, p in model.named_parameters() if name.startswith(part) and p.grad is not None]
        assert sum(gradient.abs().sum() for gradient in gradients) > 0, part


# Refusals

POINT = torch.zeros(2, 1, 1, 2)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"input_points": torch.zeros(2, 1, 2)}, "input_points has shape (2, 1, 2): expected (2, objects, points, 2)"),
        (
            {"input_points": torch.zeros(1, 1, 1, 2)},
            "input_points has shape (1, 1, 1, 2): expected (2, objects, points, 2)",
        ),
        (
            {"input_points": torch.zeros(2, 1, 1, 3)},
            "input_points has shape (2, 1, 1, 3): expected (2, objects, points, 2)",
        ),
        (
            {"input_points": POINT, "input_labels": torch.ones(2, 1)},
            "input_labels has shape (2, 1): expected (2, objects, points)",
        ),
        (
            {"input_points": POINT, "input_labels": torch.ones(2, 1, 2)},
            "input_labels (2, 1, 2) came with input_points (2, 1, 1, 2): expected one label for each point",
        ),
        (
            {"input_labels": torch.ones(2, 1, 2)},
            "input_labels (2, 1, 2) came with no input_points: expected one label for each point",
        ),
        ({"input_boxes": torch.zeros(2, 4)}, "input_boxes has shape (2, 4): expected (2, objects, 4)"),
        ({"input_boxes": torch.zeros(2, 1, 2, 2)}, "input_boxes has shape (2, 1, 2, 2): expected (2, objects, 4)"),
        (
            {"input_points": POINT, "input_boxes": torch.zeros(2, 3, 4)},
            "input_points are of 1 objects, input_boxes of 3",
        ),
        (
            {"input_masks": torch.zeros(2, 1, 64, 64)},
            "input_masks has shape (2, 1, 64, 64): expected (batch, objects, 16, 16), a quarter of the network's "
            "input, as pred_masks come; masks of the image's size go to EncodedImage.predict",
        ),
        (
            {"input_points": POINT, "input_masks": torch.zeros(2, 3, 16, 16)},
            "input_masks holds 6 masks: expected one for each of 1 objects of 2 images",
        ),
        (
            {"input_masks": torch.zeros(3, 16, 16)},
            "input_masks holds 3 masks: expected one for each of 1 objects of 2 images",
        ),
    ],
)
def test_prompts_of_wrong_shapes_are_refused(tiny_model, embeddings, inputs, message):
    with pytest.raises(PromptError) as caught:
        tiny_model(image_embeddings=embeddings, **inputs)
    assert str(caught.value) == message


@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 4, 64, 64), (1, 3, 64, 65), (1, 3, 100, 64), (1, 3, 0, 64)])
def test_images_of_wrong_shapes_are_refused(tiny_model, shape):
    with pytest.raises(ImageError) as caught:
        tiny_model(torch.zeros(shape))
    assert str(caught.value) == (
        f"pixel_values is {shape}: expected (batch, 3, height, width) with sides that are multiples of 32, as "
        "Sam2ImageProcessor makes them"
    )


def test_an_image_comes_once(tiny_model, pixel_values, embeddings):
    for inputs in ({}, {"pixel_values": pixel_values, "image_embeddings": embeddings}):
        with pytest.raises(ImageError) as caught:
            tiny_model(**inputs)
        assert str(caught.value) == "expected either pixel_values or image_embeddings, and not both"


def test_unknown_inputs_are_refused_by_name(tiny_model, embeddings):
    with pytest.raises(TypeError, match="Sam2Model takes no input called input_point, points"):
        tiny_model(image_embeddings=embeddings, points=POINT, input_point=POINT)


def test_under_autocast_the_image_is_updated_in_its_own_precision(tiny_model, features):
    seen = []
    blocks = tiny_model.mask_decoder.transformer.layers
    hooks = [b.layer_norm4.register_forward_pre_hook(lambda _, given: seen.append(given[0].dtype)) for b in blocks]
    prompts = Prompts(torch.full((2, 1, 1, 2), 20.0), torch.ones(2, 1, 1, dtype=torch.int64))
    copies = type(features)(*(level.clone() for level in features))
    try:
        with torch.autocast("cpu", torch.bfloat16):  # with gradients, as in training
            tiny_model.decode(copies, prompts, multimask=True)
    finally:
        for hook in hooks:
            hook.remove()
    assert seen == [torch.float32] * len(blocks)


@pytest.mark.parametrize("size_hw", [(16, 16), (24, 8), (8, 40)])
def test_the_trunk_takes_positions_that_were_made_before(tiny_model, size_hw):
    trunk = tiny_model.vision_encoder.backbone
    pixel_values = torch.randn(1, 3, size_hw[0] * 4, size_hw[1] * 4, generator=torch.Generator().manual_seed(1))
    positions = window_positions(trunk.pos_embed, trunk.pos_embed_window, size_hw)
    assert positions.shape == (1, *size_hw, 8)
    with torch.inference_mode():
        for given, computed in zip(trunk(pixel_values, positions), trunk(pixel_values), strict=True):
            assert given.equal(computed)


@given(st.tuples(st.integers(1, 3), st.integers(1, 20), st.integers(1, 20), st.integers(1, 3)), st.integers(1, 8))
def test_windows_are_joined_as_they_were_split(shape, window):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    windows, grid = split_windows(x, window)
    assert windows.shape == (shape[0] * grid[0] * grid[1], window, window, shape[3])
    assert join_windows(windows, grid, shape[1:3]).equal(x)
