"""Objects prompted in an image and corrected."""

import copy

import pytest
import torch

from masklet.model.neck import Features
from masklet.model.prompt_encoder import Prompts
from masklet.training.image_losses import interactive_losses
from masklet.training.losses import LossWeights
from masklet.training.prompts import PromptRates, covered_cells


@pytest.fixture
def model(tiny_model):
    return copy.deepcopy(tiny_model).train()


@pytest.fixture
def targets():
    masks = torch.zeros(1, 3, 64, 64, dtype=torch.bool)
    for index in range(3):
        masks[0, index, 8 : 32 + 4 * index, 20 * index : 20 * index + 20] = True
    return masks


@pytest.fixture
def calls(model, monkeypatch):
    """The prompts that the decoder receives."""
    recorded, decode = [], model.decode

    def recording(features, prompts, **options):
        recorded.append(prompts)
        return decode(features, prompts, **options)

    monkeypatch.setattr(model, "decode", recording)
    return recorded


def losses_of(model, targets, rounds=8, rates=PromptRates(), seed=0):  # noqa: B008
    pixels = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    return interactive_losses(
        model,
        model.encode(pixels),
        targets,
        rounds=rounds,
        weights=LossWeights(),
        prompts=rates,
        generator=torch.Generator().manual_seed(seed),
    )


def test_seven_corrections_follow_the_first_prompt_with_the_previous_logits(model, targets, calls):
    losses, ious = losses_of(model, targets)
    assert [call.points.shape[2] for call in calls] == [2, *range(3, 10)]
    assert calls[0].masks is None
    assert all(call.masks.shape == (1, 3, 16, 16) and not call.masks.requires_grad for call in calls[1:])
    assert len(ious) == 8
    assert len(losses) == 9  # of the single mask each time, and of the candidates after a first click


@pytest.mark.parametrize(
    ("rates", "labels"),
    [(PromptRates(click=1, box=0), {(1, -10)}), (PromptRates(click=0, box=2), {(2, 3)})],
)
def test_first_prompts_may_be_all_of_one_kind(model, targets, calls, rates, labels):
    for seed in range(5):
        losses_of(model, targets, rounds=1, rates=rates, seed=seed)
    assert {tuple(row) for call in calls for row in call.labels[0].tolist()} == labels


def test_a_mask_is_given_with_its_box(model, targets, calls):
    losses_of(model, targets, rounds=2, rates=PromptRates(click=0, box=0, mask=1))
    assert calls[0].labels.tolist() == [[[2, 3]] * 3]
    assert calls[0].masks.gt(0).equal(covered_cells(targets))
    assert set(calls[0].masks.unique().tolist()) == {-10, 10}
    assert calls[0].points[0, 1].tolist() == [[20, 8], [40, 36]]


def test_the_heads_agree_with_finite_differences(tiny_model):
    model = copy.deepcopy(tiny_model).double().train()
    generator = torch.Generator().manual_seed(1)
    fine = [torch.randn(1, width, side, side, generator=generator).double() for width, side in ((4, 8), (8, 4))]
    image = torch.randn(1, 32, 2, 2, generator=generator).double().requires_grad_()
    points, labels = torch.tensor([[[[9.0, 20.0]]]]), torch.tensor([[[1]]])

    def decoded(coarse):
        out = model.decode(Features(*fine, coarse), Prompts(points, labels), multimask=None)
        return out.logits, out.iou_scores, out.object_scores

    assert torch.autograd.gradcheck(decoded, (image,), fast_mode=True, atol=1e-4)
