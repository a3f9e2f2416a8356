"""The command ``masklet train``."""

import importlib.util
import io
import json
import sys
from dataclasses import asdict, fields, replace
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from masklet import cli
from masklet.cli import train as command
from masklet.errors import ConfigError
from masklet.training.config import Stage, TrainingConfig
from masklet.training.config_files import config_from, read_config
from masklet.training.data_config import Augmentations, DataConfig
from masklet.training.loop import StepReport
from masklet.training.run import Run
from masklet.training.template import EXAMPLE, template

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
    assert texts == ["IoU 0.600", "IoU 0.600, 1 day, 3:46:40 left"]  # the first step says nothing about the others


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
    short = (replace(config.stages[0], steps=2),)
    call(replace(config, trackers=("tensorboard",), tracker_project="mushrooms", stages=short))
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "run/mushrooms"))
    events.Reload()
    assert [event.step for event in events.Scalars("losses/total")] == [1, 2]
    assert {event.step for event in events.Images("samples/0")} == {0, 2}


def test_weights_and_biases_receives_the_log(call, config, tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    logged = []
    log = wandb.sdk.wandb_run.Run.log
    monkeypatch.setattr(
        wandb.sdk.wandb_run.Run, "log", lambda run, data, **more: logged.append((data, more)) or log(run, data, **more)
    )
    started = []
    init = wandb.init
    monkeypatch.setattr(wandb, "init", lambda **options: started.append(options) or init(**options))
    call(replace(config, trackers=("wandb",), tracker_project="mushrooms"))
    assert list(tmp_path.rglob("*.wandb"))
    assert (started[0]["project"], started[0]["id"]) == ("mushrooms", (tmp_path / "run/wandb.id").read_text())
    assert any("samples/0" in data for data, _ in logged)
    steps = [more["step"] for data, more in logged if "losses/total" in data]
    assert steps == list(range(1, config.steps + 1))
    assert any("score" in data for data, _ in logged)


@pytest.mark.slow
def test_a_folder_of_data_is_enough_and_flags_change_the_template(images, tiny_folder, tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(command, "execute", made.append)
    flags = ["--model", tiny_folder, "--steps", 2, "--lr", "1e-3", "--train", "lora", "--set", "lora={rank: 2}"]
    more = ["--set", "stages.losses.focal=5", "--set", "seed=3", "--device", "cpu", "--out", tmp_path / "run"]
    result = CliRunner().invoke(cli.app, list(map(str, ["train", images, *flags, *more])), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    (run,) = made
    (stage,) = run.config.stages
    assert (stage.steps, stage.train, stage.losses.focal, stage.rounds) == (2, "lora", 5, 8)
    assert (run.config.learning_rate, run.config.lora.rank, run.config.seed) == (1e-3, 2, 3)
    assert run.folder == tmp_path / "run"


def test_init_writes_the_settings_that_a_folder_would_be_trained_with(images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(cli.app, ["train", str(images), "--init"], catch_exceptions=False)
    assert "wrote train.yaml" in result.output
    assert read_config(tmp_path / "train.yaml") == config_from(command._values_for(images, {}))
    with pytest.raises(ConfigError, match="there is a train.yaml already"):
        CliRunner().invoke(cli.app, ["train", "--init"], catch_exceptions=False)


def test_the_template_names_every_setting():
    text = template(EXAMPLE)
    for kind in (TrainingConfig, DataConfig, Augmentations, Stage):
        for field in fields(kind):
            assert field.name in text or field.name == "annotations"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train"], "nothing to train on: give a folder of data"),
        (["train", "nowhere"], "there is no folder nowhere: expected images/ and masks/"),
        (["train", "run.yaml", "--set", "seed"], "--set seed: expected NAME=VALUE"),
    ],
)
def test_what_cannot_be_trained_is_said_in_a_line(arguments, message, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["masklet", *arguments])
    with pytest.raises(SystemExit, match="2"):
        cli.main()
    assert capsys.readouterr().err.startswith(f"masklet: {message}")


def test_a_tracker_that_is_not_installed_is_named(config, tmp_path, monkeypatch):
    from masklet.training import tracking

    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="trackers name wandb, which is not installed: pip install wandb"):
        Run(replace(config, trackers=("wandb",)), tmp_path / "run", device="cpu")
