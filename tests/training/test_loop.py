"""Steps, saving, and going on."""

from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import pytest
import torch

from masklet.errors import ConfigError
from masklet.training.config import read_config
from masklet.training.loop import Trainer, learning_rate


def test_the_loss_on_one_batch_falls(tiny_run, made_up_sources):
    trainer = Trainer(replace(tiny_run, stages=(replace(tiny_run.stages[0], steps=60),), learning_rate=3e-3))
    batch = trainer.batch(made_up_sources, 0)
    totals = [trainer.take_step(batch).losses["total"] for _ in range(40)]
    assert sum(totals[-5:]) < 0.7 * sum(totals[:5])


def test_a_run_that_was_cut_ends_as_one_that_was_not(tiny_run, made_up_sources, tmp_path):
    straight, cut = Trainer(tiny_run), Trainer(tiny_run)
    for trainer in (straight, cut):
        assert len(list(trainer.teach_geometry())) == tiny_run.geometry_steps
    reports = list(straight.run(made_up_sources))
    for _ in cut.run(made_up_sources, until=3):
        pass
    cut.save(tmp_path / "state.pt")
    resumed = Trainer(tiny_run)
    resumed.load(tmp_path / "state.pt")
    later = list(resumed.run(made_up_sources))
    assert later == reports[3:]
    assert [report.step for report in reports] == [1, 2, 3, 4, 5, 6]
    for name, weight in straight.model.state_dict().items():
        assert weight.equal(resumed.model.state_dict()[name]), name
        assert straight.ema[name].equal(resumed.ema[name]), name


def test_a_save_that_fails_leaves_the_last_one(tiny_run, tmp_path, monkeypatch):
    trainer, path = Trainer(tiny_run), tmp_path / "state.pt"
    trainer.save(path)
    before = path.read_bytes()

    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        trainer.save(path)
    assert path.read_bytes() == before


def test_the_averaged_model_is_ready_for_use_and_not_the_trained_one(tiny_run, made_up_sources):
    trainer = Trainer(tiny_run)
    for _ in trainer.run(made_up_sources, until=2):
        pass
    model = trainer.averaged_model()
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())
    weight, average = trainer.model.no_memory_embedding, model.no_memory_embedding
    assert not torch.equal(weight, average)


def test_the_learning_rate_rises_then_falls_to_nothing(tiny_run):
    rates = [learning_rate(tiny_run, step) for step in range(tiny_run.steps)]
    assert rates[:2] == [0.5e-3, 1e-3]
    assert rates[1:] == sorted(rates[1:], reverse=True)
    assert rates[-1] < 0.2e-3


def test_progress_counts_pixels(tiny_run):
    shares = [tiny_run.progress(step) for step in range(7)]
    assert shares[0] == 0
    assert shares[6] == 1
    assert (shares[5] - shares[4]) / (shares[1] - shares[0]) == pytest.approx((96 / 64) ** 2)


def test_stages_follow_each_other(tiny_run):
    assert [tiny_run.stage_of(step).image_size for step in range(6)] == [64] * 4 + [96] * 2
    with pytest.raises(IndexError, match="ended"):
        tiny_run.stage_of(6)


def test_the_recipe_of_the_embedded_model_can_be_read():
    config = read_config(Path(str(files("masklet.training") / "nano.yaml")))
    assert config.model.image_size == config.stages[-1].image_size == 512


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("seed: 1", "sead: 1"), "sead"),
        (("image_size: 256", "image_size: 250"), "not a multiple of 32"),
        (("pictures: 8", "pictures: 0"), "whole number"),
        (("hidden_size: 128", "hidden_sice: 128"), "hidden_sice"),
    ],
)
def test_a_mistaken_configuration_is_named(tmp_path, change, message):
    text = (files("masklet.training") / "nano.yaml").read_text()
    assert change[0] in text
    (tmp_path / "bad.yaml").write_text(text.replace(*change))
    with pytest.raises(ConfigError, match=message):
        read_config(tmp_path / "bad.yaml")
