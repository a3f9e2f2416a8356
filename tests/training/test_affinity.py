"""The dense lesson beside the prompts."""

import pytest
import torch

from masklet.training.affinity import AffinityHead


@pytest.fixture
def head():
    """A head that passes the first channels of the finest map on."""
    head = AffinityHead(32)
    with torch.no_grad():
        head.proj.weight.zero_()
        head.proj.bias.zero_()
        head.proj.weight[:4, :4] = torch.eye(4)
    return head


def embeddings(finest):
    batch, _, h, w = finest.shape
    return [finest, torch.zeros(batch, 8, h // 2, w // 2), torch.zeros(batch, 32, h // 4, w // 4)]


def two_halves():
    targets = torch.zeros(1, 2, 8, 8, dtype=torch.bool)
    targets[:, 0, :3], targets[:, 1, 5:] = True, True
    return targets


def test_cells_that_look_like_their_object_cost_nothing_and_swapped_ones_much(head):
    targets = two_halves()
    looks = torch.full((1, 4, 8, 8), 0.0)
    looks[:, 0, :3], looks[:, 0, 5:], looks[:, 1, 3:5] = 30.0, -30.0, 30.0
    right = head(embeddings(looks), targets, torch.Generator().manual_seed(0))
    wrong = head(embeddings(looks.abs()), targets, torch.Generator().manual_seed(0))
    assert right < 0.4
    assert wrong > 10 * right


def test_how_background_cells_resemble_each_other_says_nothing(head):
    targets = torch.zeros(1, 1, 8, 8, dtype=torch.bool)
    looks = torch.randn(1, 4, 8, 8, requires_grad=True)
    loss = head(embeddings(looks), targets, torch.Generator().manual_seed(0))
    loss.backward()
    assert loss == 0
    assert looks.grad is not None
    assert not looks.grad.any()


def test_gradients_agree_with_finite_differences():
    torch.manual_seed(0)
    head = AffinityHead(32).double()
    finest = torch.randn(1, 4, 4, 4, dtype=torch.float64, requires_grad=True)
    targets = two_halves()[:, :, ::2, ::2]

    def loss(x):
        maps = [x.double() for x in embeddings(x)]
        return head(maps, targets, torch.Generator().manual_seed(0)).double()

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
