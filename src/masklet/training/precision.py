"""Products in bfloat16 or float16, where that is asked for and exists."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def precision_for(wanted: str, device: torch.device) -> str:
    """The precision to compute products in: a key of ``DTYPES``.

    Args:
        wanted: A key of ``DTYPES``; or ``auto``: bfloat16 on devices that have it, else float16 on CUDA, else float32.
        device: Device of the run.
    """
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        # bfloat16 came with Ampere. Older GPUs emulate it, slowly.
        return "bfloat16" if torch.cuda.get_device_capability(device) >= (8, 0) else "float16"
    return "bfloat16" if device.type == "cpu" and has_bfloat16_products() else "float32"


def has_bfloat16_products() -> bool:
    """Whether the processor multiplies bfloat16 (AVX-512 BF16, AMX). Others take four times as long as in float32."""
    checks = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(bool(check()) for name in checks if (check := getattr(torch.cpu, name, None)) is not None)


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """Computes products in a precision of ``DTYPES``, whatever the surrounding code does.

    There is no autocast for MPS in every version of torch, nor for the meta device, so it is never called for them.
    """
    if device.type in ("mps", "meta"):
        return nullcontext()
    is_reduced = precision != "float32"
    # Without autocast's cache of weights: threads would share it, and the first to finish would empty it.
    dtype = DTYPES[precision] if is_reduced else torch.bfloat16
    return torch.autocast(device.type, dtype, enabled=is_reduced, cache_enabled=False)


@contextmanager
def tf32(device: torch.device, precision: str) -> Iterator[None]:
    """Allows TF32 for what stays in float32 on CUDA, unless ``float32`` was chosen. Restores the setting."""
    if device.type != "cuda" or precision == "float32":
        yield
        return
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = True
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before
