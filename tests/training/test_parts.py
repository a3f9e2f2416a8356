"""What learns, and how fast."""

import pytest
from torch import nn

from masklet.model.sam2 import Sam2Model
from masklet.training.muon import Muon
from masklet.training.parts import PARTS, TRAINED, encoder_learns, learns, make_optimizers, part_of, rate_of


@pytest.fixture
def model(tiny_config):
    return Sam2Model(tiny_config)


def test_every_weight_belongs_to_a_part_and_every_part_has_weights(model):
    found = {part_of(name) for name in model.state_dict()}
    assert found == set(PARTS)


@pytest.mark.parametrize("trained", TRAINED)
def test_what_is_trained_is_chosen_by_name(model, trained):
    chosen = {name for name, _ in model.named_parameters() if learns(name, trained)}
    assert {part_of(name) for name in chosen} == set(TRAINED[trained])
    assert "mask_decoder.conv_s0.weight" not in chosen or trained == "everything"
    for name, weight in model.named_parameters():
        weight.requires_grad_(name in chosen)
    assert encoder_learns(model) == (trained == "everything")


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
def test_rates_go_by_part_and_fall_towards_the_first_block(name, rate):
    rates = {"mask_decoder": 2.0, "image_encoder": 0.1}
    assert rate_of(name, blocks=5, rates=rates, layer_decay=0.5) == pytest.approx(rate)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_every_weight_that_learns_has_one_optimizer(model, kind):
    for name, weight in model.named_parameters():
        weight.requires_grad_(learns(name, "frozen_encoder"))
    extra = nn.Linear(2, 2)
    optimizers = make_optimizers(model, extra, kind=kind, weight_decay=0.1, rates={"memory": 3.0}, layer_decay=0.9)
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    held = [id(weight) for group in groups for weight in group["params"]]
    wanted = [w for w in (*model.parameters(), *extra.parameters()) if w.requires_grad]
    assert sorted(held) == sorted(map(id, wanted))
    assert {group["factor"] for group in groups} == {1.0, 3.0}
    for group in groups:
        assert group["weight_decay"] == 0.1 or all(w.ndim <= 1 or w is extra.weight for w in group["params"])
    if kind == "muon":
        (by_muon,) = {type(optimizer) for optimizer in optimizers[1:]}
        assert by_muon is Muon
