"""The command ``masklet train``."""

import importlib.util
import io
import json
import sys
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from masklet import cli
from masklet.cli import train as command
from masklet.errors import ConfigError
from masklet.training.loop import StepReport
from masklet.training.run import Run

LOSSES = ("total", "focal", "dice", "iou", "object_score")


@pytest.fixture
def call(tmp_path):
    """Calls the command on a configuration; its run is in ``tmp_path / "run"``."""

    def call(config):
        (tmp_path / "run.yaml").write_text(json.dumps(asdict(config)))
        arguments = ["train", tmp_path / "run.yaml", "--run", tmp_path / "run", "--device", "cpu"]
        return CliRunner().invoke(cli.app, list(map(str, arguments)), catch_exceptions=False)

    return call


def test_in_a_pipe_rows_are_lines_and_the_first_score_is_that_before_training(call, config):
    output = call(config).output.splitlines()
    assert output[0].split("\t") == list(command.COLUMNS)
    assert output[1].startswith("0\t")
    assert "before training: 0." in output[1]
    assert [line.split("\t")[0] for line in output[1:-1]] == ["0", "1", "2", "2", "3", "4", "4"]
    assert output[-1].startswith(("training helped: ", "training did not help: "))


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_shows_a_table_and_a_bar(config, monkeypatch, tmp_path):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    run = Run(config, tmp_path / "run", device="cpu")
    with command._table(run) as table:
        command._print_reports(run, table)
        rows = table.rows
        assert table.progress.tasks[0].completed == 4
        assert "left" in table.progress.tasks[0].description
    assert len(rows) == 7
    assert "before training" in rows[0][-1]
    assert "4/4" in terminal.getvalue()


def test_the_time_left_may_be_more_than_a_day(monkeypatch):
    ticks, texts = iter(range(0, 10**7, 50_000)), []
    monkeypatch.setattr(command.time, "monotonic", lambda: next(ticks))
    reports = [StepReport(step, 1e-3, 1.0, dict.fromkeys(LOSSES, 0.5), [0.5, 0.6]) for step in (1, 2)]
    run = SimpleNamespace(config=SimpleNamespace(steps=4), reports=lambda: reports)
    command._print_reports(run, SimpleNamespace(row=lambda *cells: None, update=lambda step, text: texts.append(text)))
    assert texts[-1] == "IoU 0.600, 2 days, 7:33:20 left"


def test_an_error_is_one_line(config, tmp_path, monkeypatch, capsys):
    (tmp_path / "run.yaml").write_text("data: {layout: folder, path: nowhere}\nstages: [{steps: 1}]\n")
    monkeypatch.setattr(sys, "argv", ["masklet", "train", str(tmp_path / "run.yaml"), "--run", str(tmp_path / "run")])
    with pytest.raises(SystemExit, match="2"):
        cli.main()
    assert capsys.readouterr().err.startswith("masklet: no images in nowhere/images: expected images/NAME.jpg")


@pytest.mark.parametrize("name", ["yaml", "accelerate"])
def test_a_missing_package_is_named(name, monkeypatch, capsys, tmp_path):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda asked: None if asked == name else find_spec(asked))
    for module in [module for module in sys.modules if module.startswith("masklet.training")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setattr(sys, "argv", ["masklet", "train", str(tmp_path / "run.yaml")])
    with pytest.raises(SystemExit, match="2"):
        cli.main()
    assert capsys.readouterr().err == (
        f'masklet: training needs {name}, which is not installed: pip install "masklet[train]"\n'
    )


def test_tensorboard_receives_the_log(call, config, tmp_path):
    pytest.importorskip("tensorboard")
    call(replace(config, trackers=("tensorboard",), stages=(replace(config.stages[0], steps=2),)))
    assert list((tmp_path / "run/masklet").glob("events.out.tfevents*"))


def test_weights_and_biases_receives_the_log(call, config, tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    logged = []
    log = wandb.sdk.wandb_run.Run.log
    monkeypatch.setattr(
        wandb.sdk.wandb_run.Run, "log", lambda run, data, **more: logged.append((data, more)) or log(run, data, **more)
    )
    call(replace(config, trackers=("wandb",)))
    assert list(tmp_path.rglob("*.wandb"))
    steps = [more["step"] for data, more in logged if "losses/total" in data]
    assert steps == list(range(1, config.steps + 1))
    assert any("score" in data for data, _ in logged)


def test_a_tracker_that_is_not_installed_is_named(config, tmp_path, monkeypatch):
    from masklet.training import run

    monkeypatch.setattr(run, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="trackers name wandb, which is not installed: pip install wandb"):
        Run(replace(config, trackers=("wandb",)), tmp_path / "run", device="cpu")
