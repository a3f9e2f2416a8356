"""Steps, saving, and going on."""

from dataclasses import replace

import pytest
import torch

from masklet.errors import CheckpointError, ConfigError
from masklet.training.composed import Composed
from masklet.training.loop import Trainer, learning_rate, make_accelerator
from masklet.training.parts import learns
from masklet.training.prompts import PromptRates


@pytest.fixture
def clip_run(tiny_run):
    """Two steps on images, then three on clips."""
    images = replace(tiny_run.stages[0], steps=2)
    clips = replace(images, steps=3, rounds=1, frames=3, train="memory")
    return replace(tiny_run, geometry_steps=0, stages=(images, clips))


@pytest.fixture
def examples(made_up_sources, tiny_run):
    return Composed(made_up_sources, tiny_run.seed)


def first_batch(trainer, examples):
    stage = trainer.config.stages[0]
    return examples.batch(stage, [examples.example(stage, 0, place) for place in trainer.places(0)])


def test_the_loss_on_one_batch_falls(tiny_run, examples):
    trainer = Trainer(replace(tiny_run, stages=(replace(tiny_run.stages[0], steps=60),), learning_rate=3e-3))
    batch = first_batch(trainer, examples)
    totals = [trainer.take_step(batch).losses["total"] for _ in range(60)]
    assert sum(totals[-5:]) < 0.7 * sum(totals[:5])


def test_a_run_that_was_cut_ends_as_one_that_was_not(tiny_run, examples, tmp_path):
    straight, cut = Trainer(tiny_run), Trainer(tiny_run)
    for trainer in (straight, cut):
        assert len(list(trainer.teach_geometry())) == tiny_run.geometry_steps
    reports = list(straight.run(examples))
    for _ in cut.run(examples, until=3):
        pass
    cut.save(tmp_path / "state.pt")
    resumed = Trainer(tiny_run)
    resumed.load(tmp_path / "state.pt")
    later = list(resumed.run(examples))
    assert later == reports[3:]
    assert [report.step for report in reports] == [1, 2, 3, 4, 5, 6]
    for name, weight in straight.model.state_dict().items():
        assert weight.equal(resumed.model.state_dict()[name]), name
        assert straight.ema[name].equal(resumed.ema[name]), name


def test_clips_change_the_memory_and_nothing_else(clip_run, examples):
    trainer = Trainer(clip_run)
    for _ in trainer.run(examples, until=2):
        pass
    before = {name: weight.clone() for name, weight in trainer.ema.items()}
    for _ in trainer.run(examples):
        pass
    changed = set()
    for name, weight in trainer.model.state_dict().items():
        if learns(name, "memory"):
            changed |= set() if weight.equal(before[name]) else {name}
        else:
            assert weight.equal(before[name]), name
            assert trainer.ema[name].equal(before[name]), name
    assert all(any(name.startswith(part) for name in changed) for part in ("memory_attention", "memory_encoder"))
    assert all(weight.grad is None for weight in trainer.affinity.parameters())


def test_a_run_on_clips_that_was_cut_ends_as_one_that_was_not(clip_run, examples, tmp_path):
    straight = Trainer(clip_run)
    reports = list(straight.run(examples))
    for cut_after in (2, 3):  # between the stages, and among clips
        cut, resumed = Trainer(clip_run), Trainer(clip_run)
        for _ in cut.run(examples, until=cut_after):
            pass
        cut.save(tmp_path / "state.pt")
        resumed.load(tmp_path / "state.pt")
        assert list(resumed.run(examples)) == reports[cut_after:]
        for name, weight in straight.model.state_dict().items():
            assert weight.equal(resumed.model.state_dict()[name]), name
            assert straight.ema[name].equal(resumed.ema[name]), name


def test_the_loss_on_one_batch_of_clips_falls(clip_run, examples):
    stage = replace(clip_run.stages[1], steps=60, train="everything", prompts=PromptRates(click=0, box=0, mask=1))
    trainer = Trainer(replace(clip_run, stages=(stage,), learning_rate=3e-3))
    batch = first_batch(trainer, examples)
    totals = [trainer.take_step(batch).losses["total"] for _ in range(30)]
    assert sum(totals[-5:]) < 0.8 * sum(totals[:5])


def test_a_save_that_fails_leaves_the_last_one(tiny_run, tmp_path, monkeypatch):
    trainer, path = Trainer(tiny_run), tmp_path / "state.pt"
    trainer.save(path)
    before = path.read_bytes()

    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(CheckpointError, match="cannot save the state of step 0 to .*disk full.*unchanged"):
        trainer.save(path)
    assert path.read_bytes() == before


def test_the_averaged_model_is_ready_for_use_and_not_the_trained_one(tiny_run, examples):
    trainer = Trainer(tiny_run)
    for _ in trainer.run(examples, until=2):
        pass
    model = trainer.averaged_model()
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())
    weight, average = trainer.model.no_memory_embedding, model.no_memory_embedding
    assert not torch.equal(weight, average)


def test_the_learning_rate_rises_then_falls_to_nothing(tiny_run):
    rates = [learning_rate(tiny_run, step) for step in range(tiny_run.steps)]
    assert rates[:2] == [0.5e-3, 1e-3]
    assert rates[1:] == sorted(rates[1:], reverse=True)
    assert rates[-1] < 0.3e-3


def test_the_fall_begins_at_the_end_of_a_long_warm_up(tiny_run):
    rates = [learning_rate(replace(tiny_run, warmup_steps=3), step) for step in range(4)]
    assert rates[2] == rates[3] == 1e-3


def test_the_run_alone_decides_in_what_it_multiplies(monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert make_accelerator("cpu").mixed_precision == "no"


def test_progress_counts_pixels(tiny_run):
    shares = [tiny_run.progress(step) for step in range(7)]
    assert shares[0] == 0
    assert shares[6] == 1
    assert (shares[5] - shares[4]) / (shares[1] - shares[0]) == pytest.approx((96 / 64) ** 2)


def test_progress_counts_the_frames_of_clips(clip_run):
    shares = [clip_run.progress(step) for step in (0, 1, 2, 3)]
    assert (shares[3] - shares[2]) / (shares[1] - shares[0]) == pytest.approx(3)


def test_clips_need_a_memory(clip_run):
    with pytest.raises(ConfigError, match="no memory"):
        replace(clip_run, model=replace(clip_run.model, has_memory=False))


def test_stages_follow_each_other(tiny_run):
    assert [tiny_run.stage_of(step).image_size for step in range(6)] == [64] * 4 + [96] * 2
    with pytest.raises(IndexError, match="ended"):
        tiny_run.stage_of(6)


def test_computing_blocks_twice_changes_nothing(tiny_run, examples, clip_run):
    for run in (tiny_run, replace(clip_run, stages=(replace(clip_run.stages[1], train="everything"),))):
        reports = []
        for twice in (False, True):
            trainer = Trainer(replace(run, checkpoint_activations=twice))
            reports.append(trainer.take_step(first_batch(trainer, examples)))
        assert reports[0].losses == reports[1].losses
        assert reports[0].gradient_norm == pytest.approx(reports[1].gradient_norm, rel=1e-5)


def test_products_in_bfloat16_are_near_those_in_float32(tiny_run, examples):
    reports = []
    for narrow in (False, True):
        trainer = Trainer(replace(tiny_run, bfloat16=narrow))
        reports.append(trainer.take_step(first_batch(trainer, examples)))
        assert all(weight.dtype == torch.float32 for weight in trainer.model.state_dict().values())
    assert reports[0].losses["total"] != reports[1].losses["total"]
    assert reports[0].losses["total"] == pytest.approx(reports[1].losses["total"], rel=0.05)


def test_a_batch_in_parts_teaches_their_mean(tiny_run, examples):
    plain = replace(tiny_run, affinity=0.0, optimizer="adamw")
    stage = replace(plain.stages[0], images=4, rounds=1, prompts=PromptRates(click=0, box=0, mask=1))
    gradients = []
    for parts in (1, 2, 4):
        trainer = Trainer(replace(plain, stages=(stage,), parts=parts, max_gradient_norm=1e9))
        trainer.take_step(first_batch(trainer, examples))
        gradients.append({name: weight.grad for name, weight in trainer.model.named_parameters()})
    for name, gradient in gradients[0].items():
        if gradient is not None:
            torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-3, atol=1e-5)
            torch.testing.assert_close(gradients[2][name], gradient, rtol=1e-3, atol=1e-5)
