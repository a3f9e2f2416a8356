"""The examples of training run, in small."""

import runpy
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import masklet
from masklet import training

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def call(tmp_path, monkeypatch):
    def call(name, *arguments):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")

    return call


@pytest.mark.slow
def test_fine_tuning_on_a_folder(call, images, tmp_path, capsys):
    call("finetune_folder.py", images, tmp_path / "run", 1)
    printed = capsys.readouterr().out
    assert printed.startswith("training ")
    assert "4.8 M weights, ready to be used" in printed
    assert list((tmp_path / "features").rglob("*.safetensors"))


@pytest.mark.slow
def test_lora_on_greyscale(call, tmp_path, capsys):
    call("lora_greyscale.py", tmp_path / "run", 3, 1)
    assert capsys.readouterr().out.startswith("training ")
    assert masklet.Sam2Model.from_pretrained(tmp_path / "run/last").config.hidden_size == 128


@pytest.mark.slow
def test_the_embedded_model_from_nothing(call, tiny_run, made_up_archives, tmp_path, monkeypatch, capsys):
    read = training.read_config

    def shrunk(path, *, data, model=None):
        config = read(path, data=data, model=model)
        stages = [
            replace(stage, steps=1, image_size=64, images=2, objects=2, frames=min(stage.frames, 2))
            for stage in config.stages
        ]
        few = {"stages": tuple(stages), "validation_objects": 3}
        return (
            replace(config, **few, geometry_steps=1, model=tiny_run.model) if model is None else replace(config, **few)
        )

    monkeypatch.setattr(training, "read_config", shrunk)
    call("train_nano.py", made_up_archives, tmp_path / "runs")
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("images: training ")
    assert printed[1].startswith("videos: training ")
    assert masklet.Sam2Model.from_pretrained(tmp_path / "runs/videos/last").config.has_memory
