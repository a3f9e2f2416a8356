"""Tell networks apart by their weights."""

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor

from masklet.config import Sam2Config


def fingerprint(config: Sam2Config, weights: Iterable[Tensor]) -> str:
    """A few hex digits that differ between networks whose configuration or weights differ."""
    # Bits summed as integers: exact in any order, on any device, and many times faster than hashing them.
    sums = torch.stack([t.detach().float().view(torch.int32).sum(dtype=torch.int64) for t in weights])
    return hashlib.sha256(repr((config, sums.tolist())).encode()).hexdigest()[:16]
