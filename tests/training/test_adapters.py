"""LoRA: nothing at first, then learned, then plain weights."""

import copy
from dataclasses import replace

import pytest
import torch

from masklet.errors import ConfigError
from masklet.model.sam2 import Sam2Model
from masklet.training.adapters import add_adapters, merged
from masklet.training.composed import Composed
from masklet.training.config import LoraConfig
from masklet.training.loop import Trainer

ENCODER = LoraConfig(rank=2, alpha=4)


@pytest.fixture
def lora_run(tiny_run):
    stage = replace(tiny_run.stages[0], train="lora")
    return replace(tiny_run, stages=(stage,), geometry_steps=0, lora=ENCODER, affinity=0.0, optimizer="adamw")


def features(model, seed=0):
    pixels = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return torch.cat([m.flatten() for m in model.encode(pixels)])


def test_adapters_change_nothing_at_first(tiny_model):
    model = copy.deepcopy(tiny_model)
    add_adapters(model, ENCODER)
    assert features(model).equal(features(tiny_model))


def test_only_adapters_learn_and_saved_models_are_plain_and_the_same(lora_run, made_up_sources, tmp_path):
    trainer = Trainer(replace(lora_run, ema_decay=0.0))
    before = {name: weight.clone() for name, weight in trainer.model.state_dict().items()}
    for _ in trainer.run(Composed(made_up_sources, 1)):
        pass
    changed = {name for name, weight in trainer.model.state_dict().items() if not weight.equal(before[name])}
    assert changed
    assert all(".lora_" in name and name.startswith("vision_encoder.") for name in changed)
    plain = trainer.averaged_model()
    plain.save_pretrained(tmp_path / "model")
    loaded = Sam2Model.from_pretrained(tmp_path / "model")
    torch.testing.assert_close(features(loaded), features(trainer.model))
    first = merged(before, ENCODER)
    assert not loaded.state_dict()["vision_encoder.backbone.blocks.0.attn.qkv.weight"].equal(
        first["vision_encoder.backbone.blocks.0.attn.qkv.weight"]
    )


def test_a_run_with_adapters_goes_on_where_it_was_cut(lora_run, made_up_sources, tmp_path):
    examples = Composed(made_up_sources, 1)
    straight, cut, resumed = (Trainer(lora_run) for _ in range(3))
    reports = list(straight.run(examples))
    for _ in cut.run(examples, until=2):
        pass
    cut.save(tmp_path / "state.pt")
    resumed.load(tmp_path / "state.pt")
    assert list(resumed.run(examples)) == reports[2:]
    for name, weight in straight.model.state_dict().items():
        assert weight.equal(resumed.model.state_dict()[name]), name


def test_a_decoder_may_learn_whole_beside_adapters_of_the_encoder(lora_run, made_up_sources):
    trainer = Trainer(replace(lora_run, stages=(replace(lora_run.stages[0], train="decoder"),)))
    trainer._choose_what_learns()
    learning = {name for name, weight in trainer.model.named_parameters() if weight.requires_grad}
    assert any(".lora_" in name for name in learning)
    assert any(name.startswith("mask_decoder.transformer") for name in learning)
    assert not any(name.startswith("prompt_encoder") for name in learning)


def test_a_target_that_is_no_linear_layer_is_named(tiny_config):
    with pytest.raises(ConfigError, match=r"lora targets 'encoder.\*', which is no linear layer.*vision_encoder"):
        add_adapters(Sam2Model(tiny_config), LoraConfig(targets=("encoder.*",)))


def test_the_sum_is_that_of_peft(tiny_config):
    model = Sam2Model(tiny_config)
    add_adapters(model, LoraConfig(rank=2, alpha=6, targets=("mask_decoder.*.q_proj",)))
    for name, weight in model.named_parameters():
        if ".lora_" in name:
            torch.nn.init.normal_(weight)
    layer = model.mask_decoder.transformer.layers[0].self_attn.q_proj
    expected = layer.base_layer.weight + layer.get_delta_weight("default")
    plain = merged(model.state_dict(), LoraConfig(rank=2, alpha=6))
    assert plain.keys() == Sam2Model(tiny_config).state_dict().keys()
    torch.testing.assert_close(plain["mask_decoder.transformer.layers.0.self_attn.q_proj.weight"], expected)
