"""Memory attention: a frame's features are conditioned on the memory of an object.

Source: SAM 2 (arXiv 2408.00714), section 4 and appendix C, "memory attention".
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from masklet.config import SizeHW
from masklet.model.layers import LayerNorm
from masklet.model.positions import Rotations, axial_rotations, rotate

POSITION_WEIGHT = 0.1
"""Factor of the sine positions that are added to the features before the first layer."""


@dataclass(frozen=True)
class Memory:
    """The part of each object's memory bank that a frame reads."""

    maps: Tensor  # (objects, maps, tokens, memory_dim): spatial memories, see ``Sam2Model.write_memory``
    map_slots: Tensor  # (objects, maps) int64: temporal slot, the last is that of prompted frames
    pointers: Tensor  # (objects, pointers, dim): object pointers
    pointer_distances: Tensor  # (objects, pointers) float32: frames since the pointer, as a share of the longest
    is_empty: Tensor | None = None  # (objects, maps + pointers) bool: slots that hold nothing; None if all are filled
    map_weights: Tensor | None = None  # (objects, maps) float32: what the keys of a map are multiplied by; None for 1


@dataclass(frozen=True)
class MemoryTokens:
    """Memory as attention reads it: all maps cell by cell, then the pointers, cut into tokens of a memory's width."""

    keys: Tensor  # (objects, tokens, memory_dim): content and position
    values: Tensor  # (objects, tokens, memory_dim): content alone
    num_pointers: int  # how many of the tokens, at the end, are of pointers
    is_empty: Tensor | None  # (objects, tokens) bool: tokens that nothing attends to


class RotaryAttention(nn.Module):
    """Single-head attention whose queries and keys are rotated by their position in the image."""

    def __init__(self, dim: int, memory_dim: int) -> None:
        super().__init__()
        self.q_proj = nn.Linear(dim, dim)
        self.k_proj = nn.Linear(memory_dim, dim)
        self.v_proj = nn.Linear(memory_dim, dim)
        self.o_proj = nn.Linear(dim, dim)

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        rotations: Rotations,
        num_pointers: int = 0,
        is_empty: Tensor | None = None,
    ) -> Tensor:
        """(objects or 1, h*w, dim) attends to (objects, keys, memory_dim).

        Args:
            q: Queries, one for each cell.
            k: Keys: whole maps of h*w cells one after another, then ``num_pointers`` tokens without a position.
            v: Values of the same tokens.
            rotations: Rotations for the cells of one map.
            num_pointers: Keys at the end that are not rotated.
            is_empty: (objects, keys) bool: keys that nothing attends to.
        """
        q, k, v = self.q_proj(q), self.k_proj(k), self.v_proj(v)
        maps, pointers = k.split([k.shape[1] - num_pointers, num_pointers], dim=1)
        k = torch.cat([self.rotate_keys(maps, rotations), pointers], dim=1)
        q = rotate(q, rotations).expand(len(k), -1, -1)
        mask = None if is_empty is None else ~is_empty[:, None, None]
        attended = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None], attn_mask=mask)
        return self.o_proj(attended[:, 0])

    def rotate_keys(self, maps: Tensor, rotations: Rotations) -> Tensor:
        """(objects, maps * h*w, dim) to the same, given the rotations for the cells of one map."""
        return rotate(maps.unflatten(1, (-1, len(rotations[0]))), rotations).flatten(1, 2)


class MemoryAttentionLayer(nn.Module):
    """Self-attention, cross-attention to memory and an MLP, each after its norm."""

    def __init__(self, dim: int, memory_dim: int, mlp_dim: int) -> None:
        super().__init__()
        self.self_attn = RotaryAttention(dim, dim)
        self.cross_attn_image = RotaryAttention(dim, memory_dim)
        self.linear1 = nn.Linear(dim, mlp_dim)
        self.linear2 = nn.Linear(mlp_dim, dim)
        self.layer_norm1 = LayerNorm(dim)
        self.layer_norm2 = LayerNorm(dim)
        self.layer_norm3 = LayerNorm(dim)

    def forward(self, x: Tensor, memory: MemoryTokens, rotations: Rotations) -> Tensor:
        """(objects or 1, h*w, dim) to (objects, h*w, dim)."""
        x = self.attend_to_frame(x, rotations)
        q = self.layer_norm2(x)
        x = x + self.cross_attn_image(
            q, memory.keys, memory.values, rotations, memory.num_pointers, is_empty=memory.is_empty
        )
        return x + self.mlp(x)

    def attend_to_frame(self, x: Tensor, rotations: Rotations) -> Tensor:
        """Self-attention of (objects or 1, h*w, dim)."""
        y = self.layer_norm1(x)
        return x + self.self_attn(y, y, y, rotations)

    def mlp(self, x: Tensor) -> Tensor:
        """(..., dim) to the same shape, without the residual."""
        return self.linear2(F.relu(self.linear1(self.layer_norm3(x))))


class MemoryAttention(nn.Module):
    """Layers, and a final norm."""

    def __init__(self, dim: int, memory_dim: int, mlp_dim: int, num_layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(MemoryAttentionLayer(dim, memory_dim, mlp_dim) for _ in range(num_layers))
        self.layer_norm = LayerNorm(dim)

    def forward(self, features: Tensor, positions: Tensor, memory: MemoryTokens, *, map_hw: SizeHW) -> Tensor:
        """Condition a frame on memory.

        Args:
            features: (1, h*w, dim), the frame's image embedding.
            positions: (h*w, dim), the sine positions of its cells.
            memory: Memory of every object.
            map_hw: (h, w).

        Returns:
            (objects, h*w, dim).
        """
        rotations = axial_rotations(map_hw, features.shape[-1], features.device)
        x = (features + POSITION_WEIGHT * positions).to(features.dtype)
        for layer in self.layers:
            x = layer(x, memory, rotations)
        return self.layer_norm(x)
