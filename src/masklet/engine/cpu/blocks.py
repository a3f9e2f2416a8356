"""Work in blocks that fit in a processor's caches."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

BLOCK_ELEMENTS = 2**20
"""Elements that fit in a CPU's L2 cache."""


def in_blocks(function: Callable[[Tensor], Tensor], x: Tensor, widest: int) -> Tensor:
    """Apply ``function`` to the rows of ``x``, in blocks that fit in a CPU's caches.

    Intermediate results stay in the caches, and the allocator reuses their memory: fresh memory costs a CPU more than
    the arithmetic.

    Args:
        function: (rows, ...) to (rows, ...), each row independent of the others.
        x: (rows, ...).
        widest: Elements of the largest intermediate result, for each row.
    """
    return torch.cat([function(rows) for rows in x.split(max(1, BLOCK_ELEMENTS // widest))])
