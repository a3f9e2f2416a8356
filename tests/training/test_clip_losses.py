"""Following objects through a clip."""

import pytest
import torch

from masklet.model.mask_decoder import DecodedMasks
from masklet.training.clip_losses import clip_losses, told_who_is_there
from masklet.training.loop import Trainer
from masklet.training.losses import LossWeights, segmentation_losses
from masklet.training.parts import PARTS, learns
from masklet.training.prompts import PromptRates
from masklet.video.memory import ObjectMemory
from masklet.video.tracker import ABSENT_LOGIT, choose


@pytest.fixture
def model(tiny_run):
    model = Trainer(tiny_run).model
    for name, weight in model.named_parameters():
        weight.requires_grad_(learns(name, "memory"))
    with torch.no_grad():
        model.mask_decoder.pred_obj_score_head.proj_out.bias.fill_(5)  # prompted objects are taken to be there
    return model


def features(model, frames):
    images = torch.randn(frames, 3, 64, 64, generator=torch.Generator().manual_seed(0)).to(model.dtype)
    with torch.no_grad():
        maps = model.encode(images)
    return [[m[frame : frame + 1] for m in maps] for frame in range(frames)]


def squares(frames, objects):
    targets = torch.zeros(frames, objects, 64, 64, dtype=torch.bool)
    for index in range(objects):
        targets[:, index, 8:32, 16 * index : 16 * index + 16] = True
    return targets


RATES = PromptRates(click=0.25, box=0.25, mask=0.5)


def losses_of(model, targets, seed=0, rounds=1, prompts=RATES):
    return clip_losses(
        model,
        features(model, len(targets)),
        targets,
        rounds=rounds,
        weights=LossWeights(focal=5),
        prompts=prompts,
        generator=torch.Generator().manual_seed(seed),
    )


def test_every_frame_has_its_losses(model):
    losses, ious = losses_of(model, squares(4, 3))
    assert 3 <= len(losses) <= 6  # masks that are given teach nothing, three clicks or boxes have a loss each
    assert len(ious) == 2
    assert all(0 <= iou <= 1 for iou in ious)
    again, same = losses_of(model, squares(4, 3))
    assert [one.total.item() for one in losses] == [one.total.item() for one in again]
    assert ious == same


def test_an_object_that_goes_and_returns_teaches_all_of_the_memory(model):
    targets = squares(4, 4)
    targets[1:3, 1:] = False
    for seed in range(2):  # clicks, boxes and masks
        losses, _ = losses_of(model, targets, seed)
        torch.stack([one.total for one in losses]).mean().backward()
    for part in (*PARTS["object_score"], *PARTS["memory"]):
        if part == "no_memory_positional_encoding":  # of no use to anybody
            continue
        taught = [w.grad for name, w in model.named_parameters() if name.startswith(part) and w.grad is not None]
        assert any(grad.any() for grad in taught), part
    assert all((w.grad is not None) <= w.requires_grad for w in model.parameters())


def test_older_memories_are_reached_in_short_clips(model):
    for seed in range(12):
        losses, _ = losses_of(model, squares(5, 1), seed)
        losses[-1].total.backward()
    grad = model.memory_temporal_positional_encoding.grad
    assert grad is not None
    assert grad.flatten(1).any(1).all()


def test_what_is_remembered_follows_the_truth_and_not_the_score(model):
    truth = squares(1, 2)[0]
    truth[1] = False
    logits, tokens = torch.randn(2, 1, 3, 16, 16), torch.randn(2, 1, 3, 32)
    wrong = DecodedMasks(logits, torch.rand(2, 1, 3), torch.tensor([-4.0, 4.0]).view(2, 1, 1), tokens)
    here, gone = choose(model, told_who_is_there(wrong, truth))
    assert any(here.logits.equal(candidate) for candidate in logits[0, 0])
    assert not here.pointer.equal(model.no_object_pointer[0])
    assert (gone.logits == ABSENT_LOGIT).all()
    assert gone.pointer.equal(model.no_object_pointer[0])


def test_absent_objects_count_for_their_score_alone():
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
def heard(model, monkeypatch):
    """Every prompt that the decoder is given by somebody: number of points, and whether earlier logits came with it."""
    calls, decode = [], model.decode

    def listening(*args, points=None, masks=None, **prompts):
        if points is not None:
            calls.append((points.shape[2], masks is not None))
        return decode(*args, points=points, masks=masks, **prompts)

    monkeypatch.setattr(model, "decode", listening)
    return calls


CLICKS = PromptRates(click=1, box=0, mask=0)


def test_up_to_two_frames_are_corrected_and_corrections_add_up(model, heard):
    counts = set()
    for seed in range(8):
        heard.clear()
        losses, _ = losses_of(model, squares(3, 1), seed, rounds=3, prompts=CLICKS)
        assert heard[:3] == [(1, False), (2, True), (3, True)]
        assert heard[3:] in ([], [(1, True), (2, True)])  # on another frame clicks begin anew
        counts.add(len(heard))
        assert len(losses) == len(heard) + 2
    assert counts == {3, 5}


def test_a_corrected_frame_is_remembered_as_a_prompted_one(model, monkeypatch):
    puts = []
    put = ObjectMemory.put

    def listening(bank, number, seen, memory, *, is_prompted):
        puts.append(is_prompted)
        put(bank, number, seen, memory, is_prompted=is_prompted)

    monkeypatch.setattr(ObjectMemory, "put", listening)
    found = set()
    for seed in range(8):
        puts.clear()
        losses_of(model, squares(3, 1), seed, rounds=2, prompts=CLICKS)
        found.add(tuple(puts))
    assert found == {(True, False, False), (True, True, False), (True, False, True)}


def test_an_object_that_is_absent_from_a_corrected_frame_gets_clicks_only_where_it_is_shown(model, heard):
    targets = squares(2, 1)
    targets[1] = False
    with torch.no_grad():
        for bias, clicks in ((-50.0, 0), (50.0, 1)):
            model.mask_decoder.pred_obj_score_head.proj_out.bias.fill_(bias)
            counts = set()
            for seed in range(8):
                heard.clear()
                losses_of(model, targets, seed, rounds=2, prompts=CLICKS)
                counts.add(len(heard) - 2)
            assert counts == {0, clicks}


def test_corrections_teach_through_the_memory(model):
    for seed in range(4):
        losses, _ = losses_of(model, squares(4, 2), seed, rounds=3)
        torch.stack([one.total for one in losses]).mean().backward()
    grads = [w.grad for name, w in model.named_parameters() if name.startswith("memory_encoder.")]
    assert all(grad is not None and grad.isfinite().all() for grad in grads)


@pytest.mark.parametrize("seed", range(3))
def test_the_gradient_of_a_clip_agrees_with_finite_differences(model, monkeypatch, seed):
    """Through memory encoder, bank, memory attention, decoder and losses, along the gradient of what learns."""

    def unrounded(model, maps, seen, *, is_prompted):  # in bfloat16 a small step of the weights would be none
        logits, scores = torch.stack([one.logits for one in seen]), torch.stack([one.score for one in seen])
        return list(model.encode_memory(maps[2], logits, scores[:, None], binarize=is_prompted))

    for user in ("training.clip_losses", "video.tracker"):
        monkeypatch.setattr(f"masklet.{user}.memory_maps", unrounded)
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)  # losses are float32, too coarse for small steps
    model.double()
    weights = [weight for weight in model.parameters() if weight.requires_grad]

    def total():  # without corrections: they see earlier logits as something given
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
