"""Whole runs on a folder of images: the files they write, resuming, and errors."""

import errno
import json
import logging
import os
import shutil
import signal
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import masklet
from masklet.datasets.scenes import Frame, Scene
from masklet.engine import CpuEngine
from masklet.errors import ConfigError, DataError, TrainingError
from masklet.model.neck import Features
from masklet.model.sam2 import Sam2Model
from masklet.training import Run, Stage, run_files, train
from masklet.training.loop import StepReport, Trainer
from masklet.training.out_of_memory import is_out_of_memory
from masklet.training.processes import make_accelerator
from masklet.training.run_data import open_data
from masklet.training.validation import Scores, Validation


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    """A run that was not interrupted: its folder, its reports and its summary. Tests do not write to the folder."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    run = Run(config, folder, device="cpu")
    return folder, list(run.reports()), run.summary()


def log_of(folder):
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


def test_a_run_validates_first_and_writes_models_a_log_and_images(finished, images):
    folder, reports, summary = finished
    assert [type(report) for report in reports] == [Scores, *[StepReport, StepReport, Scores] * 2]
    assert [report.step for report in reports] == [0, 1, 2, 2, 3, 4, 4]
    assert reports[0].values.keys() == {"click", "box"}
    assert (summary.start, summary.last) == (reports[0], reports[-1])
    assert summary.best.score == max(r.score for r in reports if isinstance(r, Scores))
    assert min(path.name for path in (folder / "samples").iterdir()) == "000000-0.jpg"
    assert [line["step"] for line in log_of(folder)] == [0, 1, 2, 2, 3, 4, 4]
    assert (folder / "curve.svg").read_text().count("<circle") == 3
    for name in ("best", "last"):
        image = masklet.load(folder / name, device="cpu").image(images / "images/p0.png")
        assert image.predict(box=(4, 6, 28, 26)).masks.shape == (1, 64, 64)


def test_validation_uses_the_input_size_of_the_last_stage(config, tmp_path, monkeypatch):
    stages = tuple(replace(config.stages[0], steps=1, input_size=size) for size in (64, 96))
    run = Run(replace(config, stages=stages), tmp_path / "run", device="cpu")
    sizes, encode = set(), CpuEngine.encode
    monkeypatch.setattr(
        CpuEngine, "encode", lambda self, values: sizes.add(tuple(values.shape[-2:])) or encode(self, values)
    )
    next(run.reports())
    assert sizes == {(96, 96)}


def test_a_video_is_validated_from_its_first_frame_with_an_object(config):
    mask = np.ones((64, 64), bool)
    frames = [{}, {1: lambda: ~mask}, {1: lambda: mask}]
    video = Scene("video", lambda index: Frame(str(index), np.zeros((64, 64, 3), np.uint8), frames[index]), lambda: 3)
    model = Sam2Model.from_pretrained(config.model)
    validation = Validation([video], config.for_network(model.config))
    scores, _ = validation.measure(model, 0, make_accelerator("cpu"))
    assert scores.objects == 1


def test_the_summary_says_whether_training_helped(config, tmp_path, tiny_folder, monkeypatch):
    measure = Validation.measure

    def falling(validation, model, step, accelerator):
        scores, samples = measure(validation, model, step, accelerator)
        return replace(scores, values={"box": 0.5 - 0.01 * step}), samples

    with monkeypatch.context() as patch:
        patch.setattr(Validation, "measure", falling)
        summary = train(replace(config, stages=one_step(config)), tmp_path / "worse", device="cpu")
    assert summary.helped is False
    assert str(summary).startswith("training did not help")
    assert str(summary).endswith("best is the model that training started from")
    kept = Sam2Model.from_pretrained(tmp_path / "worse/best").state_dict()
    before = Sam2Model.from_pretrained(tiny_folder).state_dict()
    assert all(weight.equal(before[name]) for name, weight in kept.items())
    better = replace(summary, best=replace(summary.start, step=3, values={"box": 1.0}))
    assert better.helped
    assert str(better).startswith("training helped: ")
    assert "1.000 after step 3" in str(better)


def one_step(config):
    return (replace(config.stages[0], steps=1),)


def test_without_validation_the_summary_says_so(config, tmp_path):
    unvalidated = replace(config, stages=one_step(config), data=replace(config.data, validation=0.0))
    summary = train(unvalidated, tmp_path / "run", device="cpu")
    assert summary.helped is None
    assert "1 steps without validation" in str(summary)
    assert not (tmp_path / "run/best").exists()
    assert (tmp_path / "run/last").exists()


def test_a_killed_run_resumes_to_the_same_result(config, finished, tmp_path, monkeypatch):
    train_step = Trainer.train_step

    def die_in_the_fourth(trainer, batch):
        if trainer.step == 3:
            raise SystemExit("as if killed")
        return train_step(trainer, batch)

    with monkeypatch.context() as dying:
        dying.setattr(Trainer, "train_step", die_in_the_fourth)
        with pytest.raises(SystemExit):
            train(config, tmp_path / "killed", device="cpu")
    train(replace(config, workers=2, save_every=3), tmp_path / "killed", device="cpu")
    assert_same_state(finished[0], tmp_path / "killed")
    assert log_of(finished[0]) == log_of(tmp_path / "killed")


def test_an_interrupted_run_saves_its_last_step(config, tmp_path, monkeypatch):
    train_step = Trainer.train_step

    def interrupted(trainer, batch):
        if trainer.step == 1:
            raise KeyboardInterrupt
        return train_step(trainer, batch)

    monkeypatch.setattr(Trainer, "train_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "run", device="cpu")
    assert torch.load(tmp_path / "run/state.pt", weights_only=True)["step"] == 1


@pytest.mark.parametrize(
    "interrupted_at", ["validation", *(pytest.param(name, marks=pytest.mark.slow) for name in ("best", "last"))]
)
def test_what_an_interruption_prevented_after_the_last_step_is_done_on_resuming(
    config, finished, tmp_path, monkeypatch, interrupted_at
):
    config = replace(config, save_every=100)
    folder, _, summary = finished
    run = Run(config, tmp_path / "run", device="cpu")
    measure, write, validate = run.validation.measure, run._write_model, run._validate

    def interrupted(*args):
        if run.trainer.step == 4 and interrupted_at in ("validation", args[0]):
            raise KeyboardInterrupt
        return (measure if interrupted_at == "validation" else write)(*args)

    def always_best():
        run.best = None
        return validate()

    if interrupted_at == "best":
        monkeypatch.setattr(run, "_validate", always_best)
    monkeypatch.setattr(
        *((run.validation, "measure") if interrupted_at == "validation" else (run, "_write_model")), interrupted
    )
    with pytest.raises(KeyboardInterrupt):
        list(run.reports())
    resumed = train(config, tmp_path / "run", device="cpu")
    assert resumed.last == summary.last
    assert log_of(tmp_path / "run") == log_of(folder)
    one, other = (Sam2Model.from_pretrained(run / "last").state_dict() for run in (folder, tmp_path / "run"))
    assert all(weight.equal(other[name]) for name, weight in one.items())


def test_what_a_killed_save_left_is_removed(config, tmp_path):
    left = [tmp_path / "run" / name for name in (".unfinished-0a1b2c3d.pt", "best/.old-0a1b2c3d.json")]
    for file in left:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"half")
    (tmp_path / "run/.hidden").write_text("the user's own")
    Run(config, tmp_path / "run", device="cpu")
    assert not any(file.exists() for file in left)
    assert (tmp_path / "run/.hidden").exists()


def test_a_finished_run_stays_as_it_is(config, finished, tmp_path):
    folder, _, summary = finished
    shutil.copytree(folder, tmp_path / "run")
    again = train(config, tmp_path / "run", device="cpu")
    assert again == replace(summary, folder=tmp_path / "run")
    assert_same_state(folder, tmp_path / "run")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learning_rate": 2e-3, "seed": 5}, "holds a run with different seed, learning_rate: choose another folder"),
        ({"stages": (Stage(steps=9, batch_size=2, objects=1, rounds=2),)}, "different stages"),
        ({"stages": (Stage(steps=3),)}, "has done 4 steps, more than the 3 of this"),
        ({"model": "elsewhere/another"}, "different model"),
    ],
)
def test_a_run_does_not_resume_as_another(config, finished, change, message):
    with pytest.raises(ConfigError, match=message):
        Run(replace(config, **change), finished[0], device="cpu")


@pytest.mark.slow
def test_a_run_resumes_when_data_and_folders_moved_and_in_less_memory(config, finished, images, tiny_folder, tmp_path):
    """Bit for bit: after two of four steps all of these change, and the weights and scores are the same."""
    shutil.copytree(images, tmp_path / "moved/images")
    shutil.copytree(tiny_folder, tmp_path / "moved" / tiny_folder.name)
    first = Run(config, tmp_path / "old", device="cpu")
    for report in first.reports():
        if report.step == 2 and isinstance(report, Scores):
            first._save()
            break
    shutil.move(tmp_path / "old", tmp_path / "new")
    moved = replace(
        config,
        data=replace(config.data, path=tmp_path / "moved/images"),
        model=str(tmp_path / "moved" / tiny_folder.name),
        workers=3,
        save_every=1,
        cache=None,
    )
    train(moved, tmp_path / "new", device="cpu")
    assert_same_state(finished[0], tmp_path / "new")
    assert log_of(finished[0]) == log_of(tmp_path / "new")


@pytest.mark.slow
def test_a_finished_run_goes_on_for_more_steps_with_recomputed_activations(config, finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "run")
    longer = replace(
        config,
        stages=(replace(config.stages[0], steps=6),),
        checkpoint_activations=True,
        validation_objects=1,
        micro_batches=2,
    )
    summary = train(longer, tmp_path / "run", device="cpu")
    assert summary.steps == 6
    assert [line["step"] for line in log_of(tmp_path / "run")] == [0, 1, 2, 2, 3, 4, 4, 5, 6, 6]
    assert Run(longer, tmp_path / "run", device="cpu").is_resumed  # its new settings are kept


@pytest.mark.slow
def test_best_is_measured_anew_when_other_objects_are_validated(config, finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "run")
    fewer = replace(config, validation_objects=1, stages=(replace(config.stages[0], steps=5),))
    summary = train(fewer, tmp_path / "run", device="cpu")
    assert {scores.objects for scores in (summary.start, summary.best, summary.last)} == {2}
    assert finished[2].start.objects > 2


@pytest.mark.slow
def test_running_out_of_memory_says_what_to_change_and_loses_nothing(config, finished, tmp_path, monkeypatch):
    train_step = Trainer.train_step

    def too_much(trainer, batch):
        if trainer.step == 3:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return train_step(trainer, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", too_much)
        with pytest.raises(
            TrainingError,
            match="step 4 ran out of memory. Set checkpoint_activations: true, or micro_batches: 2, or "
            "precision: auto, then start the run again to resume",
        ):
            train(config, tmp_path / "run", device="cpu")
    train(config, tmp_path / "run", device="cpu")
    assert_same_state(finished[0], tmp_path / "run")


def test_a_cpu_without_memory_is_recognised_and_other_errors_are_not():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    assert not is_out_of_memory(RuntimeError("shapes differ"))


@pytest.mark.slow
@pytest.mark.parametrize(("number", "error"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)])
def test_a_signal_while_weights_change_waits_for_the_end_of_the_step(config, tmp_path, monkeypatch, number, error):
    update = Trainer._update_ema

    def signalled(trainer):
        if trainer.step == 3:
            os.kill(os.getpid(), number)
        update(trainer)

    monkeypatch.setattr(Trainer, "_update_ema", signalled)
    handlers = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    with pytest.raises(error) as caught:
        train(config, tmp_path / "run", device="cpu")
    assert error is KeyboardInterrupt or caught.value.code == 143
    assert torch.load(tmp_path / "run/state.pt", weights_only=True)["step"] == 3
    assert handlers == [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]


def test_a_signal_during_a_step_ends_it_at_once(config, tmp_path, monkeypatch):
    def signalled(trainer, batch):
        os.kill(os.getpid(), signal.SIGTERM)
        pytest.fail("the step went on")

    monkeypatch.setattr(Trainer, "train_step", signalled)
    with pytest.raises(SystemExit) as caught:
        train(config, tmp_path / "run", device="cpu")
    assert caught.value.code == 143
    assert torch.load(tmp_path / "run/state.pt", weights_only=True)["step"] == 0


def test_an_image_that_disappears_ends_the_run_and_nothing_is_lost(own_config, finished, tmp_path):
    image = tmp_path / f"images/images/{min(train_names(own_config))}.png"
    content = image.read_bytes()
    run = Run(own_config, tmp_path / "run", device="cpu")
    image.unlink()
    with pytest.raises(TrainingError, match=rf"{image.name}.*The run was saved after step \d.*to resume"):
        list(run.reports())
    image.write_bytes(content)
    train(own_config, tmp_path / "run", device="cpu")
    assert_same_state(finished[0], tmp_path / "run")


def train_names(config):
    return {scene.name for scene in open_data(config)[0].of_images.data_sets[0].scenes}


def test_a_loss_that_is_not_finite_ends_the_run_names_the_image_and_keeps_the_last_model(config, tmp_path, monkeypatch):
    features = Sam2Model.encode
    run = Run(config, tmp_path / "run", device="cpu")
    example = run.examples.example

    def one_bad(stage, step, index):
        made = example(stage, step, index)
        return replace(made, name="bad.png", pixels=made.pixels * 0) if (step, index) == (2, 1) else made

    def nan_for_black(values):
        maps = features(run.trainer.model, values)
        is_black = (values.flatten(1) == values[:, :1, 0, 0]).float().mean(1) > 0.3
        return Features(*(torch.where(is_black.view(-1, 1, 1, 1), torch.nan, m) for m in maps))

    monkeypatch.setattr(run.examples, "example", one_bad)
    monkeypatch.setattr(run.trainer.model, "encode", nan_for_black)
    with pytest.raises(
        TrainingError, match="step 3 has a loss or gradient that is not finite: bad.png alone .*saved before"
    ):
        list(run.reports())
    state = torch.load(tmp_path / "run/state.pt", weights_only=True)
    assert state["step"] == 2
    assert all(weight.isfinite().all() for weight in state["model"].values())
    kept = Sam2Model.from_pretrained(tmp_path / "run/last")
    assert all(weight.isfinite().all() for weight in kept.state_dict().values())


@pytest.mark.parametrize("what", ["state", *(pytest.param(name, marks=pytest.mark.slow) for name in ("model", "log"))])
def test_a_full_disk_ends_the_run_and_keeps_the_last_save(config, finished, tmp_path, monkeypatch, what):
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
                patch.setattr(masklet.checkpoints.weights, "save_file", full)
            case "log":
                patch.setattr(run_files, "json", SimpleNamespace(dumps=full, loads=json.loads))
        with pytest.raises(TrainingError, match="No space left on device.*[Mm]ake room, then start"):
            list(run.reports())
    assert not [path for path in (tmp_path / "run").rglob("*") if path.name.startswith(".")]
    Sam2Model.from_pretrained(tmp_path / "run/last")
    train(config, tmp_path / "run", device="cpu")
    assert_same_state(finished[0], tmp_path / "run")


def test_validation_needs_an_image_with_an_object(own_config, tmp_path):
    for name in {f"p{index}" for index in range(6)} - train_names(own_config):
        Image.fromarray(np.zeros((64, 64), np.uint8)).save(tmp_path / f"images/masks/{name}.png")
    with pytest.raises(DataError, match="nothing to validate on"):
        train(own_config, tmp_path / "run", device="cpu")


def test_a_damaged_state_is_explained(config, finished, tmp_path):
    (tmp_path / "run").mkdir()
    shutil.copy(finished[0] / "config.yaml", tmp_path / "run")
    (tmp_path / "run/state.pt").write_bytes(b"damaged")
    with pytest.raises(masklet.CheckpointError, match="cannot resume from .*state.pt: it is damaged"):
        train(config, tmp_path / "run", device="cpu")


def test_plain_values_and_a_file_are_configurations_too(config, tmp_path, caplog):
    values = {
        "model": config.model,
        "data": {"layout": "folder", "path": config.data.path},
        "stages": [{"steps": 1, "batch_size": 1, "objects": 1, "rounds": 1, "train": "decoder"}],
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


def test_a_folder_under_a_file_is_refused(config, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot make the run's folder .*file/run: Not a directory. Choose another"):
        Run(config, tmp_path / "file/run", device="cpu")
