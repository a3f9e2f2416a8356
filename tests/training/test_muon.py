"""Muon against the singular values it speaks of, and against torch's own."""

import copy

import pytest
import torch
from torch import nn

from masklet.training.muon import COEFFICIENTS, ITERATIONS, Muon, orthogonalised


def parameters(*shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def step(optimizer, weights, seed, rate=0.01):
    generator = torch.Generator().manual_seed(seed)
    for group in optimizer.param_groups:
        group["lr"] = rate
    for weight in weights:
        weight.grad = torch.randn(weight.shape, generator=generator)
    optimizer.step()


@pytest.mark.parametrize("shape", [(12, 12), (40, 7), (7, 40), (1, 9), (9, 1)])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_singular_vectors_stay_and_singular_values_come_near_one(shape, scale):
    (matrix,) = parameters(shape)
    matrix = matrix.detach() * scale
    u, expected, vh = torch.linalg.svd(matrix / matrix.norm(), full_matrices=False)
    linear, cubic, quintic = COEFFICIENTS
    for _ in range(ITERATIONS):
        expected = linear * expected + cubic * expected**3 + quintic * expected**5
    (result,) = orthogonalised(matrix[None])
    torch.testing.assert_close(result, u @ expected.diag() @ vh, atol=1e-4, rtol=1e-4)
    assert expected.min() > 0.6
    assert expected.max() < 1.25


def test_a_matrix_of_zeros_stays_so():
    assert (orthogonalised(torch.zeros(2, 3, 4)) == 0).all()


def test_it_goes_where_that_of_torch_goes_and_goes_on_from_there():
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("this torch has no Muon to compare with")
    ours = parameters((24, 16), (16, 24), (16, 24))
    start, theirs = copy.deepcopy(ours), copy.deepcopy(ours)
    one = Muon([{"params": ours, "weight_decay": 0.5}])
    other = torch.optim.Muon(theirs, weight_decay=0.5, adjust_lr_fn="match_rms_adamw")
    for seed in range(4):
        step(one, ours, seed)
        step(other, theirs, seed)
    before, resumed = copy.deepcopy(theirs), copy.deepcopy(theirs)
    third = Muon([{"params": resumed, "weight_decay": 0.5}])
    third.load_state_dict(copy.deepcopy(other.state_dict()))
    for optimizer, weights in ((one, ours), (other, theirs), (third, resumed)):
        step(optimizer, weights, seed=4)
    for first, last, *ends in zip(start, before, ours, theirs, resumed, strict=True):
        mine, its, gone_on = (end.detach() for end in ends)
        assert (mine - its).norm() < 0.005 * (its - first).norm()  # its products are in bfloat16
        assert (gone_on - its).norm() < 0.02 * (its - last).norm()


def test_what_a_matrix_does_is_its_own_affair():
    together, alone = parameters((6, 4), (6, 4), (4, 6)), parameters((6, 4), (6, 4), (4, 6))
    one = Muon([{"params": together}])
    others = [Muon([{"params": [weight]}]) for weight in alone]
    for seed in range(3):
        step(one, together, seed)
        for weight, group in zip(alone, together, strict=True):
            weight.grad = group.grad
        for optimizer in others:
            optimizer.param_groups[0]["lr"] = 0.01
            optimizer.step()
    torch.testing.assert_close(together, alone)


def test_without_a_gradient_nothing_moves_or_decays():
    learning, resting = parameters((3, 5), (3, 5))
    before = resting.detach().clone()
    optimizer = Muon([{"params": [learning, resting], "weight_decay": 0.5}])
    step(optimizer, [learning], seed=0)
    assert torch.equal(resting, before)
    assert list(optimizer.state) == [learning]


def test_the_state_is_all_it_needs_to_go_on(tmp_path):
    weights = parameters((5, 8), (8, 5))
    optimizer = Muon([{"params": weights, "weight_decay": 0.1}])
    step(optimizer, weights, seed=0)
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    resumed = copy.deepcopy(weights)
    other = Muon([{"params": resumed, "weight_decay": 0.1}])
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for seed in (1, 2):
        step(optimizer, weights, seed)
        step(other, resumed, seed)
    assert all(map(torch.equal, weights, resumed))
