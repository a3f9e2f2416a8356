"""The Muon optimizer: updates a matrix by the orthogonal matrix nearest to its momentum.

Source: Muon is Scalable for LLM Training (arXiv 2502.16982), sections 2.1 and 2.2.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from masklet.model.sam2 import Sam2Model
from masklet.training.config import TrainingConfig
from masklet.training.parameter_groups import BETAS, parameter_groups

MOMENTUM = 0.95
UPDATE_RMS = 0.2
"""Root mean square of an update, in learning rates. It is that of AdamW, so both share a learning rate and a decay."""
ITERATIONS = 5
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of x, x cubed and x to the fifth. Five iterations bring values from 0.0015 to 1 to between 0.67 and 1.21."""


class Muon(Optimizer):
    """Muon with Nesterov momentum and decoupled weight decay, for matrices only.

    Matrices of one shape are processed together, in float32 on a CPU. PyTorch's own Muon processes them one by one in
    bfloat16, which is ten times slower on a CPU without bfloat16.

    Args:
        groups: Groups of matrices, each with its ``weight_decay`` and, before a step, its ``lr``.
    """

    def __init__(self, groups: Iterable[dict[str, Any]]) -> None:
        super().__init__(groups, {"lr": 0.0, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """Updates every matrix that has a gradient."""
        for group in self.param_groups:
            by_shape = defaultdict(list)
            for weight in group["params"]:
                if weight.grad is not None:
                    by_shape[weight.shape].append(weight)
            for (height, width), weights in by_shape.items():
                updates = orthogonalised(torch.stack([self._momentum(weight) for weight in weights]))
                updates *= -group["lr"] * UPDATE_RMS * max(height, width) ** 0.5
                for weight, update in zip(weights, updates, strict=True):
                    weight.mul_(1 - group["lr"] * group["weight_decay"]).add_(update)

    def _momentum(self, weight: Tensor) -> Tensor:
        """The Nesterov momentum of a weight, after adding its gradient to the average."""
        assert weight.grad is not None
        state = self.state[weight]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(weight)  # the name that PyTorch's Muon uses
        mean = state["momentum_buffer"].lerp_(weight.grad, 1 - MOMENTUM)
        return weight.grad.lerp(mean, MOMENTUM)


def orthogonalised(matrices: Tensor) -> Tensor:
    """Matrices with the same singular vectors, and singular values near 1 except those that were tiny.

    Args:
        matrices: (matrices, height, width). On a CUDA GPU, products are computed in bfloat16.
    """
    x = matrices.bfloat16() if matrices.is_cuda else matrices.float()
    if is_tall := x.shape[1] > x.shape[2]:
        x = x.mT
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    linear, cubic, quintic = COEFFICIENTS
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=cubic, alpha=quintic), x, beta=linear)
    return (x.mT if is_tall else x).to(matrices.dtype)


def muon_and_adamw(model: Sam2Model, extra: nn.Module | None, config: TrainingConfig) -> list[Optimizer]:
    """Muon for the matrices of linear layers, AdamW for all other weights; an optimizer factory for ``Run``.

    Muon's matrices are divided between two optimizers, which the trainer may step in parallel.
    """
    linear = {id(module.weight) for module in model.modules() if isinstance(module, nn.Linear)}
    groups = parameter_groups(model, extra, config)

    def with_weights(is_wanted: Callable[[nn.Parameter], bool], part: slice = slice(None)) -> list[dict[str, Any]]:
        chosen = [group | {"params": list(filter(is_wanted, group["params"]))[part]} for group in groups]
        return [group for group in chosen if group["params"]]

    halves = (slice(0, None, 2), slice(1, None, 2))
    return [
        AdamW(with_weights(lambda weight: id(weight) not in linear), betas=BETAS),
        *(Muon(with_weights(lambda weight: id(weight) in linear, half)) for half in halves),
    ]
