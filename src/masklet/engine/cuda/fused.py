"""Fused operations on large maps: moving those of many objects takes most of the time.

Each function reads its inputs once and writes its result once, in Triton, which comes with PyTorch for CUDA on Linux.
Elsewhere, and where Triton cannot compile, PyTorch's own operators compute the same. The kernels compute in float32;
without them, ``draw_masks`` computes in the type of its inputs. Triton's interpreter runs them on a CPU
(``TRITON_INTERPRET=1``), for tests.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

from masklet.engine.cuda.products import Norm
from masklet.engine.resizing import WEIGHT_BITS, AxisWeights

kernels: ModuleType | None
"""None where there is no Triton, and after it has failed."""
try:
    import triton

    from masklet.engine.cuda import kernels
except ImportError:
    kernels = None

_log = logging.getLogger(__name__)


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
    fused = _launched(x, lambda own: _launch_norm(own, x, shared, norm, x.dtype, gelu=gelu))
    if fused is not None:
        return fused
    y = norm(x.float() + shared)
    return (F.gelu(y) if gelu else y).to(x.dtype)


def layer_norm(x: Tensor, norm: Norm, dtype: torch.dtype, *, gelu: bool = False) -> Tensor:
    """Normalises, and optionally applies the GELU.

    Args:
        x: (..., dim).
        norm: Over the last axis.
        dtype: Of the result.
        gelu: Whether GELU follows.

    Returns:
        (..., dim), contiguous.
    """
    fused = _launched(x, lambda own: _launch_norm(own, x.contiguous(), None, norm, dtype, gelu=gelu))
    if fused is not None:
        return fused
    y = norm(x)
    return (F.gelu(y) if gelu else y).to(dtype)


def _launch_norm(
    kernels: ModuleType, x: Tensor, shared: Tensor | None, norm: Norm, dtype: torch.dtype, *, gelu: bool
) -> Tensor:
    y = torch.empty_like(x, dtype=dtype)
    dim, rows = x.shape[-1], x.numel() // x.shape[-1]
    columns = triton.next_power_of_2(dim)
    block = max(1, 4096 // columns)
    shared, shared_rows, is_sum = (x, rows, False) if shared is None else (shared, shared.numel() // dim, True)
    kernels.add_norm[(triton.cdiv(rows, block),)](
        x, shared, norm.weight, norm.bias, y, rows, shared_rows, dim, norm.eps, is_sum, gelu, block, columns
    )
    return y


def rotate(y: Tensor, cos: Tensor, sin: Tensor, width: int) -> Tensor:
    """Rotates channels: ``x * cos + turned(x) * sin``.

    Args:
        y: (objects, tokens, channels), contiguous: the first ``width`` channels, then the same turned.
        cos: (tokens, dim) float32; ``width`` is a multiple of ``dim``.
        sin: (tokens, dim) float32.
        width: Channels of the result.

    Returns:
        (objects, tokens, width) in the type of ``y``.
    """
    fused = _launched(y, lambda own: _launch_rotate(own, y, cos, sin, width))
    if fused is not None:
        return fused
    plain, turned = (part.unflatten(-1, (-1, cos.shape[-1])) for part in y[..., : 2 * width].chunk(2, -1))
    return torch.addcmul(plain * cos[:, None], turned, sin[:, None]).to(y.dtype).flatten(-2)


def _launch_rotate(kernels: ModuleType, y: Tensor, cos: Tensor, sin: Tensor, width: int) -> Tensor:
    (objects, tokens, stride), dim = y.shape, cos.shape[-1]
    rotated = torch.empty(objects, tokens, width, dtype=y.dtype, device=y.device)
    columns = triton.next_power_of_2(width)
    block, rows = max(1, 4096 // columns), objects * tokens
    kernels.rotate[(triton.cdiv(rows, block),)](y, cos, sin, rotated, rows, tokens, stride, width, dim, block, columns)
    return rotated


def resize_axis(weights: AxisWeights, pixels: Tensor, axis: int) -> Tensor:
    """As ``AxisWeights.resize``, to the same pixels."""
    fused = _launched(pixels, lambda own: _launch_resize(own, weights, pixels, axis))
    return weights.resize(pixels, axis) if fused is None else fused


def _launch_resize(kernels: ModuleType, weights: AxisWeights, pixels: Tensor, axis: int) -> Tensor:
    pixels, (taps, size) = pixels.contiguous(), weights.weights.shape
    shape = list(pixels.shape)
    length, shape[axis] = shape[axis], size
    resized = torch.empty(shape, dtype=torch.uint8, device=pixels.device)
    inner, total, block = math.prod(shape[axis + 1 :]), resized.numel(), 1024
    kernels.resize_axis[(triton.cdiv(total, block),)](
        pixels, weights.sources, weights.weights, resized, total, length, size, inner, taps, WEIGHT_BITS, block
    )
    return resized


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
    fused = _launched(x, lambda own: _launch_masks(own, x, shared, weights, width))
    if fused is not None:
        return fused
    height = x.shape[1] // width
    pixels = F.gelu(x + shared).flatten(1, -2)  # (objects, cells * 16, channels)
    parts = (weights.to(x.dtype) @ pixels.transpose(1, 2)).unflatten(-1, (height, width, 2, 2, 2, 2))
    return parts.permute(0, 1, 2, 4, 6, 3, 5, 7).float().reshape(*weights.shape[:2], 4 * height, 4 * width)


def _launch_masks(kernels: ModuleType, x: Tensor, shared: Tensor, weights: Tensor, width: int) -> Tensor:
    objects, cells, channels = len(x), x.shape[1], x.shape[-1]
    masks, height = weights.shape[1], cells // width
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


def _launched(x: Tensor, launch: Callable[[ModuleType], Tensor]) -> Tensor | None:
    """What the kernels return; None where there are none, and from when one of them failed.

    Triton compiles at the first launch, which takes a C compiler, and not every image of a container has one.
    """
    global kernels
    if kernels is None or not (x.is_cuda or os.environ.get("TRITON_INTERPRET") == "1"):
        return None
    try:
        return launch(kernels)
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception as error:
        _log.warning("Triton failed, so PyTorch's own operators are used, which are slower: %r", error)
        kernels = None
        return None
