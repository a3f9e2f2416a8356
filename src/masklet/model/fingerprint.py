"""Fingerprints that tell networks apart by structure and weights."""

import hashlib
from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor

from masklet.config import Sam2Config


def fingerprint(config: Sam2Config, weights: Iterable[Tensor]) -> str:
    """A few hex digits that differ between networks whose structure or weights differ."""
    # The weights run at any input size, and thresholds belong to no layer.
    defaults = Sam2Config()
    structure = replace(config, image_size=defaults.image_size, everything=defaults.everything)
    # Bits summed as integers: exact in any order, on any device, and many times faster than hashing them.
    sums = torch.stack([t.detach().float().view(torch.int32).sum(dtype=torch.int64) for t in weights])
    return hashlib.sha256(repr((structure, sums.tolist())).encode()).hexdigest()[:16]
