"""Tracking objects through a clip."""

from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from masklet.engine import EagerEngine
from masklet.engine.base import ABSENT_LOGIT
from masklet.model.mask_decoder import DecodedMasks
from masklet.model.neck import Features
from masklet.training.clip_losses import _chosen, _Tracking, clip_losses, with_true_presence
from masklet.training.clip_plan import draw_plan
from masklet.training.loop import Trainer
from masklet.training.losses import LossWeights, segmentation_losses
from masklet.training.objective import Objective
from masklet.training.parameter_groups import COMPONENTS, is_trained
from masklet.training.prompts import PromptRates


@pytest.fixture
def model(scratch):
    model = Trainer(scratch).model
    for name, weight in model.named_parameters():
        weight.requires_grad_(is_trained(name, "memory"))
    with torch.no_grad():
        model.mask_decoder.pred_obj_score_head.proj_out.bias.fill_(5)  # prompted objects are predicted to be present
    return model


def features(model, frames):
    images = torch.randn(frames, 3, 64, 64, generator=torch.Generator().manual_seed(0)).to(model.dtype)
    with torch.no_grad():
        return model.encode(images)


def squares(frames, objects):
    targets = torch.zeros(frames, objects, 64, 64, dtype=torch.bool)
    for index in range(objects):
        targets[:, index, 8:32, 16 * index : 16 * index + 16] = True
    return targets


RATES = PromptRates(click=0.25, box=0.25, mask=0.5)


def plan_of(targets, seed=0, rounds=1, prompts=RATES):
    return draw_plan(targets, rounds=rounds, prompts=prompts, generator=torch.Generator().manual_seed(seed))


def losses_of(model, targets, seed=0, rounds=1, prompts=RATES):
    """The losses of one clip, (frames, objects, height, width)."""
    return clip_losses(
        EagerEngine(model),
        features(model, len(targets)),
        targets[None],
        rounds=rounds,
        weights=LossWeights(focal=5),
        plan=plan_of(targets[None], seed, rounds, prompts),
    )


@pytest.mark.parametrize(("rounds", "seed"), [(1, 0), (3, 0), (3, 1)])
def test_a_batch_of_clips_has_the_mean_loss_and_gradient_of_its_clips(model, rounds, seed):
    """Also where an object leaves, and where the clips differ in the kinds of prompts."""
    targets = torch.stack([squares(4, 3), squares(4, 3).roll(20, -2)])
    targets[1, 2:, 0] = False
    plan = plan_of(targets, seed, rounds)
    maps = features(model, 8)
    options = {"rounds": rounds, "weights": LossWeights(focal=5)}
    weights = [weight for weight in model.parameters() if weight.requires_grad]

    def gradients(losses):
        return torch.autograd.grad(losses.total, weights, materialize_grads=True)

    together, ious = clip_losses(EagerEngine(model), maps, targets, plan=plan, **options)
    of_batch = gradients(together)
    alone = []
    for clip in range(2):
        own = Features(*(m[4 * clip : 4 * clip + 4] for m in maps))
        losses, iou = clip_losses(EagerEngine(model), own, targets[[clip]], plan=plan.of_clip(clip), **options)
        alone.append((losses, iou, gradients(losses)))
    for name in ("focal", "dice", "iou", "object_score"):
        expected = sum(getattr(losses, name) for losses, _, _ in alone) / 2
        torch.testing.assert_close(getattr(together, name), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ious[0], sum(iou[0] for _, iou, _ in alone) / 2)
    for mine, one, other in zip(of_batch, alone[0][2], alone[1][2], strict=True):
        torch.testing.assert_close(mine, (one + other) / 2, rtol=1e-3, atol=1e-5)


class Operators(TorchDispatchMode):
    """Counts operators, and those that read back to the host."""

    READS = ("aten._local_scalar_dense", "aten.nonzero", "aten.is_nonzero", "aten.item")

    def __init__(self):
        super().__init__()
        self.count, self.reads = 0, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        if str(func).startswith(self.READS):
            self.reads.append(str(func))
        return func(*args, **(kwargs or {}))


def operators_of(model, clips):
    targets = torch.stack([squares(8, 3)] * clips)
    plan = plan_of(targets, 1, rounds=3)
    maps = features(model, 8 * clips)
    with Operators() as operators:
        losses, _ = clip_losses(EagerEngine(model), maps, targets, rounds=3, weights=LossWeights(focal=5), plan=plan)
        losses.total.backward()
    return operators


def test_operators_hardly_grow_with_clips_and_none_reads_back(model):
    one, two = operators_of(model, 1), operators_of(model, 2)
    assert one.reads == two.reads == []
    assert two.count < 1.2 * one.count


@pytest.mark.parametrize("frames", [1, 3])
def test_a_step_is_computed_where_nothing_can_be_read(scratch, squares_source, frames):
    """The meta device stands for CUDA: it has shapes alone, so whatever needs a value fails."""
    stage = replace(scratch.stages[0], frames=frames, rounds=3)
    objective = Objective(Trainer(scratch).model, precision="float32").to("meta")
    batch = squares_source.batch(stage, [squares_source.example(stage, 0, index) for index in range(2)])
    total, losses, ious = objective(batch.to(torch.device("meta")), stage, torch.Generator().manual_seed(0))
    assert total.device.type == "meta"
    assert all(value.device.type == "meta" for value in (*losses.values(), *ious))
    total.backward()


def test_losses_are_a_function_of_the_seed(model):
    losses, ious = losses_of(model, squares(4, 3))
    assert len(ious) == 2
    assert all(0 <= iou <= 1 for iou in ious)
    again, same = losses_of(model, squares(4, 3))
    assert losses.total.item() == again.total.item()
    assert ious == same


def test_an_object_that_leaves_and_returns_trains_all_of_the_memory(model):
    targets = squares(4, 4)
    targets[1:3, 1:] = False
    for seed in range(2):  # clicks, boxes and masks
        losses, _ = losses_of(model, targets, seed)
        losses.total.backward()
    for part in (*COMPONENTS["object_score"], *COMPONENTS["memory"]):
        if part in ("no_memory_positional_encoding", "spatial_perceiver."):  # not used; of EdgeTAM alone
            continue
        gradients = [w.grad for name, w in model.named_parameters() if name.startswith(part) and w.grad is not None]
        assert any(grad.any() for grad in gradients), part
    assert all((w.grad is not None) <= w.requires_grad for w in model.parameters())


def test_short_clips_train_the_encodings_of_older_memories(model):
    for seed in range(12):
        losses, _ = losses_of(model, squares(5, 1), seed)
        losses.total.backward()
    grad = model.memory_temporal_positional_encoding.grad
    assert grad is not None
    assert grad.flatten(1).any(1).all()


def test_memory_stores_true_presence_and_not_the_predicted_score(model):
    truth = squares(1, 2)[0]
    truth[1] = False
    logits, tokens = torch.randn(2, 1, 3, 16, 16), torch.randn(2, 1, 3, 32)
    wrong = DecodedMasks(logits, torch.rand(2, 1, 3), torch.tensor([-4.0, 4.0]).view(2, 1, 1), tokens)
    stored = _chosen(with_true_presence(model, wrong, truth))
    assert any(stored.logits[0].equal(candidate) for candidate in logits[0, 0])
    assert not stored.pointers[0].equal(model.no_object_pointer[0])
    assert (stored.logits[1] == ABSENT_LOGIT).all()
    assert stored.pointers[1].equal(model.no_object_pointer[0])


def test_absent_objects_contribute_to_the_object_score_alone():
    targets = torch.zeros(2, 1, 4, 4, dtype=torch.bool)
    targets[0, :, :2] = True
    logits, ious = torch.randn(2, 1, 3, 4, 4), torch.rand(2, 1, 3)
    scores = torch.tensor([[[2.0]], [[-3.0]]])
    both = segmentation_losses(logits, ious, scores, targets, weights=LossWeights(focal=5))
    seen = segmentation_losses(logits[:1], ious[:1], scores[:1], targets[:1], weights=LossWeights(focal=5))
    torch.testing.assert_close((both.focal, both.dice, both.iou), (seen.focal, seen.dice, seen.iou))
    torch.testing.assert_close(both.object_score, torch.nn.functional.softplus(torch.tensor([-2.0, -3.0])).mean())
    none = segmentation_losses(logits[1:], ious[1:], scores[1:], targets[1:], weights=LossWeights(focal=5))
    assert none.focal == none.dice == none.iou == 0


@pytest.fixture
def prompts(model, monkeypatch):
    """Records the user's prompts to the decoder: number of points, and whether earlier logits came with them."""
    calls, decode = [], model.decode

    def recording(features, prompts=None, **options):
        if prompts is not None and prompts.points is not None:
            calls.append((prompts.points.shape[2], prompts.masks is not None))
        return decode(features, prompts, **options)

    monkeypatch.setattr(model, "decode", recording)
    return calls


CLICKS = PromptRates(click=1, box=0, mask=0)


def test_up_to_two_frames_are_corrected_and_corrections_add_up(model, prompts):
    counts = set()
    for seed in range(8):
        prompts.clear()
        losses, _ = losses_of(model, squares(3, 1), seed, rounds=3, prompts=CLICKS)
        assert prompts[:3] == [(1, False), (2, True), (3, True)]
        assert prompts[3:] in ([], [(1, True), (2, True)])  # on another frame, clicks start anew
        counts.add(len(prompts))
    assert counts == {3, 5}


def test_a_corrected_frame_is_stored_as_a_prompted_one(model, monkeypatch):
    puts, write = [], model.write_memory

    def recording(features, logits, scores, *, binarize):
        puts.append(binarize)
        return write(features, logits, scores, binarize=binarize)

    monkeypatch.setattr(model, "write_memory", recording)
    found = set()
    for seed in range(8):
        puts.clear()
        losses_of(model, squares(3, 1), seed, rounds=2, prompts=CLICKS)
        found.add(tuple(puts))
    assert found == {(True, False, False), (True, True, False), (True, False, True)}


def test_an_object_absent_from_a_corrected_frame_counts_only_where_it_is_predicted(model, monkeypatch):
    counted, count = [], _Tracking._count

    def recording(tracking, decoded, rows, is_counted=None):
        counted.append(is_counted)
        count(tracking, decoded, rows, is_counted)

    monkeypatch.setattr(_Tracking, "_count", recording)
    targets = squares(2, 1)
    targets[1] = False
    with torch.no_grad():
        for bias, is_clicked in ((-50.0, False), (50.0, True)):
            model.mask_decoder.pred_obj_score_head.proj_out.bias.fill_(bias)
            later = set()
            for seed in range(8):
                counted.clear()
                losses_of(model, targets, seed, rounds=2, prompts=CLICKS)
                later.update(one.item() for one in counted[3:])  # after a click, a correction, and the tracked frame
            assert later == {is_clicked}


def test_corrections_have_gradients_through_the_memory(model):
    for seed in range(4):
        losses, _ = losses_of(model, squares(4, 2), seed, rounds=3)
        losses.total.backward()
    grads = [w.grad for name, w in model.named_parameters() if name.startswith("memory_encoder.")]
    assert all(grad is not None and grad.isfinite().all() for grad in grads)


@pytest.mark.parametrize("seed", range(3))
def test_the_gradient_of_a_clip_agrees_with_finite_differences(model, monkeypatch, seed):
    """Through memory encoder, bank, memory attention, decoder and losses, along the gradient of trained weights."""

    # bfloat16 would round small steps away
    monkeypatch.setattr("masklet.training.clip_losses.stored_maps", lambda maps, config: maps)
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)  # float32 losses are too coarse for small steps
    model.double()
    weights = [weight for weight in model.parameters() if weight.requires_grad]

    def total():  # without corrections, which treat earlier logits as constants
        losses, _ = losses_of(model, squares(3, 2), seed)
        return losses.total

    grads = torch.autograd.grad(total(), weights, materialize_grads=True)
    norm = torch.stack([grad.norm() for grad in grads]).norm()
    ends = []
    for step in (1e-5, -1e-5):
        for weight, grad in zip(weights, grads, strict=True):
            weight.data.add_(grad / norm, alpha=step)
        ends.append(total().item())
        for weight, grad in zip(weights, grads, strict=True):
            weight.data.sub_(grad / norm, alpha=step)
    assert norm > 0.01
    assert (ends[0] - ends[1]) / 2e-5 == pytest.approx(norm.item(), rel=1e-4)
