"""Matrix products in the precision of the engine: bfloat16 where a processor has instructions for it, or float32."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SCORES = 2**20
"""Attention scores of one block: they should stay in a core's caches."""
FEWEST_QUERIES = 128
"""Least number of queries in a block; with fewer, reading the keys costs too much."""


def has_bfloat16_products() -> bool:
    """Whether the processor multiplies matrices of bfloat16 faster than of float32, by what torch reports."""
    if not torch.backends.mkldnn.is_available() or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    if hasattr(torch.cpu, "get_capabilities"):
        capabilities = torch.cpu.get_capabilities()
        return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16"))
    # Older versions have private functions only, the oldest not even those.
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(bool(getattr(torch.cpu, name, bool)()) for name in names)


@dataclass(frozen=True)
class Linear:
    """Weight and bias of a linear layer. Inputs are converted; results have the type of the weight."""

    weight: Tensor  # (channels out, channels in)
    bias: Tensor | None  # (channels out,)

    @classmethod
    def pack(cls, layer: nn.Module, dtype: torch.dtype) -> Linear:
        """Pack a linear layer or a 1x1 convolution; copies only if the type differs."""
        assert isinstance(layer, nn.Linear | nn.Conv2d)
        bias = None if layer.bias is None else layer.bias.detach().to(dtype)
        return cls(layer.weight.detach().flatten(1).to(dtype), bias)

    @classmethod
    def product(cls, first: nn.Module, second: nn.Module, dtype: torch.dtype) -> Linear:
        """One layer that does the work of two, ``first`` before ``second``."""
        a, b = cls.pack(first, torch.float32), cls.pack(second, torch.float32)
        assert a.bias is not None
        assert b.bias is not None
        return cls((b.weight @ a.weight).to(dtype), (b.weight @ a.bias + b.bias).to(dtype))

    def __call__(self, x: Tensor) -> Tensor:
        """(..., channels in) to (..., channels out)."""
        rows = x.reshape(-1, x.shape[-1]).to(self.weight.dtype)  # with more axes, torch would copy the weight for each
        return F.linear(rows, self.weight, self.bias).view(*x.shape[:-1], self.width)

    @property
    def width(self) -> int:
        """Channels out."""
        return self.weight.shape[0]


def layer_norm(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    """Over the last axis of float32."""
    return F.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """(batch, heads, queries, head_dim) attends to (batch, heads, keys, head_dim).

    In bfloat16, products with a softmax between are faster than torch's fused attention: it does not use the
    instructions for bfloat16. The softmax sums in float32.
    """
    if q.dtype == torch.float32:
        return F.scaled_dot_product_attention(q, k, v)
    q = q * q.shape[-1] ** -0.5
    queries, keys = q.shape[2], k.shape[2]
    if queries * keys * q.shape[1] <= SCORES:
        return (q @ k.transpose(2, 3)).softmax(-1) @ v
    out = q.new_empty(*q.shape[:3], v.shape[3])
    block = max(FEWEST_QUERIES, SCORES // keys)
    scores = q.new_empty(block, keys)  # allocated once: fresh memory costs more than the arithmetic
    for one_q, one_k, one_v, one_out in zip(*(x.flatten(0, 1) for x in (q, k, v, out)), strict=True):
        for rows, to in zip(one_q.split(block), one_out.split(block), strict=True):
            own = scores[: len(rows)]
            torch.mm(rows, one_k.T, out=own)
            torch.softmax(own, -1, out=own)
            torch.mm(own, one_v, out=to)
    return out
