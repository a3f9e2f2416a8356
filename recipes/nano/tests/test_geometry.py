"""Pretraining on shapes."""

import copy

import pytest
import torch

from masklet.training.loop import initial_model
from recipes.nano.geometry import noise_features, pretrain_on_shapes, random_shapes
from recipes.nano.initialise import initialise

CPU = torch.device("cpu")


@pytest.fixture
def model(recipe):
    torch.manual_seed(0)
    return initial_model(recipe.training, initialise)


def test_shapes_have_all_sizes_and_none_is_empty():
    shapes = random_shapes(20, 10, 128, torch.Generator().manual_seed(0))
    assert shapes.shape == (20, 10, 128, 128)
    shares = shapes.float().mean((-2, -1))
    assert shares.min() > 0
    assert shares.min() < 0.02
    assert shares.max() > 0.3


def test_noise_has_the_shape_of_an_encoded_image(recipe, model):
    encoded = model.encode(torch.zeros(2, 3, 64, 64))
    noise = noise_features(recipe.training.model, 2, 64, torch.Generator())
    assert [n.shape for n in noise] == [e.shape for e in encoded]


def test_the_decoder_is_trained_and_the_image_encoder_is_not(recipe, model):
    before = copy.deepcopy(model.state_dict())
    ious = list(pretrain_on_shapes(model, recipe.training, 2, CPU))
    assert len(ious) == 2
    assert all(0 <= iou <= 1 for iou in ious)
    after = model.state_dict()
    assert all(after[name].equal(weight) for name, weight in before.items() if name.startswith("vision_encoder"))
    assert not after["mask_decoder.mask_tokens.weight"].equal(before["mask_decoder.mask_tokens.weight"])
    assert all(weight.grad is None for weight in model.parameters())


def test_the_result_is_a_function_of_the_seed(recipe, model):
    twin = copy.deepcopy(model)
    one, other = (list(pretrain_on_shapes(m, recipe.training, 2, CPU)) for m in (model, twin))
    assert one == other
    for first, second in zip(model.state_dict().values(), twin.state_dict().values(), strict=True):
        assert first.equal(second)
