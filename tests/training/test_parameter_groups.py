"""Which weights are trained, and how fast."""

from dataclasses import replace

import pytest
from edgetam import SMALL
from torch import nn

from masklet.model.sam2 import Sam2Model
from masklet.training.parameter_groups import (
    COMPONENTS,
    TRAINABLE,
    adamw,
    component_of,
    encoder_blocks,
    is_trained,
    rate_factor,
    trains_encoder,
)

BLOCKS = [f"vision_encoder.backbone.blocks.{number}." for number in range(5)]


@pytest.fixture
def model(tiny_config):
    return Sam2Model(tiny_config)


def test_every_weight_belongs_to_a_component_and_every_component_has_weights(model):
    for network in (model, Sam2Model(SMALL)):
        assert {component_of(name) for name in network.state_dict()} == set(COMPONENTS)


def test_the_blocks_of_the_encoder_are_counted_in_their_order(model):
    assert list(encoder_blocks(model)) == BLOCKS[: len(model.vision_encoder.backbone.blocks)]
    trunk = "vision_encoder.backbone.timm_model.stages_"
    found = [name.removeprefix(trunk) for name in encoder_blocks(Sam2Model(SMALL))]
    ends = [f"{stage}.{part}." for stage in (1, 2, 3) for part in ("downsample", "blocks.0")]
    assert found == ["0.blocks.0.", *ends[:4], "2.blocks.1.", "2.blocks.2.", *ends[4:]]


@pytest.mark.parametrize("choice", TRAINABLE)
def test_trained_weights_are_chosen_by_name(model, choice):
    chosen = {name for name, _ in model.named_parameters() if is_trained(name, choice)}
    assert {component_of(name) for name in chosen} == set(TRAINABLE[choice])
    assert "mask_decoder.conv_s0.weight" not in chosen or choice == "everything"
    for name, weight in model.named_parameters():
        weight.requires_grad_(name in chosen)
    assert trains_encoder(model) == (choice == "everything")


@pytest.mark.parametrize(
    ("name", "rate"),
    [
        ("mask_decoder.iou_token.weight", 2.0),
        ("memory_encoder.projection.weight", 1.0),
        ("vision_encoder.neck.convs.0.weight", 0.1),
        ("vision_encoder.backbone.blocks.4.mlp.proj_in.weight", 0.1),
        ("vision_encoder.backbone.blocks.0.mlp.proj_in.weight", 0.1 * 0.5**4),
        ("vision_encoder.backbone.blocks.3.attn.qkv.lora_A.default.weight", 0.1 * 0.5),
        ("vision_encoder.backbone.patch_embed.projection.weight", 0.1 * 0.5**5),
        ("vision_encoder.backbone.pos_embed", 0.1 * 0.5**5),
    ],
)
def test_rates_depend_on_the_component_and_fall_towards_the_first_block(name, rate):
    rates = {"mask_decoder": 2.0, "image_encoder": 0.1}
    assert rate_factor(name, BLOCKS, rates=rates, layer_decay=0.5) == pytest.approx(rate)


def test_every_trained_weight_is_in_one_group(model, scratch):
    for name, weight in model.named_parameters():
        weight.requires_grad_(is_trained(name, "frozen_encoder"))
    extra = nn.Linear(2, 2)
    (optimizer,) = adamw(model, extra, replace(scratch, weight_decay=0.1, rates={"memory": 3.0}, layer_decay=0.9))
    held = [id(weight) for group in optimizer.param_groups for weight in group["params"]]
    wanted = [w for w in (*model.parameters(), *extra.parameters()) if w.requires_grad]
    assert sorted(held) == sorted(map(id, wanted))
    assert {group["factor"] for group in optimizer.param_groups} == {1.0, 3.0}
    for group in optimizer.param_groups:
        is_vector = [w.ndim <= 1 or w is extra.weight for w in group["params"]]
        assert all(is_vector) if group["weight_decay"] == 0 else not any(is_vector)
