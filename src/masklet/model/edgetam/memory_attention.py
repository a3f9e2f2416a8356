"""Memory attention to the tokens of the spatial perceiver.

Source: EdgeTAM (arXiv 2501.07256), section 3: two layers, and rotations for the 2-D latents, on their own grid.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from masklet.config import SpatialPerceiverConfig
from masklet.model.layers import LayerNorm
from masklet.model.memory_attention import MemoryAttention, MemoryTokens, RotaryAttention
from masklet.model.positions import Rotations, axial_rotations, rotate


class LatentCrossAttention(RotaryAttention):
    """Attends to maps of latents. The 2-D latents, the last of each map, are rotated by their place on their grid."""

    def __init__(self, dim: int, memory_dim: int, perceiver: SpatialPerceiverConfig) -> None:
        super().__init__(dim, memory_dim)
        self.num_latents = (perceiver.num_latents, perceiver.num_latents_2d)
        self.grid = (perceiver.side, perceiver.side)

    def rotate_keys(self, maps: Tensor, rotations: Rotations) -> Tensor:
        """(objects, maps * latents, dim) to the same. The rotations of the frame's own cells are not used."""
        by_map = maps.unflatten(1, (-1, sum(self.num_latents)))
        return rotate(by_map, self.key_rotations(maps.shape[-1], maps.device)).flatten(1, 2)

    def key_rotations(self, dim: int, device: torch.device) -> Rotations:
        """Cosines and sines for the latents of one map, each (latents, dim / 2). Global latents are not rotated."""
        everywhere, _ = self.num_latents
        cos, sin = axial_rotations(self.grid, dim, device)
        return F.pad(cos, (0, 0, everywhere, 0), value=1.0), F.pad(sin, (0, 0, everywhere, 0))


class AttentionMlp(nn.Module):
    """The MLP of a layer."""

    def __init__(self, dim: int, mlp_dim: int) -> None:
        super().__init__()
        self.up_proj = nn.Linear(dim, mlp_dim)
        self.down_proj = nn.Linear(mlp_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim) to the same."""
        return self.down_proj(F.relu(self.up_proj(x)))


class LatentMemoryAttentionLayer(nn.Module):
    """Self-attention, cross-attention to memory and an MLP, each after its norm."""

    def __init__(self, dim: int, memory_dim: int, mlp_dim: int, perceiver: SpatialPerceiverConfig) -> None:
        super().__init__()
        self.self_attn = RotaryAttention(dim, dim)
        self.cross_attn_image = LatentCrossAttention(dim, memory_dim, perceiver)
        self.mlp = AttentionMlp(dim, mlp_dim)
        self.layer_norm1 = LayerNorm(dim)
        self.layer_norm2 = LayerNorm(dim)
        self.layer_norm3 = LayerNorm(dim)

    def forward(self, x: Tensor, memory: MemoryTokens, rotations: Rotations) -> Tensor:
        """(objects or 1, h*w, dim) to (objects, h*w, dim)."""
        x = self.attend_to_frame(x, rotations)
        x = x + self.cross_attn_image(
            self.layer_norm2(x), memory.keys, memory.values, rotations, memory.num_pointers, is_empty=memory.is_empty
        )
        return x + self.mlp(self.layer_norm3(x))

    def attend_to_frame(self, x: Tensor, rotations: Rotations) -> Tensor:
        """Self-attention of (objects or 1, h*w, dim)."""
        y = self.layer_norm1(x)
        return x + self.self_attn(y, y, y, rotations)


class LatentMemoryAttention(MemoryAttention):
    """Layers, and a final norm."""

    def __init__(
        self, dim: int, memory_dim: int, mlp_dim: int, num_layers: int, perceiver: SpatialPerceiverConfig
    ) -> None:
        super().__init__(dim, memory_dim, mlp_dim, num_layers=0)
        self.layers.extend(LatentMemoryAttentionLayer(dim, memory_dim, mlp_dim, perceiver) for _ in range(num_layers))
