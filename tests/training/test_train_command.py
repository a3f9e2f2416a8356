"""``masklet train``, as a person calls it."""

import importlib.util
import json
import sys
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from masklet import cli
from masklet.cli import train as command
from masklet.errors import ConfigError
from masklet.training import held_out
from masklet.training.loop import StepReport
from masklet.training.run import Run

LOSSES = ("total", "focal", "dice", "iou", "object_score")


@pytest.fixture
def call(tmp_path):
    """Call the command on a configuration; its run is in ``tmp_path / name``."""

    def call(config, name="run", *options):
        (tmp_path / "run.yaml").write_text(json.dumps(asdict(config)))
        arguments = ["train", tmp_path / "run.yaml", "--run", tmp_path / name, "--device", "cpu", *options]
        return CliRunner().invoke(cli.app, list(map(str, arguments)), catch_exceptions=False)

    return call


def test_in_a_pipe_rows_are_lines_and_the_score_before_comes_first(call, config):
    output = call(config).output.splitlines()
    assert output[0].split("\t") == list(command.COLUMNS)
    assert output[1].startswith("0\t")
    assert "before training: 0." in output[1]
    assert [line.split("\t")[0] for line in output[1:-1]] == ["0", "1", "2", "2", "3", "4", "4"]
    assert output[-1].startswith(("training helped: ", "training did not help: "))


def test_a_terminal_shows_a_table_and_a_bar(call, config, monkeypatch, tmp_path):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    run = Run(config, tmp_path / "run", device="cpu")
    with command._LiveTable(run.config.steps) as table:
        command._follow(run, table)
        shown = table.rows
        assert table.progress.tasks[0].completed == 4
        assert "left" in table.progress.tasks[0].description
    assert len(shown) == 7
    assert "before training" in shown[0][-1]


def test_the_time_left_may_be_more_than_a_day(monkeypatch):
    ticks, told = iter(range(0, 10**7, 50_000)), []
    monkeypatch.setattr(command.time, "monotonic", lambda: next(ticks))
    reports = [StepReport(step, 1e-3, 1.0, dict.fromkeys(LOSSES, 0.5), [0.5, 0.6]) for step in (1, 2)]
    run = SimpleNamespace(config=SimpleNamespace(steps=4), reports=lambda: reports)
    command._follow(run, SimpleNamespace(row=lambda *cells: None, at=lambda step, text: told.append(text)))
    assert told[-1] == "IoU 0.600, 2 days, 7:33:20 left"


def test_the_embedded_models_recipe_in_small_leaves_a_model_that_can_be_measured(
    call, tiny_run, made_up_archives, tmp_path, monkeypatch, capsys
):
    recipe = replace(tiny_run, store_float16=True, data=replace(tiny_run.data, validation=0.1), validation_objects=6)
    output = call(recipe, "run", "--data", made_up_archives).output
    assert "before training" in output
    arguments = ["--data", made_up_archives, "--model", tmp_path / "run/best", "--count", 3]
    monkeypatch.setattr(sys, "argv", ["held_out", *map(str, arguments)])
    held_out.main()
    figures = json.loads(capsys.readouterr().out)
    assert figures["objects"] > 0
    assert 0 <= figures["one_click"] <= figures["oracle_click"] <= 1


def test_videos_of_the_synthetic_world_are_measured_too(call, tiny_run, made_up_archives, tiny_folder):
    stage = replace(tiny_run.stages[0], steps=1, frames=2, rounds=1, train="memory")
    recipe = replace(
        tiny_run,
        model=str(tiny_folder),
        stages=(stage,),
        geometry_steps=0,
        affinity=0.0,
        data=replace(tiny_run.data, validation=0.1),
        validation_objects=4,
    )
    assert "video 0." in call(recipe, "run", "--data", made_up_archives).output


def test_what_is_wrong_is_said_in_a_line(config, tmp_path, monkeypatch, capsys):
    (tmp_path / "run.yaml").write_text("data: {layout: folder, path: nowhere}\nstages: [{steps: 1}]\n")
    monkeypatch.setattr(sys, "argv", ["masklet", "train", str(tmp_path / "run.yaml"), "--run", str(tmp_path / "run")])
    with pytest.raises(SystemExit, match="2"):
        cli.main()
    assert capsys.readouterr().err.startswith("masklet: no images in nowhere/images: expected images/NAME.jpg")


@pytest.mark.parametrize("name", ["yaml", "accelerate"])
def test_what_training_needs_is_named_where_it_is_missing(name, monkeypatch, capsys, tmp_path):
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


def test_a_run_under_a_file_is_refused(config, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot make the run's folder .*file/run: Not a directory. Choose another"):
        Run(config, tmp_path / "file/run", device="cpu")


def test_what_is_logged_goes_to_tensorboard_too(call, config, tmp_path):
    pytest.importorskip("tensorboard")
    call(replace(config, trackers=("tensorboard",)))
    assert list((tmp_path / "run/masklet").glob("events.out.tfevents*"))


def test_what_is_logged_goes_to_weights_and_biases_too(call, config, tmp_path, monkeypatch):
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
