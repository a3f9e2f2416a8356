"""The examples of training run, on little data."""

import runpy
import sys
from pathlib import Path

import pytest

import masklet

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
    assert "4.8 M weights, ready for use" in printed
    assert list((tmp_path / "features").rglob("*.safetensors"))


@pytest.mark.slow
def test_lora_on_greyscale(call, tmp_path, capsys):
    call("lora_greyscale.py", tmp_path / "run", 3, 1)
    assert capsys.readouterr().out.startswith("training ")
    assert masklet.Sam2Model.from_pretrained(tmp_path / "run/last").network_config.hidden_size == 128
