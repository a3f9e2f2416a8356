"""Training steps, saving and resuming."""

from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import pytest
import torch
from edgetam import TINY
from torch_settings import default_device, default_dtype

from masklet.config import SpatialPerceiverConfig
from masklet.errors import CheckpointError, ConfigError
from masklet.training.loop import Trainer, learning_rate
from masklet.training.parameter_groups import is_trained
from masklet.training.processes import make_accelerator, shared_among, uses_all_weights
from masklet.training.prompts import PromptRates


@pytest.fixture(scope="module")
def clips(scratch):
    """Two steps on images, then three on clips."""
    on_images = replace(scratch.stages[0], steps=2)
    on_clips = replace(on_images, steps=3, rounds=1, frames=3, train="memory")
    return replace(scratch, stages=(on_images, on_clips))


def first_batch(trainer, examples):
    stage = trainer.config.stages[0]
    return examples.batch(stage, [examples.example(stage, 0, index) for index in trainer.indices(0)])


def assert_same_weights(one, other):
    for name, weight in one.model.state_dict().items():
        assert weight.equal(other.model.state_dict()[name]), name
        assert one.ema[name].equal(other.ema[name]), name


@pytest.mark.parametrize("frames", [1, 2])
def test_the_loss_on_one_batch_falls(scratch, squares, frames):
    stage = replace(scratch.stages[0], steps=60, frames=frames, rounds=1, prompts=PromptRates(click=0, box=1))
    trainer = Trainer(replace(scratch, stages=(stage,), learning_rate=5e-3, warmup_steps=1))
    batch = first_batch(trainer, squares)
    totals = [trainer.train_step(batch).losses["total"] for _ in range(8)]
    assert sum(totals[-3:]) < 0.8 * sum(totals[:3])


def test_a_resumed_run_ends_like_an_uninterrupted_one(scratch, squares, tmp_path):
    straight, interrupted, resumed = (Trainer(scratch) for _ in range(3))
    reports = list(straight.run(squares))
    for _ in interrupted.run(squares, until=3):
        pass
    interrupted.save(tmp_path / "state.pt")
    resumed.load(tmp_path / "state.pt")
    later = list(resumed.run(squares))
    assert later == reports[3:]
    assert [report.step for report in reports] == [1, 2, 3, 4, 5, 6]
    assert_same_weights(straight, resumed)


def test_training_memory_changes_nothing_else(clips, squares):
    trainer = Trainer(clips)
    for _ in trainer.run(squares, until=2):
        pass
    before = {name: weight.clone() for name, weight in trainer.ema.items()}
    for _ in trainer.run(squares, until=3):
        pass
    changed = set()
    for name, weight in trainer.model.state_dict().items():
        if is_trained(name, "memory"):
            changed |= set() if weight.equal(before[name]) else {name}
        else:
            assert weight.equal(before[name]), name
            assert trainer.ema[name].equal(before[name]), name
    assert all(any(name.startswith(part) for name in changed) for part in ("memory_attention", "memory_encoder"))


@pytest.mark.slow
def test_a_resumed_run_on_clips_ends_like_an_uninterrupted_one(clips, squares, tmp_path):
    straight = Trainer(clips)
    reports = []
    for report in straight.run(squares):
        reports.append(report)
        straight.save(tmp_path / f"{report.step}.pt")
    for step in (2, 3):  # between the stages, and among clips
        resumed = Trainer(clips)
        resumed.load(tmp_path / f"{step}.pt")
        assert list(resumed.run(squares)) == reports[step:]
        assert_same_weights(straight, resumed)


def test_a_save_that_fails_keeps_the_previous_one(scratch, tmp_path, monkeypatch):
    trainer, path = Trainer(scratch), tmp_path / "state.pt"
    trainer.save(path)
    before = path.read_bytes()

    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(CheckpointError, match="cannot save the state of step 0 to .*disk full.*unchanged"):
        trainer.save(path)
    assert path.read_bytes() == before


def test_the_averaged_model_is_for_inference_and_not_the_trained_one(scratch, squares):
    trainer = Trainer(scratch)
    for _ in trainer.run(squares, until=2):
        pass
    model = trainer.averaged_model()
    assert not model.training
    weight, average = trainer.model.no_memory_embedding, model.no_memory_embedding
    assert not torch.equal(weight, average)


def test_the_learning_rate_rises_then_falls_to_nothing(scratch):
    rates = [learning_rate(scratch, step) for step in range(scratch.steps)]
    assert rates[:2] == [0.5e-3, 1e-3]
    assert rates[1:] == sorted(rates[1:], reverse=True)
    assert rates[-1] < 0.3e-3


def test_the_fall_begins_at_the_end_of_a_long_warm_up(scratch):
    rates = [learning_rate(replace(scratch, warmup_steps=3), step) for step in range(4)]
    assert rates[2] == rates[3] == 1e-3


def test_the_configuration_alone_decides_about_mixed_precision(monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert make_accelerator("cpu").mixed_precision == "no"


def test_progress_counts_pixels(scratch):
    shares = [scratch.progress(step) for step in range(7)]
    assert shares[0] == 0
    assert shares[6] == 1
    assert (shares[5] - shares[4]) / (shares[1] - shares[0]) == pytest.approx((96 / 64) ** 2)


def test_progress_counts_the_frames_of_clips(clips):
    shares = [clips.progress(step) for step in (0, 1, 2, 3)]
    assert (shares[3] - shares[2]) / (shares[1] - shares[0]) == pytest.approx(3)


def test_clips_need_a_memory(clips):
    with pytest.raises(ConfigError, match="no memory"):
        replace(clips, model=replace(clips.model, has_memory=False))


def test_stages_follow_each_other(scratch):
    assert [scratch.stage_at(step).input_size for step in range(6)] == [64] * 4 + [96] * 2
    with pytest.raises(IndexError, match="ended"):
        scratch.stage_at(6)


@pytest.mark.parametrize("frames", [1, 2])
def test_recomputed_activations_are_the_same(scratch, squares, frames):
    run = replace(scratch, stages=(replace(scratch.stages[0], frames=frames),))
    reports = []
    for is_recomputed in (False, True):
        trainer = Trainer(replace(run, checkpoint_activations=is_recomputed))
        reports.append(trainer.train_step(first_batch(trainer, squares)))
    assert reports[0].losses == reports[1].losses
    assert reports[0].gradient_norm == pytest.approx(reports[1].gradient_norm, rel=1e-5)


def test_products_in_bfloat16_are_near_those_in_float32(scratch, squares):
    reports = []
    for precision in ("float32", "bfloat16"):
        trainer = Trainer(replace(scratch, precision=precision))
        reports.append(trainer.train_step(first_batch(trainer, squares)))
        assert all(weight.dtype == torch.float32 for weight in trainer.model.state_dict().values())
    assert reports[0].losses["total"] != reports[1].losses["total"]
    assert reports[0].losses["total"] == pytest.approx(reports[1].losses["total"], rel=0.05)


def test_gradients_of_micro_batches_add_up_to_that_of_the_batch(scratch, squares):
    stage = replace(scratch.stages[0], batch_size=4, rounds=1, prompts=PromptRates(click=0, box=0, mask=1))
    gradients = []
    for micro_batches in (1, 2, 4):
        run = replace(scratch, stages=(stage,), micro_batches=micro_batches, max_gradient_norm=1e9)
        trainer = Trainer(run)
        trainer.train_step(first_batch(trainer, squares))
        gradients.append({name: weight.grad for name, weight in trainer.model.named_parameters()})
    for name, gradient in gradients[0].items():
        if gradient is not None:
            torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-3, atol=1e-5)
            torch.testing.assert_close(gradients[2][name], gradient, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("model", "frames", "setting"),
    [
        ("folder", 2, partial(default_device, "meta")),
        ("folder", 2, partial(default_dtype, torch.float64)),
        ("scratch", 1, partial(default_device, "meta")),
    ],
)
def test_training_does_not_depend_on_torchs_defaults(scratch, squares, tiny_folder, model, frames, setting):
    stage = replace(scratch.stages[0], frames=frames, steps=1, rounds=2)
    config = replace(scratch, stages=(stage,), warmup_steps=0)
    if model == "folder":
        config = replace(config, model=str(tiny_folder))
    losses = []
    for context in (nullcontext, setting):
        with context():
            losses.append([report.losses for report in Trainer(config).run(squares)])
    assert losses[0] == losses[1]


def test_float16_scales_gradients_and_leaves_out_steps_that_overflow(scratch, squares, tmp_path):
    trainer = Trainer(replace(scratch, precision="float16"))
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**60)  # overflows until it is halved often enough
    before = {name: weight.clone() for name, weight in trainer.model.state_dict().items()}
    batch = first_batch(trainer, squares)
    report = trainer.train_step(batch)
    assert report.gradient_norm == 0
    assert trainer.step == 1
    assert all(weight.equal(before[name]) for name, weight in trainer.model.state_dict().items())
    trainer.scaler.update(1024.0)
    report = trainer.train_step(batch)
    assert report.gradient_norm > 0
    assert not all(weight.equal(before[name]) for name, weight in trainer.model.state_dict().items())
    exact = Trainer(scratch)
    assert exact.train_step(batch).gradient_norm == pytest.approx(
        Trainer(replace(scratch, precision="float16")).train_step(batch).gradient_norm, rel=0.1
    )
    trainer.save(tmp_path / "state.pt")
    resumed = Trainer(replace(scratch, precision="float16"))
    resumed.load(tmp_path / "state.pt")
    assert resumed.scaler.get_scale() == 1024.0


def test_processes_look_for_unused_weights_only_where_there_are_some(scratch, squares):
    stage = replace(scratch.stages[0], train="decoder")
    assert uses_all_weights(replace(scratch, stages=(stage,)))
    trainer = Trainer(replace(scratch, stages=(stage,)))
    trainer.train_step(first_batch(trainer, squares))
    trained = [weight for weight in trainer.model.parameters() if weight.requires_grad]
    assert all(weight.grad is not None for weight in trained)
    assert not uses_all_weights(scratch)
    trainer = Trainer(scratch)
    trainer.train_step(first_batch(trainer, squares))
    assert any(weight.requires_grad and weight.grad is None for weight in trainer.model.parameters())


@pytest.mark.parametrize(("micro", "processes", "expected"), [(1, 2, 2), (2, 2, 2), (3, 2, 4), (1, 4, 4)])
def test_processes_get_equal_parts_of_a_batch(scratch, micro, processes, expected):
    stage = replace(scratch.stages[0], batch_size=12)
    assert shared_among(replace(scratch, stages=(stage,), micro_batches=micro), processes).micro_batches == expected


def test_a_batch_that_processes_cannot_share_is_refused(scratch):
    with pytest.raises(ConfigError, match="batches of 2 cannot be shared equally among 3 processes"):
        shared_among(replace(scratch, micro_batches=1), 3)


@pytest.mark.slow
def test_a_compiled_encoder_trains_alike(scratch, squares, monkeypatch):
    compiled = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **more: compiled(self, backend="eager", **more))
    losses = []
    for is_compiled in (False, True):
        trainer = Trainer(replace(scratch, compile=is_compiled, micro_batches=1))
        losses.append(trainer.train_step(first_batch(trainer, squares)).losses["total"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_with_a_cache_nothing_is_compiled_because_any_number_of_images_may_be_new(scratch, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **_: compiled.append(self))
    Trainer(replace(scratch, compile=True), cache=lambda model: model.encode)
    assert compiled == []
    trainer = Trainer(replace(scratch, compile=True))
    assert compiled == [trainer.model.vision_encoder]


def test_an_edgetam_learns_while_the_statistics_of_its_batch_norms_stay(scratch, squares):
    stage = replace(scratch.stages[0], steps=1, frames=2, rounds=1)
    trainer = Trainer(replace(scratch, model=TINY, stages=(stage,), checkpoint_activations=True))
    before = {name: weight.clone() for name, weight in trainer.model.state_dict().items()}
    list(trainer.run(squares))
    after = trainer.averaged_model().state_dict()
    changed = {name for name, weight in after.items() if not weight.equal(before[name])}
    assert not any("running" in name or "tracked" in name for name in changed)
    assert {"vision_encoder.backbone.timm_model.stem.conv1.c.weight", "spatial_perceiver.latents_2d"} <= changed
    with pytest.raises(ConfigError, match="96 x 96 pixels: expected sides that are multiples of 64 for videos"):
        Trainer(
            replace(
                scratch,
                model=replace(TINY, perceiver=SpatialPerceiverConfig(num_latents_2d=16)),
                stages=(replace(stage, input_size=96),),
            )
        )
