"""Muon: a matrix moves by the orthogonal matrix that is nearest to its momentum.

Source: Muon is Scalable for LLM Training (arXiv 2502.16982), sections 2.1 and 2.2.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

MOMENTUM = 0.95
RMS_OF_ADAMW = 0.2
"""Of what AdamW moves a weight by, in rates: moves of this size may share its rate and its decay."""
ITERATIONS = 5
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of x, x cubed and x to the fifth: five times over, what is from 0.0015 to 1 comes to between 0.67 and 1.21."""


class Muon(Optimizer):
    """Muon with Nesterov's momentum and decoupled decay, for matrices alone; those of one shape are worked on together.

    torch's own multiplies them one by one in bfloat16, at which a CPU that lacks it is ten times slower.

    Args:
        groups: Of matrices, each with its ``weight_decay`` and, before a step, its ``lr``.
    """

    def __init__(self, groups: Iterable[dict[str, Any]]) -> None:
        super().__init__(groups, {"lr": 0.0, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """Move every matrix that has a gradient."""
        for group in self.param_groups:
            alike = defaultdict(list)
            for weight in group["params"]:
                if weight.grad is not None:
                    alike[weight.shape].append(weight)
            for (height, width), weights in alike.items():
                moves = orthogonalised(torch.stack([self._momentum(weight) for weight in weights]))
                moves *= -group["lr"] * RMS_OF_ADAMW * max(height, width) ** 0.5
                for weight, move in zip(weights, moves, strict=True):
                    weight.mul_(1 - group["lr"] * group["weight_decay"]).add_(move)

    def _momentum(self, weight: Tensor) -> Tensor:
        """A step ahead of the mean of gradients so far, which takes this one in."""
        assert weight.grad is not None
        state = self.state[weight]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(weight)  # torch's name, so that runs begun with its own go on
        mean = state["momentum_buffer"].lerp_(weight.grad, 1 - MOMENTUM)
        return weight.grad.lerp(mean, MOMENTUM)


def orthogonalised(matrices: Tensor) -> Tensor:
    """Matrices with the same singular vectors, and singular values near 1 where they were not tiny beside the others.

    Args:
        matrices: (matrices, height, width). Those of a GPU of CUDA are multiplied in bfloat16.
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
