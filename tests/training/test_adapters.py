"""LoRA: adapters change nothing at first, are trained alone, and are merged into plain weights."""

import copy
from dataclasses import replace

import pytest
import torch

from masklet.errors import ConfigError
from masklet.model.sam2 import Sam2Model
from masklet.training.adapters import add_adapters, merge_adapters
from masklet.training.config import LoraConfig
from masklet.training.loop import Trainer

ENCODER = LoraConfig(rank=2, alpha=4)


@pytest.fixture
def lora(scratch):
    return replace(scratch, stages=(replace(scratch.stages[0], train="lora", steps=3),), lora=ENCODER)


def features(model):
    pixels = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return torch.cat([m.flatten() for m in model.encode(pixels)])


def test_adapters_change_nothing_at_first(tiny_model):
    model = copy.deepcopy(tiny_model)
    add_adapters(model, ENCODER)
    assert features(model).equal(features(tiny_model))


def test_adapters_alone_are_trained_and_saved_models_are_plain_and_compute_the_same(lora, squares, tmp_path):
    trainer = Trainer(replace(lora, ema_decay=0.0))
    before = {name: weight.clone() for name, weight in trainer.model.state_dict().items()}
    for _ in trainer.run(squares):
        pass
    changed = {name for name, weight in trainer.model.state_dict().items() if not weight.equal(before[name])}
    assert changed
    assert all(".lora_" in name and name.startswith("vision_encoder.") for name in changed)
    plain = trainer.averaged_model()
    plain.save_pretrained(tmp_path / "model")
    loaded = Sam2Model.from_pretrained(tmp_path / "model")
    torch.testing.assert_close(features(loaded), features(trainer.model))
    first = merge_adapters(before, ENCODER)
    name = "vision_encoder.backbone.blocks.0.attn.qkv.weight"
    assert not loaded.state_dict()[name].equal(first[name])


def test_a_run_with_adapters_resumes_to_the_same_result(lora, squares, tmp_path):
    straight, interrupted, resumed = (Trainer(lora) for _ in range(3))
    reports = list(straight.run(squares))
    for _ in interrupted.run(squares, until=1):
        pass
    interrupted.save(tmp_path / "state.pt")
    resumed.load(tmp_path / "state.pt")
    assert list(resumed.run(squares)) == reports[1:]
    for name, weight in straight.model.state_dict().items():
        assert weight.equal(resumed.model.state_dict()[name]), name


def test_the_decoder_may_be_trained_beside_adapters_of_the_encoder(lora):
    trainer = Trainer(replace(lora, stages=(replace(lora.stages[0], train="decoder"),)))
    trainer._select_trained_weights()
    trained = {name for name, weight in trainer.model.named_parameters() if weight.requires_grad}
    assert any(".lora_" in name for name in trained)
    assert any(name.startswith("mask_decoder.transformer") for name in trained)
    assert not any(name.startswith("prompt_encoder") for name in trained)


def test_a_target_that_matches_no_linear_layer_is_named(tiny_config):
    with pytest.raises(ConfigError, match=r"lora targets 'encoder.\*' match no linear layer.*vision_encoder"):
        add_adapters(Sam2Model(tiny_config), LoraConfig(targets=("encoder.*",)))


def test_merged_weights_are_those_of_peft(tiny_config):
    model = Sam2Model(tiny_config)
    add_adapters(model, LoraConfig(rank=2, alpha=6, targets=("mask_decoder.*.q_proj",)))
    for name, weight in model.named_parameters():
        if ".lora_" in name:
            torch.nn.init.normal_(weight)
    layer = model.mask_decoder.transformer.layers[0].self_attn.q_proj
    expected = layer.base_layer.weight + layer.get_delta_weight("default")
    plain = merge_adapters(model.state_dict(), LoraConfig(rank=2, alpha=6))
    assert plain.keys() == Sam2Model(tiny_config).state_dict().keys()
    torch.testing.assert_close(plain["mask_decoder.transformer.layers.0.self_attn.q_proj.weight"], expected)
