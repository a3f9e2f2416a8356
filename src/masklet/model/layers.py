"""Small blocks that several modules share."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NARROW = (torch.float16, torch.bfloat16)

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "relu": F.relu}
"""Those that configurations may choose."""

Module = TypeVar("Module", bound=nn.Module)


class KeepsFloat32(nn.Module):
    """A module whose own parameters and buffers stay in float32 when the network is cast to a narrower type.

    Norms, positions and other small tables cost next to nothing in float32, and half precision would shift masks by
    pixels. Submodules are cast as usual.
    """

    def _apply(self: Module, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Module:
        def cast(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return tensor.to(moved.device, torch.float32) if moved.dtype in NARROW else moved

        if recurse:
            for child in self.children():
                child._apply(fn)
        return super()._apply(cast, recurse=False)  # type: ignore[no-untyped-call]


class LayerNorm(KeepsFloat32, nn.LayerNorm):
    """LayerNorm over the last axis, computed in float32; the result has the type of the input."""

    def forward(self, input: Tensor) -> Tensor:
        """(..., dim) to the same."""
        return super().forward(input.to(self.weight.dtype)).to(input.dtype)


class LayerNorm2d(LayerNorm):
    """LayerNorm over the channels of (batch, channels, height, width)."""

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__(channels, eps=eps)

    def forward(self, input: Tensor) -> Tensor:
        """Normalise each position over its channels."""
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class FeedForward(nn.Module):
    """Linear layers with ReLU in between: an MLP head, or the MLP of a decoder layer."""

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
