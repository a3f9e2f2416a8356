"""Memory attention: a frame's features read what is remembered of an object.

Source: SAM 2 (arXiv 2408.00714), section 4 and appendix C, "memory attention".
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from masklet.model.positions import axial_rotations, rotate

Rotations = tuple[Tensor, Tensor]
POSITION_WEIGHT = 0.1
"""Share of the sine positions that is added to the features before the first layer."""


class RotaryAttention(nn.Module):
    """One-head attention whose queries and keys are turned by their place in the picture."""

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
            k: Keys: whole maps of h*w cells one after another, then ``num_pointers`` tokens that have no place.
            v: Values of the same tokens.
            rotations: Cosines and sines for the cells of one map.
            num_pointers: Keys at the end that are not turned.
            is_empty: (objects, keys) bool: keys that nobody attends to.
        """
        q, k, v = self.q_proj(q), self.k_proj(k), self.v_proj(v)
        cells = q.shape[1]
        maps, pointers = k.split([k.shape[1] - num_pointers, num_pointers], dim=1)
        turned = rotate(maps.unflatten(1, (-1, cells)), rotations).flatten(1, 2)
        k = torch.cat([turned, pointers], dim=1)
        q = rotate(q, rotations).expand(len(k), -1, -1)
        mask = None if is_empty is None else ~is_empty[:, None, None]
        attended = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None], attn_mask=mask)
        return self.o_proj(attended[:, 0])


class MemoryAttentionLayer(nn.Module):
    """Self-attention, cross-attention to memory and an MLP, each behind its norm."""

    def __init__(self, dim: int, memory_dim: int, mlp_dim: int) -> None:
        super().__init__()
        self.self_attn = RotaryAttention(dim, dim)
        self.cross_attn_image = RotaryAttention(dim, memory_dim)
        self.linear1 = nn.Linear(dim, mlp_dim)
        self.linear2 = nn.Linear(mlp_dim, dim)
        self.layer_norm1 = nn.LayerNorm(dim)
        self.layer_norm2 = nn.LayerNorm(dim)
        self.layer_norm3 = nn.LayerNorm(dim)

    def forward(
        self,
        x: Tensor,
        keys: Tensor,
        values: Tensor,
        rotations: Rotations,
        num_pointers: int,
        is_empty: Tensor | None,
    ) -> Tensor:
        """(objects or 1, h*w, dim) reads keys and values (objects, tokens, memory_dim): (objects, h*w, dim)."""
        y = self.layer_norm1(x)
        x = x + self.self_attn(y, y, y, rotations)
        x = x + self.cross_attn_image(self.layer_norm2(x), keys, values, rotations, num_pointers, is_empty)
        return x + self.linear2(F.relu(self.linear1(self.layer_norm3(x))))


class MemoryAttention(nn.Module):
    """Layers, and a last norm."""

    def __init__(self, dim: int, memory_dim: int, mlp_dim: int, num_layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(MemoryAttentionLayer(dim, memory_dim, mlp_dim) for _ in range(num_layers))
        self.layer_norm = nn.LayerNorm(dim)

    def forward(
        self,
        features: Tensor,
        positions: Tensor,
        memory: Tensor,
        memory_positions: Tensor,
        *,
        map_hw: tuple[int, int],
        num_pointers: int = 0,
        is_empty: Tensor | None = None,
    ) -> Tensor:
        """Condition a frame on memory.

        Args:
            features: (objects or 1, h*w, dim), the frame's coarsest map as it left the image encoder. What objects
                have in common, up to the first look at their memory, is computed once.
            positions: (h*w, dim), the sine positions of its cells.
            memory: (objects, tokens, memory_dim): maps of h*w tokens one after another, then pointer tokens.
            memory_positions: (objects or 1, tokens, memory_dim): sine positions and age.
            map_hw: (h, w).
            num_pointers: Tokens at the end that are pointers.
            is_empty: (objects, tokens) bool: slots that hold nothing.

        Returns:
            (objects, h*w, dim).
        """
        rotations = axial_rotations(map_hw, features.shape[-1], features.device)
        x = features + POSITION_WEIGHT * positions
        # Keys know where and when, values only what.
        keys = memory + memory_positions
        for layer in self.layers:
            x = layer(x, keys, memory, rotations, num_pointers, is_empty)
        return self.layer_norm(x)
