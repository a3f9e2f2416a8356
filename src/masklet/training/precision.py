"""Products in bfloat16, where that is asked for and exists."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch


def autocast(device: torch.device, *, enabled: bool) -> AbstractContextManager[Any]:
    """Computes products in bfloat16, or in float32 if not enabled, whatever the surrounding code does.

    There is no autocast for MPS in every version of torch, so it is never called for MPS.
    """
    if device.type == "mps":
        return nullcontext()
    # Without autocast's cache of weights: threads would share it, and the first to finish would empty it.
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled, cache_enabled=False)
