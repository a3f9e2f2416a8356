"""Fused operations on the mask decoder's maps. Each object has large maps, and moving them takes most of the time.

Each function reads its inputs once and writes its result once, in Triton, which comes with PyTorch for CUDA on Linux.
Elsewhere, PyTorch's own operators compute the same. The kernels compute in float32; without them, ``draw_masks``
computes in the type of its inputs.
"""

from __future__ import annotations

from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

from masklet.engine.cuda.products import Norm

kernels: ModuleType | None
try:
    import triton

    from masklet.engine.cuda import kernels
except ImportError:
    kernels = None


def add_norm(x: Tensor, shared: Tensor, norm: Norm, *, gelu: bool = False) -> Tensor:
    """Adds, normalises and optionally applies the GELU.

    Args:
        x: (maps, cells, dim), contiguous.
        shared: (maps or 1, cells, dim), contiguous, added to it.
        norm: Over the last axis.
        gelu: Whether GELU follows.

    Returns:
        (maps, cells, dim) in the type of ``x``.
    """
    if kernels is None or not x.is_cuda:
        y = norm(x.float() + shared)
        return (F.gelu(y) if gelu else y).to(x.dtype)
    y = torch.empty_like(x)
    dim, rows = x.shape[-1], x.numel() // x.shape[-1]
    columns = triton.next_power_of_2(dim)
    block = max(1, 4096 // columns)
    kernels.add_norm[(triton.cdiv(rows, block),)](
        x, shared, norm.weight, norm.bias, y, rows, shared.numel() // dim, dim, norm.eps, gelu, block, columns
    )
    return y


def draw_masks(x: Tensor, shared: Tensor, weights: Tensor, width: int) -> Tensor:
    """Masks from maps of cells of 4 x 4 pixels: the GELU of a sum, and products with the weights of each mask.

    Args:
        x: (objects, cells, 2, 2, 2, 2, channels), contiguous: quadrants of a cell (down, across), and theirs.
        shared: (objects or 1, cells, 2, 2, 2, 2, channels), contiguous, added to it.
        weights: (objects, masks, channels).
        width: Cells in a row.

    Returns:
        Logits (objects, masks, height, 4 * width), float32.
    """
    objects, cells, channels = len(x), x.shape[1], x.shape[-1]
    masks, height = weights.shape[1], cells // width
    if kernels is None or not x.is_cuda:
        pixels = F.gelu(x + shared).flatten(1, -2)  # (objects, cells * 16, channels)
        parts = (weights.to(x.dtype) @ pixels.transpose(1, 2)).unflatten(-1, (height, width, 2, 2, 2, 2))
        return parts.permute(0, 1, 2, 4, 6, 3, 5, 7).float().reshape(objects, masks, 4 * height, 4 * width)
    logits = torch.empty(objects, masks, 4 * height, 4 * width, dtype=torch.float32, device=x.device)
    block = 128
    kernels.draw_masks[(triton.cdiv(cells * 16, block), objects)](
        x,
        shared,
        weights.float().contiguous(),
        logits,
        cells * 16,
        len(shared) > 1,
        width,
        masks,
        channels,
        block,
        triton.next_power_of_2(channels),
    )
    return logits
