"""Runs of recipes: as programs, killed and resumed, and evaluated."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
import yaml

from masklet.datasets.scenes import Scene
from masklet.errors import ConfigError
from masklet.model.sam2 import Sam2Model
from masklet.training import Run
from recipes.nano import evaluate, train
from recipes.nano.examples import ComposedExamples
from recipes.nano.recipe import make_run, read_recipe

ROOT = Path(__file__).parents[3]


def write(recipe, path):
    path.write_text(yaml.safe_dump(json.loads(json.dumps(asdict(recipe)))))
    return path


@pytest.fixture
def call(monkeypatch, capsys):
    def call(module, *arguments):
        monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, arguments)])
        module.main()
        return capsys.readouterr().out

    return call


def test_the_recipes_of_the_embedded_model_can_be_read():
    images, videos = read_recipe(train.IMAGES), read_recipe(train.VIDEOS)
    assert images.training.model.image_size == images.training.stages[-1].input_size == 512
    assert (images.geometry_steps, images.affinity, images.muon) == (1500, 1.0, True)
    assert (videos.training.model, videos.training.stages[0].train, videos.muon) == ("nano", "memory", True)
    assert read_recipe(train.VIDEOS, model="other").training.model == "other"


def test_what_is_written_is_read_back(recipe, tmp_path):
    assert read_recipe(write(recipe, tmp_path / "recipe.yaml")) == recipe


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stages: []", "is not a recipe: expected training"),
        ("training: {stages: [{steps: 1}]}\nmuons: true", "is not a recipe"),
        ("training: {stages: [{steps: 1}], data: {layout: folder, path: a}}", "has data: expected none"),
        ("training: {stages: [{steps: 1}]}\ngeometry_steps: -1", "geometry_steps is -1"),
        ("training: {stages: [{steps: 1}]}\naffinity: -1", "affinity is -1"),
    ],
)
def test_a_file_that_is_not_a_recipe_is_named(tmp_path, text, message):
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_recipe(tmp_path / "recipe.yaml")
    with pytest.raises(ConfigError, match="cannot read the recipe .*none.yaml: No such file"):
        read_recipe(tmp_path / "none.yaml")


def test_images_then_videos_give_a_model_that_can_be_evaluated(call, recipe, archives, tmp_path, monkeypatch):
    stage = replace(recipe.training.stages[0], steps=1, frames=2, rounds=1, train="memory")
    videos = replace(recipe, geometry_steps=0, affinity=0.0, training=replace(recipe.training, stages=(stage,)))
    monkeypatch.setattr(train, "IMAGES", write(recipe, tmp_path / "images.yaml"))
    monkeypatch.setattr(train, "VIDEOS", write(videos, tmp_path / "videos.yaml"))
    printed = call(train, archives, "--run", tmp_path / "run", "--device", "cpu")
    assert printed.count("before training: 0.") == 2
    assert "video 0." in printed
    assert printed.splitlines()[-1].startswith("training ")
    model = tmp_path / "run/videos/last"
    assert Sam2Model.from_pretrained(model).config.has_memory
    figures = json.loads(call(evaluate, "--data", archives, "--model", model, "--count", 3))
    assert figures["objects"] > 0
    assert 0 <= figures["one_click"] <= figures["oracle_click"] <= 1


def test_a_single_recipe_may_start_from_another_model(call, recipe, archives, tmp_path):
    stage = replace(recipe.training.stages[0], steps=1)
    short = write(replace(recipe, training=replace(recipe.training, stages=(stage,))), tmp_path / "short.yaml")
    call(train, archives, "--run", tmp_path / "one", "--recipe", short, "--device", "cpu")
    call(train, archives, "--run", tmp_path / "two", "--recipe", short, "--model", tmp_path / "one/last")
    assert torch.load(tmp_path / "two/state.pt", weights_only=True)["step"] == 1


def test_an_error_is_one_line_and_options_are_checked(call, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        call(train, tmp_path, "--run", tmp_path / "run", "--recipe", tmp_path / "none.yaml")
    assert capsys.readouterr().err.startswith("cannot read the recipe")
    with pytest.raises(SystemExit, match="2"):
        call(train, tmp_path, "--run", tmp_path / "run", "--model", "nano")
    assert "--model needs --recipe" in capsys.readouterr().err


def test_a_run_does_not_resume_under_other_settings(recipe, archives, tmp_path):
    stage = replace(recipe.training.stages[0], steps=1)
    short = replace(recipe, training=replace(recipe.training, stages=(stage,)))
    list(make_run(short, archives, tmp_path / "run", device="cpu").reports())
    make_run(short, archives, tmp_path / "run", device="cpu")
    with pytest.raises(ConfigError, match="holds a run with different affinity, muon: choose another folder"):
        make_run(replace(short, affinity=2.0, muon=False), archives, tmp_path / "run", device="cpu")
    faster = replace(short, training=replace(short.training, learning_rate=1.0))
    with pytest.raises(ConfigError, match="holds a run with different learning_rate"):
        make_run(faster, archives, tmp_path / "run", device="cpu")


def test_compositions_may_be_validated_on_scenes_of_your_own(recipe, sources, tmp_path):
    scene = Scene("one", lambda index: None)
    run = Run(recipe.training, tmp_path / "run", device="cpu", examples=ComposedExamples(sources, 0), scenes=[scene])
    assert run.validation.scenes == [scene]


@pytest.fixture
def one_thread():
    """Sums in this process have the order of those in a process with one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def start(recipe, archives, run):
    command = ["-m", "recipes.nano.train", archives, "--run", run, "--recipe", recipe, "--device", "cpu"]
    return subprocess.Popen(
        [sys.executable, *map(str, command), "--threads", "1"],
        cwd=ROOT,
        env=os.environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process):
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_result(recipe, archives, tmp_path, one_thread):
    """With the state of Muon and of the affinity loss, and without pretraining again."""
    stage = replace(recipe.training.stages[0], steps=20)
    training = replace(recipe.training, stages=(stage,), save_every=10, validate_every=100, validation_objects=1)
    path = write(replace(recipe, training=training), tmp_path / "recipe.yaml")
    list(make_run(read_recipe(path), archives, tmp_path / "straight", device="cpu").reports())
    killed = start(path, archives, tmp_path / "killed")
    log = tmp_path / "killed/log.jsonl"
    while not (log.exists() and '"step": 11,' in log.read_text()):
        assert killed.poll() is None, killed.communicate()[0]
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert torch.load(tmp_path / "killed/state.pt", weights_only=True)["step"] == 10
    finish(start(path, archives, tmp_path / "killed"))
    one, other = (torch.load(tmp_path / name / "state.pt", weights_only=True) for name in ("straight", "killed"))
    assert one["step"] == other["step"] == 20
    assert len(one["optimizers"]) == 3
    torch.testing.assert_close(one, other, rtol=0, atol=0)
