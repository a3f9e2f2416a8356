"""Tracking objects through a clip."""

import pytest
import torch

from masklet.engine import EagerEngine
from masklet.model.mask_decoder import DecodedMasks
from masklet.model.neck import Features
from masklet.training.clip_losses import clip_losses, with_true_presence
from masklet.training.loop import Trainer
from masklet.training.losses import LossWeights, segmentation_losses
from masklet.training.parameter_groups import COMPONENTS, is_trained
from masklet.training.prompts import PromptRates
from masklet.video.memory import ObjectMemory
from masklet.video.tracker import ABSENT_LOGIT, choose


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
        maps = model.encode(images)
    return [Features(*(m[frame : frame + 1] for m in maps)) for frame in range(frames)]


def squares(frames, objects):
    targets = torch.zeros(frames, objects, 64, 64, dtype=torch.bool)
    for index in range(objects):
        targets[:, index, 8:32, 16 * index : 16 * index + 16] = True
    return targets


RATES = PromptRates(click=0.25, box=0.25, mask=0.5)


def losses_of(model, targets, seed=0, rounds=1, prompts=RATES):
    return clip_losses(
        EagerEngine(model),
        features(model, len(targets)),
        targets,
        rounds=rounds,
        weights=LossWeights(focal=5),
        prompts=prompts,
        generator=torch.Generator().manual_seed(seed),
    )


def test_every_frame_has_its_losses(model):
    losses, ious = losses_of(model, squares(4, 3))
    assert 3 <= len(losses) <= 6  # masks that are given have no loss, three clicks or boxes have one each
    assert len(ious) == 2
    assert all(0 <= iou <= 1 for iou in ious)
    again, same = losses_of(model, squares(4, 3))
    assert [one.total.item() for one in losses] == [one.total.item() for one in again]
    assert ious == same


def test_an_object_that_leaves_and_returns_trains_all_of_the_memory(model):
    targets = squares(4, 4)
    targets[1:3, 1:] = False
    for seed in range(2):  # clicks, boxes and masks
        losses, _ = losses_of(model, targets, seed)
        torch.stack([one.total for one in losses]).mean().backward()
    for part in (*COMPONENTS["object_score"], *COMPONENTS["memory"]):
        if part == "no_memory_positional_encoding":  # it is not used
            continue
        gradients = [w.grad for name, w in model.named_parameters() if name.startswith(part) and w.grad is not None]
        assert any(grad.any() for grad in gradients), part
    assert all((w.grad is not None) <= w.requires_grad for w in model.parameters())


def test_short_clips_train_the_encodings_of_older_memories(model):
    for seed in range(12):
        losses, _ = losses_of(model, squares(5, 1), seed)
        losses[-1].total.backward()
    grad = model.memory_temporal_positional_encoding.grad
    assert grad is not None
    assert grad.flatten(1).any(1).all()


def test_memory_stores_true_presence_and_not_the_predicted_score(model):
    truth = squares(1, 2)[0]
    truth[1] = False
    logits, tokens = torch.randn(2, 1, 3, 16, 16), torch.randn(2, 1, 3, 32)
    wrong = DecodedMasks(logits, torch.rand(2, 1, 3), torch.tensor([-4.0, 4.0]).view(2, 1, 1), tokens)
    here, gone = choose(with_true_presence(model, wrong, truth))
    assert any(here.logits.equal(candidate) for candidate in logits[0, 0])
    assert not here.pointer.equal(model.no_object_pointer[0])
    assert (gone.logits == ABSENT_LOGIT).all()
    assert gone.pointer.equal(model.no_object_pointer[0])


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
        assert len(losses) == len(prompts) + 2
    assert counts == {3, 5}


def test_a_corrected_frame_is_stored_as_a_prompted_one(model, monkeypatch):
    puts = []
    put = ObjectMemory.put

    def recording(bank, number, result, memory, *, is_prompted):
        puts.append(is_prompted)
        put(bank, number, result, memory, is_prompted=is_prompted)

    monkeypatch.setattr(ObjectMemory, "put", recording)
    found = set()
    for seed in range(8):
        puts.clear()
        losses_of(model, squares(3, 1), seed, rounds=2, prompts=CLICKS)
        found.add(tuple(puts))
    assert found == {(True, False, False), (True, True, False), (True, False, True)}


def test_an_object_absent_from_a_corrected_frame_is_clicked_only_where_it_is_predicted(model, prompts):
    targets = squares(2, 1)
    targets[1] = False
    with torch.no_grad():
        for bias, clicks in ((-50.0, 0), (50.0, 1)):
            model.mask_decoder.pred_obj_score_head.proj_out.bias.fill_(bias)
            counts = set()
            for seed in range(8):
                prompts.clear()
                losses_of(model, targets, seed, rounds=2, prompts=CLICKS)
                counts.add(len(prompts) - 2)
            assert counts == {0, clicks}


def test_corrections_have_gradients_through_the_memory(model):
    for seed in range(4):
        losses, _ = losses_of(model, squares(4, 2), seed, rounds=3)
        torch.stack([one.total for one in losses]).mean().backward()
    grads = [w.grad for name, w in model.named_parameters() if name.startswith("memory_encoder.")]
    assert all(grad is not None and grad.isfinite().all() for grad in grads)


@pytest.mark.parametrize("seed", range(3))
def test_the_gradient_of_a_clip_agrees_with_finite_differences(model, monkeypatch, seed):
    """Through memory encoder, bank, memory attention, decoder and losses, along the gradient of trained weights."""

    def unrounded(engine, maps, results, *, is_prompted):  # bfloat16 would round small steps away
        logits, scores = (
            torch.stack([one.logits for one in results]),
            torch.stack([one.object_score for one in results]),
        )
        return list(engine.write_memory(maps, logits, scores[:, None], binarize=is_prompted))

    for user in ("training.clip_losses", "video.tracker"):
        monkeypatch.setattr(f"masklet.{user}.memory_maps", unrounded)
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)  # float32 losses are too coarse for small steps
    model.double()
    weights = [weight for weight in model.parameters() if weight.requires_grad]

    def total():  # without corrections, which treat earlier logits as constants
        losses, _ = losses_of(model, squares(3, 2), seed)
        return torch.stack([one.total for one in losses]).mean()

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
