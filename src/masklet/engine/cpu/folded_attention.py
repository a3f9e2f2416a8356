"""Attention to memory in float32, folded: half the arithmetic where maps are narrow."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from masklet.config import SizeHW
from masklet.model.memory_attention import MemoryTokens, RotaryAttention
from masklet.model.positions import Rotations, rotate

FOLDING_SPEED = 0.7
"""Folded attention is faster if it needs less than this share of the arithmetic of fused attention."""


@dataclass(frozen=True)
class Keys:
    """Keys and values of one object's memory, arranged for ``FoldedAttention``."""

    rows: Tensor  # (h, maps * w, dim / 2 + memory_dim + 1): the keys of each row of cells
    values: Tensor  # (h, maps * w, memory_dim)
    pointer_keys: Tensor  # (dim, pointers)
    pointer_values: Tensor  # (pointers, memory_dim)


class FoldedAttention:
    """As ``RotaryAttention`` for one object, with half the arithmetic where memory is narrow.

    The score of a rotated query u and a key k at (x, y) is u . R(W k + b), where R rotates the first half of the
    channels with x alone and the second with y alone. All keys of a row share y: for each row, the second half of u is
    projected to k itself, which is narrower than that half. And values are summed before they are projected, since
    weights sum to one.
    """

    def __init__(self, attention: RotaryAttention, rotations: Rotations, map_hw: SizeHW) -> None:
        self.attention = attention
        self.rotations = rotations
        self.map_hw = map_hw
        weight = torch.cat([attention.k_proj.weight, attention.k_proj.bias[:, None]], 1).detach().T
        first, second = weight.chunk(2, dim=1)  # (memory_dim + 1, dim / 2) each
        # Cosines and sines of the pairs that rotate with x, and of those that rotate with y.
        cos, sin = (part.view(*map_hw, 1, 2, -1) for part in rotations)
        self.columns = rotate(first, (cos[0, ..., 0, :], sin[0, ..., 0, :]))  # (w, memory_dim + 1, dim / 2)
        rows = rotate(second, (cos[:, 0, :, 1], sin[:, 0, :, 1]))
        self.rows = rows.transpose(1, 2).contiguous()  # (h, dim / 2, memory_dim + 1)

    def is_faster(self, keys: int) -> bool:
        """Whether this is faster than fused attention: it is for many keys that are narrow."""
        dim, width = self.attention.q_proj.out_features, self.attention.k_proj.in_features
        folded = (dim / 2 + 2 * width) * keys + self.map_hw[0] * dim / 2 * width
        return folded < FOLDING_SPEED * 2 * dim * keys

    def __call__(self, q: Tensor, rows: slice, *, keys: Keys, memory: MemoryTokens) -> Tensor:
        """Read memory.

        Args:
            q: (rows, dim), queries before their projection.
            rows: Which of the map's cells they are.
            keys: Keys of the memory, from ``arrange``.
            memory: Memory of one object.

        Returns:
            (rows, dim).
        """
        attention, (cos, sin) = self.attention, self.rotations
        u = rotate(attention.q_proj(q), (cos[rows], sin[rows])) * q.shape[-1] ** -0.5
        read = self._read_block(u, keys)
        if not read.isfinite().all():  # weights overflowed, see _read_block
            return self._read_exactly(u, memory)
        return attention.o_proj(attention.v_proj(read))

    def _read_exactly(self, u: Tensor, memory: MemoryTokens) -> Tensor:
        attention, cells = self.attention, len(self.rotations[0])
        maps = memory.keys.shape[1] - memory.num_pointers
        k = attention.k_proj(memory.keys[0])
        k[:maps] = rotate(k[:maps].unflatten(0, (-1, cells)), self.rotations).flatten(0, 1)
        weights = (u @ k.T).softmax(-1)
        return attention.o_proj(attention.v_proj(weights @ memory.values[0]))

    def arrange(self, memory: MemoryTokens) -> Keys:
        """Arrange the keys and values of one object's memory, none of it empty."""
        k, v = memory.keys[0], memory.values[0]
        cells = len(k) - memory.num_pointers
        height, width = self.map_hw
        memory_dim, half = v.shape[-1], self.rows.shape[1]
        maps = F.pad(k[:cells], (0, 1), value=1.0).view(-1, height, width, memory_dim + 1)  # the 1 multiplies the bias
        by_column = maps.permute(2, 1, 0, 3).flatten(1, 2) @ self.columns  # (w, h * maps, dim / 2)
        rows = maps.new_empty(height, len(maps), width, half + memory_dim + 1)
        rows[..., :half] = by_column.unflatten(1, rows.shape[:2]).permute(1, 2, 0, 3)
        rows[..., half:] = maps.transpose(0, 1)
        values = v[:cells].view(-1, height, width, memory_dim).transpose(0, 1).flatten(1, 2)
        return Keys(rows.flatten(1, 2), values, self.attention.k_proj(k[cells:]).T, v[cells:])

    def _read_block(self, u: Tensor, keys: Keys) -> Tensor:
        """Attention of a block of rotated queries (queries, dim): (queries, memory_dim), not finite on overflow.

        Weights are relative to the highest score of the first row, not of all: a score may exceed that by 88 before its
        weight overflows.
        """
        half = self.rows.shape[1]
        # Allocated once: fresh memory costs more than the arithmetic.
        x, scores = u.new_empty(len(u), keys.rows.shape[-1]), u.new_empty(len(u), keys.rows.shape[1])
        x[:, :half] = u[:, :half]
        at_rows = u[:, half:] @ self.rows  # (h, queries, memory_dim + 1)
        x[:, half:] = at_rows[0]
        highest = torch.mm(x, keys.rows[0].T, out=scores).amax(1)
        at_rows[..., -1] -= highest
        weights = (u @ keys.pointer_keys - highest[:, None]).exp_()
        sums, total = weights @ keys.pointer_values, weights.sum(1)
        for at_row, keys_of_row, values_of_row in zip(at_rows, keys.rows, keys.values, strict=True):
            x[:, half:] = at_row
            torch.mm(x, keys_of_row.T, out=scores).exp_()
            sums.addmm_(scores, values_of_row)
            total += scores.sum(1)
        # An infinite total would turn finite sums into zeros, which would pass for a result.
        return torch.where(total.isfinite()[:, None], sums / total[:, None], torch.nan)
