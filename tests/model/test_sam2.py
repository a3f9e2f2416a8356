import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from masklet.errors import ImageError
from masklet.model.hiera import join_windows, split_windows, window_positions
from masklet.model.neck import Features
from masklet.model.prompt_encoder import PADDING, Prompts
from masklet.model.sam2 import Sam2Model


@pytest.fixture(scope="module")
def pixel_values():
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def features(tiny_model, pixel_values):
    with torch.inference_mode():
        return tiny_model.encode(pixel_values)


def decoded(model, features, points=None, labels=None, boxes=None, masks=None, *, multimask=True):
    """Masks of prompts without gradients; points are foreground without labels."""
    if points is not None and labels is None:
        labels = torch.ones(points.shape[:3], dtype=torch.long)
    has_padding = any(t is not None and bool((t == PADDING).any()) for t in (labels, boxes))
    with torch.inference_mode():
        return model.decode(features, Prompts(points, labels, boxes, masks, has_padding), multimask=multimask)


def assert_same(a, b):
    """Equal to 1e-5 of what there is."""
    for name in ("logits", "iou_scores", "object_scores"):
        x, y = getattr(a, name), getattr(b, name)
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-5 * max(1, y.abs().max().item()), msg=name)


def one_image(features, index=0):
    return Features(*(level[index : index + 1] for level in features))


# Shapes


@pytest.mark.parametrize(("multimask", "masks"), [(True, 3), (False, 1)])
@pytest.mark.parametrize("size_hw", [(64, 64), (96, 160), (160, 96), (32, 64)])
def test_results_follow_the_size_of_the_input(tiny_model, size_hw, multimask, masks):
    h, w = size_hw
    pixel_values = torch.randn(2, 3, h, w, generator=torch.Generator().manual_seed(2))
    points = torch.rand(2, 4, 5, 2, generator=torch.Generator().manual_seed(3)) * torch.tensor([w, h])
    with torch.inference_mode():
        features = tiny_model.encode(pixel_values)
    outputs, again = (decoded(tiny_model, features, points, multimask=multimask) for _ in range(2))
    assert outputs.logits.shape == (2, 4, masks, h // 4, w // 4)
    assert outputs.iou_scores.shape == (2, 4, masks)
    assert outputs.object_scores.shape == (2, 4, 1)
    assert [tuple(level.shape) for level in features] == [
        (2, 4, h // 4, w // 4),
        (2, 8, h // 8, w // 8),
        (2, 32, h // 16, w // 16),
    ]
    assert ((outputs.iou_scores >= 0) & (outputs.iou_scores <= 1)).all()
    assert outputs.logits.isfinite().all()
    assert torch.equal(outputs.logits, again.logits)


def test_all_four_masks_are_the_single_one_then_the_candidates(tiny_model, features):
    points = torch.rand(2, 3, 2, 2) * 64
    together, candidates = (decoded(tiny_model, features, points, multimask=multimask) for multimask in (None, True))
    assert together.logits.shape == (2, 3, 4, 16, 16)
    assert torch.equal(together.logits[:, :, 1:], candidates.logits)
    assert torch.equal(together.iou_scores[:, :, 1:], candidates.iou_scores)


def test_without_any_prompt_there_is_one_object_an_image(tiny_model, features):
    assert decoded(tiny_model, features).logits.shape == (2, 1, 3, 16, 16)


# One encoding, many prompts


def test_features_serve_many_prompts(tiny_model, pixel_values, features):
    before = [level.clone() for level in features]
    for prompt in (
        {"points": torch.tensor([[[[10.0, 20.0]]]] * 2)},
        {"boxes": torch.tensor([[[1.0, 2.0, 30.0, 40.0]]] * 2)},
        {"masks": torch.ones(2, 1, 16, 16)},
    ):
        with torch.inference_mode():
            encoded_anew = tiny_model.encode(pixel_values)
        assert_same(decoded(tiny_model, features, **prompt), decoded(tiny_model, encoded_anew, **prompt))
    for level, old in zip(features, before, strict=True):
        assert torch.equal(level, old)


def test_each_image_of_a_batch_is_segmented_as_alone(tiny_model, features):
    points = 64 * torch.rand(2, 3, 2, 2, generator=torch.Generator().manual_seed(4))
    together = decoded(tiny_model, features, points)
    for i in range(2):
        alone = decoded(tiny_model, one_image(features, i), points[i : i + 1])
        torch.testing.assert_close(together.logits[i : i + 1], alone.logits, rtol=1e-5, atol=1e-3)
        torch.testing.assert_close(together.iou_scores[i : i + 1], alone.iou_scores, rtol=1e-5, atol=1e-5)


def check_ragged(tiny_model, features, counts, seed, multimask):
    generator = torch.Generator().manual_seed(seed)
    points = 64 * torch.rand(1, len(counts), max(counts), 2, generator=generator)
    labels = torch.randint(0, 2, points.shape[:3], generator=generator)
    for index, count in enumerate(counts):
        points[:, index, count:], labels[:, index, count:] = PADDING, PADDING
    image = one_image(features)
    together = decoded(tiny_model, image, points, labels, multimask=multimask)
    for i, count in enumerate(counts):
        own_points, own_labels = points[:, i : i + 1, :count], labels[:, i : i + 1, :count]
        alone = decoded(tiny_model, image, own_points, own_labels, multimask=multimask)
        scale = alone.logits.abs().max().item()
        torch.testing.assert_close(together.logits[:, i : i + 1], alone.logits, rtol=1e-5, atol=1e-5 * scale)
        torch.testing.assert_close(together.iou_scores[:, i : i + 1], alone.iou_scores, rtol=1e-5, atol=1e-5)


@given(counts=st.lists(st.integers(1, 4), min_size=2, max_size=4), seed=st.integers(0, 99))
@settings(max_examples=10)
def test_ragged_prompts_equal_each_alone(tiny_model, features, counts, seed):
    check_ragged(tiny_model, features, counts, seed, multimask=True)


def test_ragged_prompts_equal_each_alone_with_a_single_mask_too(tiny_model, features):
    # With one seed: which candidate becomes the mask depends on thresholds, where rounding may decide.
    check_ragged(tiny_model, features, counts=[3, 1, 4, 2], seed=0, multimask=False)


def test_padded_boxes_equal_no_boxes(tiny_model, features):
    points = torch.tensor([[[[10.0, 20.0]], [[30.0, 40.0]]]])
    boxes = torch.tensor([[[5.0, 5.0, 40.0, 40.0], [-10.0] * 4]])
    image = one_image(features)
    together = decoded(tiny_model, image, points, boxes=boxes)
    without = decoded(tiny_model, image, points[:, 1:])
    torch.testing.assert_close(together.logits[:, 1:], without.logits, rtol=1e-5, atol=1e-3)


@given(order=st.permutations(range(5)), seed=st.integers(0, 99))
@settings(max_examples=10)
def test_the_order_of_points_does_not_matter(tiny_model, features, order, seed):
    generator = torch.Generator().manual_seed(seed)
    points = 64 * torch.rand(1, 1, 5, 2, generator=generator)
    labels = torch.randint(0, 2, (1, 1, 5), generator=generator)
    image = one_image(features)
    a = decoded(tiny_model, image, points, labels)
    b = decoded(tiny_model, image, points[:, :, order], labels[:, :, order])
    assert_same(a, b)


# Ways to say the same


def test_labels_2_and_3_are_the_corners_of_a_box(tiny_model, features):
    boxes = torch.tensor([[[5.0, 6.0, 40.0, 50.0]]] * 2)
    corners, labels = boxes.view(2, 1, 2, 2), torch.tensor([[[2, 3]]] * 2)
    assert_same(decoded(tiny_model, features, boxes=boxes), decoded(tiny_model, features, corners, labels))
    clicks = torch.tensor([[[[10.0, 20.0]]]] * 2)
    a = decoded(tiny_model, features, clicks, boxes=boxes)
    b = decoded(tiny_model, features, torch.cat([corners, clicks], 2), torch.tensor([[[2, 3, 1]]] * 2))
    assert_same(a, b)


def test_each_object_has_its_own_mask_prompt(tiny_model, features):
    masks = 10 * torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(5))
    points = 64 * torch.rand(2, 3, 1, 2, generator=torch.Generator().manual_seed(6))
    together, none = decoded(tiny_model, features, points, masks=masks), decoded(tiny_model, features, points)
    alone = decoded(tiny_model, one_image(features, 1), points[1:, 2:], masks=masks[1:, 2:])
    torch.testing.assert_close(together.logits[1:, 2:], alone.logits, rtol=1e-5, atol=1e-3)
    assert not torch.allclose(together.logits, none.logits)


def test_integer_points_are_points(tiny_model, features):
    points = torch.tensor([[[[10, 20]]]] * 2)
    assert_same(decoded(tiny_model, features, points), decoded(tiny_model, features, points.float()))


def test_gradients_reach_every_part_that_draws(tiny_config):
    model = Sam2Model(tiny_config)
    prompts = Prompts(torch.tensor([[[[9.0, 9.0]]]]), torch.ones(1, 1, 1, dtype=torch.long))
    model.decode(model.encode(torch.randn(1, 3, 64, 64)), prompts, multimask=True).logits.sum().backward()
    for part in ("vision_encoder", "mask_decoder", "prompt_encoder"):
        gradients = [p.grad for name, p in model.named_parameters() if name.startswith(part) and p.grad is not None]
        assert sum(gradient.abs().sum() for gradient in gradients) > 0, part


@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 4, 64, 64), (1, 3, 64, 65), (1, 3, 100, 64), (1, 3, 0, 64)])
def test_images_of_wrong_shapes_are_refused(tiny_model, shape):
    with pytest.raises(ImageError) as caught:
        tiny_model.encode(torch.zeros(shape))
    assert str(caught.value) == (
        f"pixel_values is {shape}: expected (batch, 3, height, width) with sides that are multiples of 32, as "
        "the image processor makes them"
    )


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
