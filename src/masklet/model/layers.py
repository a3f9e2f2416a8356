"""Small blocks that several boxes of the figures are made of."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BLOCK_ELEMENTS = 2**20
"""Numbers that a CPU's caches hold."""


class LayerNorm2d(nn.LayerNorm):
    """LayerNorm over the channels of (batch, channels, height, width)."""

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__(channels, eps=eps)

    def forward(self, input: Tensor) -> Tensor:
        """Normalise each cell over its channels."""
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class FeedForward(nn.Module):
    """Linear layers with ReLU between: an MLP head, or the MLP of a decoder layer."""

    def __init__(self, dim_in: int, dim_hidden: int, dim_out: int, num_layers: int) -> None:
        super().__init__()
        self.proj_in = nn.Linear(dim_in, dim_hidden)
        self.layers = nn.ModuleList(nn.Linear(dim_hidden, dim_hidden) for _ in range(num_layers - 2))
        self.proj_out = nn.Linear(dim_hidden, dim_out)

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim_in) to (..., dim_out)."""
        x = F.relu(self.proj_in(x))
        for layer in self.layers:
            x = F.relu(layer(x))
        return self.proj_out(x)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(..., tokens, dim) to (..., heads, tokens, dim / heads)."""
    return x.unflatten(-1, (heads, -1)).transpose(-3, -2)


def join_heads(x: Tensor) -> Tensor:
    """(..., heads, tokens, head_dim) to (..., tokens, dim)."""
    return x.transpose(-3, -2).flatten(-2)


def in_blocks(function: Callable[[Tensor], Tensor], x: Tensor, widest: int) -> Tensor:
    """``function`` of the rows of ``x``, each by itself; for inference on a CPU, as many at a time as its caches hold.

    What is made on the way stays in the caches, and in memory that the allocator keeps: new memory costs a CPU more
    than the arithmetic it is for.

    Args:
        function: (rows, ...) to (rows, ...).
        x: (rows, ...).
        widest: Numbers that ``function`` makes of a row at most.
    """
    if x.device.type != "cpu" or torch.is_grad_enabled():
        return function(x)
    return torch.cat([function(some) for some in x.split(max(1, BLOCK_ELEMENTS // widest))])
