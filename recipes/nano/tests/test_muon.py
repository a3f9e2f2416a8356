"""Muon against singular value decompositions and against PyTorch's own."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from masklet.model.sam2 import Sam2Model
from masklet.training.parameter_groups import is_trained
from recipes.nano.muon import COEFFICIENTS, ITERATIONS, Muon, muon_and_adamw, orthogonalised


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
def test_singular_vectors_stay_and_singular_values_become_about_one(shape, scale):
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


def test_a_matrix_of_zeros_stays_zero():
    assert (orthogonalised(torch.zeros(2, 3, 4)) == 0).all()


def test_it_takes_the_steps_of_pytorch_and_resumes_from_its_state():
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
        mine, its, continued = (end.detach() for end in ends)
        assert (mine - its).norm() < 0.005 * (its - first).norm()  # PyTorch's products are in bfloat16
        assert (continued - its).norm() < 0.02 * (its - last).norm()


def test_matrices_do_not_influence_each_other():
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


def test_a_matrix_without_a_gradient_neither_moves_nor_decays():
    trained, frozen = parameters((3, 5), (3, 5))
    before = frozen.detach().clone()
    optimizer = Muon([{"params": [trained, frozen], "weight_decay": 0.5}])
    step(optimizer, [trained], seed=0)
    assert torch.equal(frozen, before)
    assert list(optimizer.state) == [trained]


def test_a_saved_state_resumes_to_the_same_steps(tmp_path):
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


def test_the_factory_gives_matrices_of_linear_layers_to_muon_and_all_else_to_adamw(recipe):
    model, extra = Sam2Model(recipe.training.model), nn.Linear(2, 2)
    for name, weight in model.named_parameters():
        weight.requires_grad_(is_trained(name, "frozen_encoder"))
    training = replace(recipe.training, weight_decay=0.1, rates={"memory": 3.0})
    optimizers = muon_and_adamw(model, extra, training)
    assert [type(optimizer) for optimizer in optimizers] == [torch.optim.AdamW, Muon, Muon]
    adamw, *muons = ([w for g in o.param_groups for w in g["params"]] for o in optimizers)
    linear = [m.weight for m in model.modules() if isinstance(m, nn.Linear) and m.weight.requires_grad]
    assert sorted(map(id, [*muons[0], *muons[1]])) == sorted(map(id, linear))
    trained = [w for w in (*model.parameters(), *extra.parameters()) if w.requires_grad]
    assert sorted(map(id, [*adamw, *muons[0], *muons[1]])) == sorted(map(id, trained))
    assert abs(len(muons[0]) - len(muons[1])) <= 2  # one more in each group, for two factors
    for optimizer in optimizers:
        assert {group["factor"] for group in optimizer.param_groups} == {1.0, 3.0}
        decays = {group["weight_decay"] for group in optimizer.param_groups}
        assert decays == ({0.1} if isinstance(optimizer, Muon) else {0.0, 0.1})
