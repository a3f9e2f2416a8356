"""Memory attention, object by object, in blocks of queries, one a thread."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from masklet.config import SizeHW
from masklet.engine.cpu.blocks import row_blocks
from masklet.engine.cpu.folded_attention import FoldedAttention
from masklet.engine.cpu.products import Linear, attention, layer_norm
from masklet.engine.cpu.threads import for_each
from masklet.model.edgetam.memory_attention import LatentCrossAttention, LatentMemoryAttentionLayer
from masklet.model.memory_attention import (
    POSITION_WEIGHT,
    MemoryAttention,
    MemoryAttentionLayer,
    MemoryTokens,
    RotaryAttention,
)
from masklet.model.positions import Rotations, axial_rotations, sine_positions_2d

QUERIES = 512
"""Queries that one thread takes at a time."""

Layer: TypeAlias = MemoryAttentionLayer | LatentMemoryAttentionLayer
Attend = Callable[[Tensor, slice], Tensor]
"""Normed rows (rows, dim), and which of all rows they are, to what they read of memory: (rows, dim)."""


class PackedRotary:
    """See ``RotaryAttention``. Channels are reordered, the first of all pairs before the second, so that rotating
    neighbouring pairs is arithmetic on halves: products of queries and keys do not depend on the order.
    """

    def __init__(self, rotary: RotaryAttention, dtype: torch.dtype) -> None:
        by_half = torch.arange(rotary.q_proj.out_features, device=rotary.q_proj.weight.device).view(-1, 2).T.flatten()
        self.q, self.k = (
            Linear(layer.weight.detach()[by_half].to(dtype), layer.bias.detach()[by_half].to(dtype))
            for layer in (rotary.q_proj, rotary.k_proj)
        )
        # Sums are narrower before the values are projected, and weights sum to one. Torch's fused attention, which is
        # used in float32, needs values as wide as keys.
        is_folded = dtype != torch.float32 and rotary.v_proj.in_features < rotary.v_proj.out_features
        self.v = None if is_folded else Linear.pack(rotary.v_proj, dtype)
        self.out = (
            Linear.product(rotary.v_proj, rotary.o_proj, dtype) if is_folded else Linear.pack(rotary.o_proj, dtype)
        )

    def queries(self, x: Tensor, rotations: Rotations) -> Tensor:
        """(rows, dim) to rotated queries of the same shape."""
        return _rotate(self.q(x), rotations)

    def keys(self, x: Tensor, rotations: Rotations) -> Tensor:
        """(rows, memory_dim) to rotated keys (rows, dim)."""
        return _rotate(self.k(x), rotations)

    def values(self, x: Tensor) -> Tensor:
        """(tokens, memory_dim) to what is summed: (tokens, dim), or (tokens, memory_dim) where sums are projected."""
        return x.to(self.q.weight.dtype) if self.v is None else self.v(x)

    def read(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Rotated queries and keys, and values, to (rows, dim)."""
        return self.out(attention(q[None, None], k[None, None], v[None, None])[0, 0])


def _rotate(x: Tensor, rotations: Rotations) -> Tensor:
    cos, sin = rotations
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1).to(x.dtype)


@dataclass(frozen=True)
class PackedLayer:
    """See ``MemoryAttentionLayer``. Products are in the engine's precision, norms and residuals in float32."""

    norm1: nn.LayerNorm
    self_attention: PackedRotary
    norm2: nn.LayerNorm
    cross_attention: PackedRotary
    norm3: nn.LayerNorm
    mlp_in: Linear
    mlp_out: Linear

    @classmethod
    def pack(cls, layer: Layer, dtype: torch.dtype) -> PackedLayer:
        """Pack a layer of plain layers."""
        own, cross = (PackedRotary(rotary, dtype) for rotary in (layer.self_attn, layer.cross_attn_image))
        if isinstance(layer, LatentMemoryAttentionLayer):
            linears = (layer.mlp.up_proj, layer.mlp.down_proj)
        else:
            linears = (layer.linear1, layer.linear2)
        mlp = (Linear.pack(linear, dtype) for linear in linears)
        return cls(layer.layer_norm1, own, layer.layer_norm2, cross, layer.layer_norm3, *mlp)

    def mlp(self, x: Tensor) -> Tensor:
        """(rows, dim) to the same, without the residual."""
        return self.mlp_out(F.relu(self.mlp_in(layer_norm(self.norm3, x))))


@dataclass(frozen=True)
class _Constants:
    """What depends on the size of the map alone."""

    map_hw: SizeHW
    rotations: Rotations
    positions: Tensor  # (h*w, dim), weighted
    key_rotations: Rotations  # of the tokens of one memory map
    folded: list[FoldedAttention]  # of each layer; none in bfloat16, or if maps are latents

    def rows(self, rows: slice) -> Rotations:
        """The rotations of some cells."""
        cos, sin = self.rotations
        return cos[rows], sin[rows]


class CpuMemoryAttention:
    """The packed weights of a ``MemoryAttention`` of plain layers.

    Objects run one after another: together they would not fit in the caches, and alone, the result for one does not
    depend on the others, to the bit.
    """

    def __init__(self, model: MemoryAttention, dtype: torch.dtype) -> None:
        self.model = model
        self.dtype = dtype
        self.layers = [PackedLayer.pack(layer, dtype) for layer in self._plain_layers()]
        self._constants: _Constants | None = None

    def __call__(self, features: Tensor, memory: MemoryTokens, map_hw: SizeHW) -> Tensor:
        """(1, h*w, dim) conditioned on the memory of each object, none of it empty: (objects, h*w, dim)."""
        constants = self._constants_for(map_hw)
        first, *others = self.layers
        # Until they read memory, all objects share the frame's features.
        shared = self._attend_to_frame(first, features[0] + constants.positions, constants)
        conditioned = features.new_empty(len(memory.keys), *shared.shape)
        for number, out in enumerate(conditioned):
            one = slice(number, number + 1)
            own = MemoryTokens(memory.keys[one], memory.values[one], memory.num_pointers, None)
            x = self._attend_to_memory(0, shared, own, constants)
            for index, layer in enumerate(others, 1):
                x = self._attend_to_memory(index, self._attend_to_frame(layer, x, constants), own, constants)
            out.copy_(layer_norm(self.model.layer_norm, x))
        return conditioned

    def _attend_to_frame(self, layer: PackedLayer, x: Tensor, constants: _Constants) -> Tensor:
        """Self-attention of (h*w, dim)."""
        rotary, dim = layer.self_attention, x.shape[1]
        q, k, v = x.new_empty(3, len(x), dim, dtype=self.dtype)
        out = torch.empty_like(x)

        def project(rows: slice) -> None:
            normed, rotations = layer_norm(layer.norm1, x[rows]).to(self.dtype), constants.rows(rows)
            q[rows], k[rows] = rotary.queries(normed, rotations), rotary.keys(normed, rotations)
            v[rows] = rotary.values(normed)

        def attend(rows: slice) -> None:
            torch.add(x[rows], rotary.read(q[rows], k, v), out=out[rows])

        blocks = row_blocks(len(x), QUERIES)
        for_each(project, blocks)
        for_each(attend, blocks)
        return out

    def _attend_to_memory(self, index: int, x: Tensor, memory: MemoryTokens, constants: _Constants) -> Tensor:
        """Cross-attention of (h*w, dim) to one object's memory, and the MLP."""
        layer, out = self.layers[index], torch.empty_like(x)
        attend = self._cross_attention(index, memory, constants)

        def read(rows: slice) -> None:
            y = x[rows] + attend(layer_norm(layer.norm2, x[rows]), rows)
            torch.add(y, layer.mlp(y), out=out[rows])

        for_each(read, row_blocks(len(x), QUERIES))
        return out

    def _cross_attention(self, index: int, memory: MemoryTokens, constants: _Constants) -> Attend:
        if constants.folded and constants.folded[index].is_faster(memory.keys.shape[1]):
            folded = constants.folded[index]
            return partial(folded, keys=folded.arrange(memory), memory=memory)
        rotary = self.layers[index].cross_attention
        keys, tokens = memory.keys[0], len(constants.key_rotations[0])
        maps = memory.keys.shape[1] - memory.num_pointers
        k = keys.new_empty(len(keys), rotary.k.width, dtype=self.dtype)

        def rotate_map(start: int) -> None:
            k[start : start + tokens] = rotary.keys(keys[start : start + tokens], constants.key_rotations)

        for_each(rotate_map, range(0, maps, tokens))
        k[maps:] = rotary.k(keys[maps:])  # pointers have no place in the image
        v = rotary.values(memory.values[0])
        return lambda x, rows: rotary.read(rotary.queries(x, constants.rows(rows)), k, v)

    def _constants_for(self, map_hw: SizeHW) -> _Constants:
        """Constants of a size, kept for the last one."""
        kept = self._constants
        if kept is None or kept.map_hw != map_hw:
            weight = self.model.layer_norm.weight
            rotations = axial_rotations(map_hw, len(weight), weight.device)
            positions = POSITION_WEIGHT * sine_positions_2d(map_hw, len(weight), weight.device)
            attentions = [layer.cross_attn_image for layer in self._plain_layers()]
            if isinstance(attentions[0], LatentCrossAttention):
                key_rotations, folds = attentions[0].key_rotations(len(weight), weight.device), []
            else:
                key_rotations, folds = rotations, attentions if self.dtype == torch.float32 else []
            folded = [FoldedAttention(attention, rotations, map_hw) for attention in folds]
            kept = self._constants = _Constants(map_hw, rotations, positions, key_rotations, folded)
        return kept

    def _plain_layers(self) -> list[Layer]:
        return cast(list[Layer], list(self.model.layers))
