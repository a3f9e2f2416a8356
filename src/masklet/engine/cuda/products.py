"""Linear layers as matrix products: several of them that read the same input are packed into one.

Products run in the engine's precision. Residuals, norms and positions stay in float32.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from masklet.model.layers import LayerNorm

Affine = tuple[Tensor, Tensor]
"""Weight (channels out, channels in) and bias (channels out,), in float32."""


@dataclass(frozen=True, eq=False)
class Product:
    """One matrix product with a bias."""

    weight: Tensor  # (channels in, channels out)
    bias: Tensor  # (channels out,)

    @classmethod
    def pack(cls, affines: Iterable[Affine], dtype: torch.dtype) -> Product:
        """Layers that read the same input, with their outputs side by side."""
        weights, biases = zip(*affines, strict=True)
        return cls(torch.cat(weights).T.contiguous().to(dtype), torch.cat(biases).to(dtype))

    def __call__(self, x: Tensor) -> Tensor:
        """(..., channels in), contiguous, to (..., channels out)."""
        rows = x.reshape(-1, x.shape[-1]).to(self.weight.dtype)
        return torch.addmm(self.bias, rows, self.weight).view(*x.shape[:-1], -1)


@dataclass(frozen=True, eq=False)
class Norm:
    """A layer norm in float32."""

    weight: Tensor
    bias: Tensor
    eps: float

    @classmethod
    def pack(cls, norm: nn.Module) -> Norm:
        """The weights of a norm over the last axis, or over channels."""
        assert isinstance(norm, LayerNorm)
        return cls(norm.weight.detach().float(), norm.bias.detach().float(), norm.eps)

    def __call__(self, x: Tensor) -> Tensor:
        """(..., dim) to float32 of the same shape."""
        return F.layer_norm(x.float(), self.weight.shape, self.weight, self.bias, self.eps)


def affine(layer: nn.Module) -> Affine:
    """The weight and bias of a linear layer or a 1x1 convolution."""
    assert isinstance(layer, nn.Linear | nn.Conv2d)
    assert layer.bias is not None
    return layer.weight.detach().float().flatten(1), layer.bias.detach().float()


def merged(first: Affine, second: Affine) -> Affine:
    """One layer that does the work of both, ``first`` before ``second``."""
    (w1, b1), (w2, b2) = first, second
    return w2 @ w1, w2 @ b1 + b2


def quarter_turn(layer: Affine) -> Affine:
    """A layer whose output is that of ``layer`` with every pair of channels (a, b) turned to (-b, a).

    A rotation by an angle is x * cos + turned * sin. So rotated queries and keys need no shuffling of channels.
    """
    weight, bias = (t.unflatten(0, (-1, 2)) for t in layer)
    return tuple(torch.stack([-t[:, 1], t[:, 0]], 1).flatten(0, 1) for t in (weight, bias))  # type: ignore[return-value]
