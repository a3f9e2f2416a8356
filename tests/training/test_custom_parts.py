"""Parts of a run that callers may replace: examples, scenes, initial weights, optimizers, and an extra loss."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import SGD

from masklet.datasets.scenes import Frame, Scene
from masklet.errors import ConfigError
from masklet.training import Run
from masklet.training.data_config import DataConfig
from masklet.training.loop import Trainer
from masklet.training.parameter_groups import parameter_groups
from masklet.training.run_data import open_data


class Brightness(nn.Module):
    """An extra loss with one parameter."""

    def __init__(self, model):
        super().__init__()
        self.offset = nn.Parameter(torch.zeros(()))
        self.calls = []

    def forward(self, embeddings, targets, generator):
        self.calls.append((len(embeddings), tuple(targets.shape), targets.dtype))
        return (embeddings[0].mean() - self.offset - 1) ** 2


def sgd(model, extra, config):
    return [SGD(parameter_groups(model, extra, config), momentum=0.9)]


def ones(model):
    nn.init.ones_(model.no_memory_embedding)


def scene(name):
    mask = np.zeros((64, 64), bool)
    mask[8:40, 8:40] = True
    pixels = np.where(mask[..., None], np.uint8(180), np.uint8(90)).repeat(3, -1)
    return Scene(name, lambda _: Frame(name, pixels, {1: lambda: mask}))


@pytest.fixture
def short(scratch):
    return replace(scratch, stages=(replace(scratch.stages[0], steps=3),), validation_objects=1, validate_every=3)


def test_examples_and_scenes_replace_the_data(short, squares, tmp_path):
    run = Run(short, tmp_path / "run", device="cpu", examples=squares, scenes=[scene("one")])
    reports = list(run.reports())
    assert [report.step for report in reports] == [0, 1, 2, 3, 3]
    assert reports[-1].objects == 1


def test_without_scenes_and_data_nothing_is_validated(short, squares, tmp_path):
    run = Run(short, tmp_path / "run", device="cpu", examples=squares)
    assert run.validation is None
    assert len(list(run.reports())) == 3


def test_a_run_without_data_needs_examples(short, tmp_path):
    with pytest.raises(ConfigError, match="nothing to train on: add data to the configuration, or give examples"):
        Run(short, tmp_path / "run", device="cpu")


def test_examples_and_scenes_may_replace_one_half_of_the_data(config, squares):
    examples, scenes = open_data(config, scenes=[scene("given")])
    assert [s.name for s in scenes] == ["given"]
    kept = {s.name for s in examples.of_images.data_sets[0].scenes}
    examples, scenes = open_data(config, examples=squares)
    assert examples is squares
    assert {s.name for s in scenes} == {f"p{index}" for index in range(6)} - kept
    own = replace(config, data=replace(config.data, validation=DataConfig(layout="folder", path=config.data.path)))
    assert len(open_data(own, examples=squares)[1]) == 6


def test_data_are_not_read_if_both_halves_are_given(config, squares):
    nowhere = replace(config, data=replace(config.data, path="nowhere"))
    assert open_data(nowhere, squares, [scene("given")])[0] is squares


def test_the_initialiser_sets_weights_of_a_network_from_scratch_alone(short, tiny_folder):
    assert (Trainer(short, initialiser=ones).model.no_memory_embedding == 1).all()
    assert (Trainer(short, initialiser=ones).ema["no_memory_embedding"] == 1).all()
    fine_tuned = Trainer(replace(short, model=str(tiny_folder)), initialiser=ones)
    assert not (fine_tuned.model.no_memory_embedding == 1).all()


def test_optimizers_come_from_the_factory_with_the_factors_of_their_groups(short, squares):
    trainer = Trainer(replace(short, rates={"mask_decoder": 0.5}), make_optimizers=sgd)
    list(trainer.run(squares, until=1))
    assert [type(optimizer) for optimizer in trainer.optimizers] == [SGD]
    rate = short.learning_rate / 2  # half of the warm-up
    assert {group["lr"] for group in trainer.optimizers[0].param_groups} == {rate, 0.5 * rate}


def test_an_extra_loss_is_trained_logged_and_kept_out_of_the_model(short, squares):
    trainer, plain = Trainer(short, make_extra_loss=Brightness), Trainer(short)
    first, expected = (next(t.run(squares)) for t in (trainer, plain))
    extra = trainer.objective.extra
    assert extra.calls == [(3, (1, 2, 16, 16), torch.bool)] * 2  # once for each micro-batch
    assert extra.offset != 0
    assert first.losses["extra"] > 0
    assert first.losses["total"] == expected.losses["total"]  # the sum of losses of masks
    assert trainer.averaged_model().state_dict().keys() == plain.averaged_model().state_dict().keys()


def test_an_extra_loss_is_not_used_on_clips(short, squares):
    clips = replace(short, stages=(replace(short.stages[0], frames=2, rounds=1),))
    trainer = Trainer(clips, make_extra_loss=Brightness)
    report = next(trainer.run(squares))
    assert "extra" not in report.losses
    assert trainer.objective.extra.offset.grad is None


@pytest.mark.slow
def test_a_killed_run_with_all_of_them_resumes_to_the_same_result(short, squares, tmp_path, monkeypatch):
    initialised = []
    parts = {
        "device": "cpu",
        "examples": squares,
        "initialiser": lambda model: initialised.append(ones(model)),
        "make_optimizers": sgd,
        "make_extra_loss": Brightness,
    }
    list(Run(short, tmp_path / "straight", **parts).reports())
    killed = Run(replace(short, save_every=1), tmp_path / "killed", **parts)
    for report in killed.reports():
        if report.step == 2:
            break
    resumed = Run(short, tmp_path / "killed", **parts)
    list(resumed.reports())
    assert len(initialised) == 2  # not on resuming
    one, other = (torch.load(tmp_path / name / "state.pt", weights_only=True) for name in ("straight", "killed"))
    torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert one["extra"]["offset"] != 0
