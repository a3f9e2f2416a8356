"""Memory attention, object by object, with folded cross-attention: half the arithmetic where maps are narrow."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from masklet.config import SizeHW
from masklet.engine.cpu.blocks import in_blocks
from masklet.engine.cpu.packing import Packed
from masklet.model.memory_attention import (
    POSITION_WEIGHT,
    MemoryAttention,
    MemoryAttentionLayer,
    MemoryTokens,
    RotaryAttention,
)
from masklet.model.positions import Rotations, axial_rotations, rotate, sine_positions_2d

BLOCK_QUERIES = 1024
"""Queries of one block: their scores for one row of keys should stay in a CPU's caches."""
FOLDING_SPEED = 0.7
"""Folded attention is faster if it needs less than this share of the arithmetic of fused attention."""


CrossAttention = Callable[[Tensor, MemoryTokens], Tensor]
"""(1, h*w, dim) attends to the memory of one object: (1, h*w, dim)."""


class CpuMemoryAttention:
    """See ``MemoryAttention``. Made for one size of map.

    Objects run one after another: together they would not fit in the caches, and alone, the result for one does not
    depend on the others, to the bit.
    """

    def __init__(self, attention: MemoryAttention, map_hw: SizeHW) -> None:
        self.attention = attention
        self.map_hw = map_hw
        dim = attention.layer_norm.normalized_shape[0]
        device = attention.layer_norm.weight.device
        self.rotations = axial_rotations(map_hw, dim, device)
        self.positions = POSITION_WEIGHT * sine_positions_2d(map_hw, dim, device)
        self.folded: Packed[list[FoldedAttention]] = Packed(
            lambda: [layer.cross_attn_image for layer in self._layers()],
            lambda: [FoldedAttention(layer.cross_attn_image, self.rotations, map_hw) for layer in self._layers()],
        )

    def __call__(self, features: Tensor, memory: MemoryTokens) -> Tensor:
        """(1, h*w, dim) conditioned on the memory of each object: (objects, h*w, dim)."""
        first, *others = layers = list(self._layers())
        folded = self.folded.get() if memory.is_empty is None else None
        cross_attentions: list[CrossAttention]
        if folded is None or not folded[0].is_faster(memory.keys.shape[1]):
            cross_attentions = [self._plain(layer.cross_attn_image) for layer in layers]
        else:
            cross_attentions = list(folded)
        # Until they read memory, all objects share the frame's features.
        shared = first.attend_to_frame(features + self.positions, self.rotations)
        conditioned = []
        for one in _each_object(memory):
            x = self._read(first, cross_attentions[0], shared, one)
            for layer, attend in zip(others, cross_attentions[1:], strict=True):
                x = self._read(layer, attend, layer.attend_to_frame(x, self.rotations), one)
            conditioned.append(x)
        return self.attention.layer_norm(torch.cat(conditioned))

    def _layers(self) -> list[MemoryAttentionLayer]:
        return cast(list[MemoryAttentionLayer], list(self.attention.layers))

    def _plain(self, attention: RotaryAttention) -> CrossAttention:
        def attend(q: Tensor, memory: MemoryTokens) -> Tensor:
            keys, values, pointers, is_empty = memory.keys, memory.values, memory.num_pointers, memory.is_empty
            return attention(q, keys, values, self.rotations, pointers, is_empty=is_empty)

        return attend

    def _read(self, layer: MemoryAttentionLayer, attend: CrossAttention, x: Tensor, memory: MemoryTokens) -> Tensor:
        x = x + attend(layer.layer_norm2(x), memory)
        return x + in_blocks(layer.mlp, x.flatten(0, 1), layer.linear1.out_features).view(x.shape)


def _each_object(memory: MemoryTokens) -> Iterator[MemoryTokens]:
    for number in range(len(memory.keys)):
        one = slice(number, number + 1)
        is_empty = None if memory.is_empty is None else memory.is_empty[one]
        yield MemoryTokens(memory.keys[one], memory.values[one], memory.num_pointers, is_empty)


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

    def __call__(self, q: Tensor, memory: MemoryTokens) -> Tensor:
        """(1, h*w, dim) attends to the memory of one object."""
        attention = self.attention
        keys = self._arrange(memory)
        rotated = rotate(attention.q_proj(q), self.rotations)[0] * q.shape[-1] ** -0.5
        width = keys.rows.shape[-1]
        # Allocated once: fresh memory costs more than the arithmetic.
        x = rotated.new_empty(BLOCK_QUERIES, width)
        at_rows = rotated.new_empty(len(keys.rows), BLOCK_QUERIES, self.rows.shape[-1])
        scores = rotated.new_empty(BLOCK_QUERIES, keys.rows.shape[1])
        read = torch.cat(
            [
                self._read_block(u, keys, x[: len(u)], at_rows[:, : len(u)], scores[: len(u)])
                for u in rotated.split(BLOCK_QUERIES)
            ]
        )
        if not read.isfinite().all():  # weights overflowed, see _read_block
            return attention(q, memory.keys, memory.values, self.rotations, memory.num_pointers)
        return attention.o_proj(attention.v_proj(read))[None]

    def _arrange(self, memory: MemoryTokens) -> Keys:
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

    def _read_block(self, u: Tensor, keys: Keys, x: Tensor, at_rows: Tensor, scores: Tensor) -> Tensor:
        """Attention of a block of rotated queries (queries, dim): (queries, memory_dim), not finite on overflow.

        Weights are relative to the highest score of the first row, not of all: a score may exceed that by 88 before its
        weight overflows.
        """
        half = self.rows.shape[1]
        x[:, :half] = u[:, :half]
        torch.matmul(u[:, half:], self.rows, out=at_rows)
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
