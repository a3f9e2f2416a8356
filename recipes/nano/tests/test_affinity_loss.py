"""The extra loss on pairs of cells."""

import pytest
import torch

from masklet.model.neck import Features
from recipes.nano.affinity_loss import AffinityLoss


@pytest.fixture
def affinity():
    """A loss whose embeddings of cells are the first channels of the finest map."""
    loss = AffinityLoss(32)
    with torch.no_grad():
        loss.proj.weight.zero_()
        loss.proj.bias.zero_()
        loss.proj.weight[:4, :4] = torch.eye(4)
    return loss


def features_of(finest):
    batch, _, h, w = finest.shape
    return Features(finest, torch.zeros(batch, 8, h // 2, w // 2), torch.zeros(batch, 32, h // 4, w // 4))


def two_halves():
    targets = torch.zeros(1, 2, 8, 8, dtype=torch.bool)
    targets[:, 0, :3], targets[:, 1, 5:] = True, True
    return targets


def test_cells_embedded_like_their_object_have_a_small_loss(affinity):
    targets = two_halves()
    maps = torch.full((1, 4, 8, 8), 0.0)
    maps[:, 0, :3], maps[:, 0, 5:], maps[:, 1, 3:5] = 30.0, -30.0, 30.0
    right = affinity(features_of(maps), targets, torch.Generator().manual_seed(0))
    wrong = affinity(features_of(maps.abs()), targets, torch.Generator().manual_seed(0))
    assert right < 0.4
    assert wrong > 10 * right
    affinity.weight = 3.0
    torch.testing.assert_close(affinity(features_of(maps), targets, torch.Generator().manual_seed(0)), 3 * right)


def test_pairs_of_background_cells_have_no_loss(affinity):
    targets = torch.zeros(1, 1, 8, 8, dtype=torch.bool)
    maps = torch.randn(1, 4, 8, 8, requires_grad=True)
    loss = affinity(features_of(maps), targets, torch.Generator().manual_seed(0))
    loss.backward()
    assert loss == 0
    assert maps.grad is not None
    assert not maps.grad.any()


def test_gradients_agree_with_finite_differences():
    torch.manual_seed(0)
    affinity = AffinityLoss(32).double()
    finest = torch.randn(1, 4, 4, 4, dtype=torch.float64, requires_grad=True)
    targets = two_halves()[:, :, ::2, ::2]

    def loss(x):
        maps = Features(*(m.double() for m in features_of(x)))
        return affinity(maps, targets, torch.Generator().manual_seed(0)).double()

    torch.testing.assert_close(
        torch.autograd.grad(loss(finest), finest)[0],
        _differences(loss, finest.detach()),
        rtol=1e-2,
        atol=1e-3,
    )


def _differences(loss, x, step=1e-2):
    out = torch.zeros_like(x)
    for index in range(x.numel()):
        for sign in (1, -1):
            moved = x.clone()
            moved.view(-1)[index] += sign * step
            out.view(-1)[index] += sign * loss(moved).detach() / (2 * step)
    return out
