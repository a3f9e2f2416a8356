"""Losses against values computed by hand and against finite differences."""

import math

import pytest
import torch

from masklet.training.losses import LossWeights, dice_loss, focal_loss, mask_iou, segmentation_losses


def test_focal_loss_of_an_undecided_pixel_is_a_quarter_of_its_weighted_cross_entropy():
    logits = torch.zeros(2, 1, 1)
    truth = torch.tensor([1.0, 0.0]).view(2, 1, 1)
    expected = torch.tensor([0.25, 0.75]) * 0.5**2 * math.log(2)
    torch.testing.assert_close(focal_loss(logits, truth), expected)


def test_focal_loss_is_small_for_right_pixels():
    right, wrong = (
        focal_loss(torch.full((1, 1), 6.0), torch.ones(1, 1)),
        focal_loss(torch.full((1, 1), -6.0), torch.ones(1, 1)),
    )
    assert right < 1e-6 * wrong


def test_dice_loss_of_half_an_overlap():
    logits = torch.tensor([[100.0, 100.0, -100.0]])
    truth = torch.tensor([[1.0, 0.0, 0.0]])
    torch.testing.assert_close(dice_loss(logits, truth), torch.tensor(1 - (2 * 1 + 1) / (2 + 1 + 1)))


@pytest.mark.parametrize("loss", [focal_loss, dice_loss])
def test_in_partly_covered_cells_the_truth_is_optimal(loss):
    truth = torch.tensor([[0.75, 0.3, 0.6], [0.2, 0.5, 0.9]])
    logits = truth.logit().requires_grad_()
    best = loss(logits, truth)
    best.backward()
    assert logits.grad is not None
    assert logits.grad.abs().max() < 1e-6
    for shift in (-1, 1):
        assert loss(logits.detach() + shift, truth) > best


@pytest.mark.parametrize("loss", [focal_loss, dice_loss])
def test_gradients_agree_with_finite_differences(loss):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 3, dtype=torch.float64, generator=generator, requires_grad=True)
    truth = (torch.rand(2, 3, 3, generator=generator) > 0.5).double()
    assert torch.autograd.gradcheck(lambda x: loss(x, truth), logits)


def test_the_sum_of_losses_agrees_with_finite_differences():
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(1, 2, 3, 4, 4, dtype=torch.float64, generator=generator, requires_grad=True)
    ious = torch.rand(1, 2, 3, dtype=torch.float64, generator=generator, requires_grad=True)
    scores = torch.randn(1, 2, 1, dtype=torch.float64, generator=generator, requires_grad=True)
    targets = torch.rand(1, 2, 4, 4, generator=generator)
    assert torch.autograd.gradcheck(
        lambda *x: segmentation_losses(*x, targets, weights=LossWeights()).total, (logits, ious, scores)
    )


def test_iou_by_hand():
    masks = torch.tensor([[[1, 1, 0]], [[0, 0, 0]]], dtype=torch.bool)
    truth = torch.tensor([[0, 1, 1]], dtype=torch.bool)
    torch.testing.assert_close(mask_iou(masks, truth), torch.tensor([1 / 3, 0.0]))
    assert mask_iou(~truth & truth, ~truth & truth) == 0


@pytest.mark.parametrize("share", [0.0, 0.25])
def test_the_best_candidate_gets_the_mask_losses_and_all_get_the_iou_loss(share):
    targets = torch.zeros(1, 1, 4, 4, dtype=torch.bool)
    targets[..., :2] = True
    good = torch.where(targets, 2.0, -2.0)
    logits = torch.stack([-good, good, torch.full_like(good, -9.0)], 2).requires_grad_()
    ious = torch.full((1, 1, 3), 0.5, requires_grad=True)
    losses = segmentation_losses(logits, ious, torch.zeros(1, 1, 1), targets, weights=LossWeights(all_candidates=share))
    losses.total.backward()
    assert logits.grad is not None
    assert logits.grad[0, 0].flatten(1).any(-1).tolist() == [share > 0, True, share > 0]
    one = segmentation_losses(logits[:, :, 1:2], ious[:, :, 1:2], torch.zeros(1, 1, 1), targets, weights=LossWeights())
    others = [focal_loss(logits[:, :, k], targets.float()) for k in range(3)]
    torch.testing.assert_close(losses.focal, (1 - share) * one.focal + share * torch.stack(others).mean())
    torch.testing.assert_close(losses.iou, torch.tensor(0.5))  # they are 0, 1 and 0
    torch.testing.assert_close(losses.object_score, torch.tensor(math.log(2)))
    assert ious.grad is not None
    assert (ious.grad.sign() == torch.tensor([1, -1, 1])).all()


def test_unsupervised_objects_have_no_mask_and_iou_losses():
    generator = torch.Generator().manual_seed(0)
    targets = torch.rand(1, 2, 4, 4, generator=generator) > 0.5
    logits = torch.randn(1, 2, 3, 4, 4, generator=generator, requires_grad=True)
    ious, scores = torch.rand(1, 2, 3, generator=generator), torch.zeros(1, 2, 1)
    supervised = torch.tensor([[True, False]])
    supervised_alone = segmentation_losses(logits, ious, scores, targets, weights=LossWeights(), supervised=supervised)
    alone = segmentation_losses(logits[:, :1], ious[:, :1], scores[:, :1], targets[:, :1], weights=LossWeights())
    torch.testing.assert_close(supervised_alone.total, alone.total)
    none = segmentation_losses(
        logits, ious, scores, targets, weights=LossWeights(), supervised=~supervised & supervised
    )
    torch.testing.assert_close(none.total, none.object_score)
