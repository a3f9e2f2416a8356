"""Whole runs on a folder of images: what they leave, what they say, and how they end when something is wrong."""

import errno
import json
import logging
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

import masklet
from masklet.errors import ConfigError, DataError, TrainingError
from masklet.training import Run, train
from masklet.training import run as run_module
from masklet.training.data.scenes import Frame, Scene
from masklet.training.loop import StepReport, Trainer, make_accelerator
from masklet.training.validation import Scores, Validation


def lines(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def assert_same_state(one, other):
    states = [torch.load(folder / "state.pt", weights_only=True) for folder in (one, other)]
    assert states[0]["step"] == states[1]["step"]
    for part in ("model", "ema"):
        for name, weight in states[0][part].items():
            assert weight.equal(states[1][part][name]), name
    for first, second in zip(states[0]["optimizers"], states[1]["optimizers"], strict=True):
        assert first["state"].keys() == second["state"].keys()
        for key, values in first["state"].items():
            for name, value in values.items():
                assert torch.equal(torch.as_tensor(value), torch.as_tensor(second["state"][key][name])), name


def test_a_run_measures_first_and_leaves_models_a_log_a_state_and_images(config, tmp_path, images):
    run = Run(config, tmp_path / "run", device="cpu")
    reports = list(run.reports())
    assert [type(report) for report in reports] == [Scores, *[StepReport, StepReport, Scores] * 2]
    assert [report.step for report in reports] == [0, 1, 2, 2, 3, 4, 4]
    assert reports[0].values.keys() == {"click", "box"}
    summary = run.summary()
    assert (summary.start, summary.last) == (reports[0], reports[-1])
    assert summary.best.score == max(r.score for r in reports if isinstance(r, Scores))
    assert sorted(path.name for path in (tmp_path / "run/samples").iterdir())[0] == "000000-0.jpg"
    assert [line["step"] for line in lines(tmp_path / "run")] == [0, 1, 2, 2, 3, 4, 4]
    assert (tmp_path / "run/curve.svg").read_text().count("<circle") == 3
    for name in ("best", "last"):
        masks = (
            masklet.load(tmp_path / "run" / name, device="cpu")
            .image(images / "images/p0.png")
            .predict(box=(4, 6, 28, 26))
        )
        assert masks.masks.shape == (1, 64, 64)


def test_it_is_measured_at_the_size_of_the_last_stage(config, tmp_path, monkeypatch):
    stages = tuple(replace(config.stages[0], steps=1, image_size=size) for size in (64, 96))
    run = Run(replace(config, stages=stages), tmp_path / "run", device="cpu")
    sizes, encode = set(), masklet.Sam2Model.encode
    monkeypatch.setattr(
        masklet.Sam2Model,
        "encode",
        lambda model, values: sizes.add(tuple(values.shape[-2:])) or encode(model, values),
    )
    next(run.reports())
    assert sizes == {(96, 96)}


def test_a_video_is_measured_where_it_first_shows_something(config):
    mask = np.ones((64, 64), bool)
    shown = [{}, {1: lambda: ~mask}, {1: lambda: mask}]
    video = Scene("video", lambda index: Frame(str(index), np.zeros((64, 64, 3), np.uint8), shown[index]), lambda: 3)
    model = masklet.Sam2Model.from_pretrained(config.model)
    validation = Validation([video], config.fitting(model.config))
    scores, _ = validation.measure(model, 0, make_accelerator("cpu"))
    assert scores.objects == 1


def test_the_summary_says_whether_training_helped(config, tmp_path, tiny_folder, monkeypatch):
    measure = run_module.Validation.measure

    def falling(validation, model, step, accelerator):
        scores, shown = measure(validation, model, step, accelerator)
        return replace(scores, values={"box": 0.5 - 0.01 * step}), shown

    with monkeypatch.context() as patch:
        patch.setattr(run_module.Validation, "measure", falling)
        summary = train(config, tmp_path / "worse", device="cpu")
    assert summary.helped is False
    assert str(summary).startswith("training did not help")
    assert str(summary).endswith("best is the model it began with")
    kept = masklet.Sam2Model.from_pretrained(tmp_path / "worse/best").state_dict()
    before = masklet.Sam2Model.from_pretrained(tiny_folder).state_dict()
    assert all(weight.equal(before[name]) for name, weight in kept.items())
    better = replace(summary, best=replace(summary.start, step=3, values={"box": 1.0}))
    assert better.helped
    assert str(better).startswith("training helped: ")
    assert "1.000 after step 3" in str(better)


def test_without_validation_the_summary_says_that_nothing_was_measured(config, tmp_path):
    summary = train(replace(config, data=replace(config.data, validation=0.0)), tmp_path / "run", device="cpu")
    assert summary.helped is None
    assert "nothing was measured" in str(summary)
    assert not (tmp_path / "run/best").exists()
    assert (tmp_path / "run/last").exists()


def test_a_run_that_was_cut_ends_as_one_that_was_not(config, tmp_path, monkeypatch):
    train(config, tmp_path / "straight", device="cpu")
    take_step = Trainer.take_step

    def die_in_the_fourth(trainer, batch):
        if trainer.step == 3:
            raise SystemExit("as if killed")
        return take_step(trainer, batch)

    with monkeypatch.context() as dying:
        dying.setattr(Trainer, "take_step", die_in_the_fourth)
        with pytest.raises(SystemExit):
            train(config, tmp_path / "cut", device="cpu")
    train(replace(config, workers=2, save_every=3), tmp_path / "cut", device="cpu")
    assert_same_state(tmp_path / "straight", tmp_path / "cut")
    assert lines(tmp_path / "straight") == lines(tmp_path / "cut")


def test_a_run_that_is_interrupted_keeps_its_last_step(config, tmp_path, monkeypatch):
    take_step = Trainer.take_step

    def interrupted(trainer, batch):
        if trainer.step == 3:
            raise KeyboardInterrupt
        return take_step(trainer, batch)

    monkeypatch.setattr(Trainer, "take_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "run", device="cpu")
    assert torch.load(tmp_path / "run/state.pt", weights_only=True)["step"] == 3


@pytest.mark.parametrize("cut_at", ["measurement", "best", "last"])
def test_what_a_cut_left_undone_after_the_last_step_is_done_when_going_on(config, tmp_path, monkeypatch, cut_at):
    config = replace(config, save_every=100)
    straight = train(config, tmp_path / "straight", device="cpu")
    run = Run(config, tmp_path / "cut", device="cpu")
    measure, write = run.validation.measure, run._write_model

    def interrupted(*args):
        if run.trainer.step == 4 and cut_at in ("measurement", args[0]):
            raise KeyboardInterrupt
        return (measure if cut_at == "measurement" else write)(*args)

    if cut_at == "best":
        monkeypatch.setattr(run, "_measure", partial(forced_best, run, run._measure))
    monkeypatch.setattr(
        *((run.validation, "measure") if cut_at == "measurement" else (run, "_write_model")), interrupted
    )
    with pytest.raises(KeyboardInterrupt):
        list(run.reports())
    again = train(config, tmp_path / "cut", device="cpu")
    assert again.last == straight.last
    assert lines(tmp_path / "cut") == lines(tmp_path / "straight")
    one, other = (
        masklet.Sam2Model.from_pretrained(tmp_path / name / "last").state_dict() for name in ("straight", "cut")
    )
    assert all(weight.equal(other[name]) for name, weight in one.items())


def forced_best(run, measure):
    """Measure, with any score taken for the best so far."""
    run.best = None
    return measure()


def test_what_a_killed_save_left_is_swept(config, tmp_path):
    left = [tmp_path / "run" / name for name in (".unfinished-0a1b2c3d.pt", "best/.old-0a1b2c3d.json")]
    for file in left:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"half")
    (tmp_path / "run/.hidden").write_text("the user's own")
    Run(config, tmp_path / "run", device="cpu")
    assert not any(file.exists() for file in left)
    assert (tmp_path / "run/.hidden").exists()


def test_a_run_that_is_over_stays_as_it_is(config, tmp_path):
    first = train(config, tmp_path / "run", device="cpu")
    again = train(config, tmp_path / "run", device="cpu")
    assert again == first


def test_another_run_does_not_go_on_in_the_same_folder(config, tmp_path):
    train(replace(config, stages=(replace(config.stages[0], steps=1),)), tmp_path / "run", device="cpu")
    with pytest.raises(ConfigError, match="holds a run with other stages, learning_rate: choose another folder"):
        train(replace(config, learning_rate=2e-3), tmp_path / "run", device="cpu")


def test_an_image_that_vanishes_ends_the_run_and_nothing_is_lost(config, tmp_path, images, monkeypatch):
    train(config, tmp_path / "straight", device="cpu")
    image = next(p for p in sorted((images / "images").iterdir()) if p.stem in learned_names(config))
    content, take_step = image.read_bytes(), Trainer.take_step

    def vanishing(trainer, batch):
        report = take_step(trainer, batch)
        image.unlink(missing_ok=True)
        return report

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "take_step", vanishing)
        with pytest.raises(TrainingError, match=rf"{image.name}.*The run is kept after step \d.*to go on"):
            train(config, tmp_path / "cut", device="cpu")
    image.write_bytes(content)
    train(config, tmp_path / "cut", device="cpu")
    assert_same_state(tmp_path / "straight", tmp_path / "cut")


def learned_names(config):
    return {scene.name for scene in run_module.open_data(config, torch.device("cpu"))[0].scenes}


def test_a_loss_that_is_no_number_stops_names_the_image_and_keeps_the_last_good_model(config, tmp_path, monkeypatch):
    features = masklet.Sam2Model.encode
    run = Run(config, tmp_path / "run", device="cpu")
    example = run.examples.example

    def one_bad(stage, step, place):
        made = example(stage, step, place)
        return replace(made, name="bad.png", pixels=made.pixels * 0) if (step, place) == (2, 1) else made

    monkeypatch.setattr(run.examples, "example", one_bad)

    def nan_for_black(model, pixel_values):
        maps = features(model, pixel_values)
        is_black = (pixel_values.flatten(1) == pixel_values[:, :1, 0, 0]).float().mean(1) > 0.3
        return [torch.where(is_black.view(-1, 1, 1, 1), torch.nan, m) for m in maps]

    monkeypatch.setattr(run.trainer.model, "encode", lambda values: nan_for_black(run.trainer.model, values))
    with pytest.raises(
        TrainingError, match="step 3 has a loss or gradient that is not a number: bad.png alone .*saved before"
    ):
        list(run.reports())
    state = torch.load(tmp_path / "run/state.pt", weights_only=True)
    assert state["step"] == 2
    assert all(weight.isfinite().all() for weight in state["model"].values())
    kept = masklet.Sam2Model.from_pretrained(tmp_path / "run/last")
    assert all(weight.isfinite().all() for weight in kept.state_dict().values())


@pytest.mark.parametrize("what", ["state", "model", "log"])
def test_a_full_disk_ends_the_run_and_leaves_the_last_save(config, tmp_path, monkeypatch, what):
    train(replace(config, save_every=100), tmp_path / "straight", device="cpu")

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    run = Run(config, tmp_path / "run", device="cpu")
    for report in run.reports():
        if report.step == 2 and isinstance(report, Scores):
            break
    run = Run(config, tmp_path / "run", device="cpu")
    with monkeypatch.context() as patch:
        match what:
            case "state":
                patch.setattr(torch, "save", full)
            case "model":
                patch.setattr(masklet.checkpoints, "save_file", full)
            case "log":
                patch.setattr(run_module.json, "dumps", full)
        with pytest.raises(TrainingError, match="No space left on device.*[Mm]ake room, and start"):
            list(run.reports())
    assert not [path for path in (tmp_path / "run").rglob("*") if path.name.startswith(".")]
    masklet.Sam2Model.from_pretrained(tmp_path / "run/last")
    train(config, tmp_path / "run", device="cpu")
    assert_same_state(tmp_path / "straight", tmp_path / "run")


def test_images_for_validation_must_show_something(config, tmp_path, images):
    for name in {f"p{index}" for index in range(6)} - learned_names(config):
        Image.fromarray(np.zeros((64, 64), np.uint8)).save(images / "masks" / f"{name}.png")
    with pytest.raises(DataError, match="nothing can be measured"):
        train(config, tmp_path / "run", device="cpu")


def test_a_damaged_state_is_explained(config, tmp_path):
    train(replace(config, stages=(replace(config.stages[0], steps=1),)), tmp_path / "run", device="cpu")
    (tmp_path / "run/state.pt").write_bytes(b"damaged")
    with pytest.raises(masklet.CheckpointError, match="cannot go on from .*state.pt: it is damaged"):
        train(replace(config, stages=(replace(config.stages[0], steps=1),)), tmp_path / "run", device="cpu")


def test_plain_values_and_a_file_are_configurations_too(config, tmp_path, caplog):
    values = {
        "model": config.model,
        "data": {"layout": "folder", "path": config.data.path},
        "stages": [{"steps": 1, "images": 1, "objects": 1, "rounds": 1, "train": "decoder"}],
    }
    with caplog.at_level(logging.INFO):
        train(values, tmp_path / "one", device="cpu")
    assert "validation after step 0: " in caplog.text
    (tmp_path / "run.yaml").write_text(json.dumps(values))
    train(tmp_path / "run.yaml", tmp_path / "two", device="cpu")
    assert_same_state(tmp_path / "one", tmp_path / "two")


def test_an_unknown_device_is_refused(config, tmp_path):
    with pytest.raises(masklet.DeviceError, match="device 'gpu': expected auto or cpu"):
        Run(config, tmp_path / "run", device="gpu")
