"""2-D spatial perceiver: a memory map becomes few tokens.

Source: EdgeTAM (arXiv 2501.07256), section 3.2: global latents attend to the whole map, 2-D latents each to a window.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from masklet.config import STRIDE, SizeHW, SpatialPerceiverConfig
from masklet.model.layers import LayerNorm
from masklet.model.positions import sine_positions_2d

NUM_LAYERS = 2
MLP_RATIO = 4


class LatentAttention(nn.Module):
    """Single-head attention without biases."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(dim, dim, bias=False) for _ in range(4))

    def forward(self, latents: Tensor, source: Tensor, positions: Tensor | None = None) -> Tensor:
        """(batch, latents, dim) attends to (batch, cells, dim).

        Positions, (cells, dim), are added to the keys and to the values, both after their projections.
        """
        k, v = self.k_proj(source), self.v_proj(source)
        if positions is not None:
            k, v = (k + positions).to(k.dtype), (v + positions).to(v.dtype)
        q = self.q_proj(latents)
        return self.o_proj(F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0])


class LatentMlp(nn.Module):
    """Norm and MLP without biases; the caller adds the input."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.layer_norm = LayerNorm(dim)
        self.up_proj = nn.Linear(dim, MLP_RATIO * dim, bias=False)
        self.down_proj = nn.Linear(MLP_RATIO * dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim) to the same."""
        return self.down_proj(F.gelu(self.up_proj(self.layer_norm(x))))


class PerceiverLayer(nn.Module):
    """Latents attend to the map, then to each other; an MLP follows each."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.layer_norm_latents = LayerNorm(dim)
        self.layer_norm_input = LayerNorm(dim)
        self.cross_attention = LatentAttention(dim)
        self.mlp = LatentMlp(dim)
        self.layer_norm_self = LayerNorm(dim)
        self.self_attention = LatentAttention(dim)
        self.self_mlp = LatentMlp(dim)

    def forward(self, latents: Tensor, cells: Tensor, positions: Tensor | None) -> Tensor:
        """(batch, latents, dim) and (batch, cells, dim) to (batch, latents, dim)."""
        source = self.layer_norm_input(cells)
        latents = latents + self.cross_attention(self.layer_norm_latents(latents), source, positions)
        latents = latents + self.mlp(latents)
        normed = self.layer_norm_self(latents)
        latents = latents + self.self_attention(normed, normed)
        return latents + self.self_mlp(latents)


class SpatialPerceiver(nn.Module):
    """A memory map to tokens: global latents first, then the 2-D ones, row by row."""

    def __init__(self, dim: int, config: SpatialPerceiverConfig) -> None:
        super().__init__()
        self.config = config
        self.side = config.side
        self.latents_1d = nn.Parameter(torch.randn(config.num_latents, dim))
        self.latents_2d = nn.Parameter(torch.randn(config.num_latents_2d, dim))
        self.layers = nn.ModuleList(PerceiverLayer(dim) for _ in range(NUM_LAYERS))
        self.layer_norm = LayerNorm(dim)

    def forward(self, maps: Tensor) -> Tensor:
        """(maps, dim, h, w) to (maps, tokens, dim).

        Raises:
            ConfigError: h or w is not a multiple of the side of the grid of 2-D latents.
        """
        window = self.window_of((maps.shape[2], maps.shape[3]))
        maps_bhwc = maps.permute(0, 2, 3, 1)
        return self.layer_norm(torch.cat([self._global(maps_bhwc), self._windowed(maps_bhwc, window)], dim=1))

    def positions(self, device: torch.device) -> Tensor:
        """(tokens, dim): the places of the 2-D latents on their grid; global latents have none, which is zeros."""
        dim = self.latents_1d.shape[1]
        nowhere = torch.zeros(len(self.latents_1d), dim, device=device)
        return torch.cat([nowhere, sine_positions_2d((self.side, self.side), dim, device)])

    def window_of(self, map_hw: SizeHW) -> SizeHW:
        """(height, width) of the window of cells that a 2-D latent attends to."""
        self.config.check_input((map_hw[0] * STRIDE, map_hw[1] * STRIDE))
        return map_hw[0] // self.side, map_hw[1] // self.side

    def _global(self, maps_bhwc: Tensor) -> Tensor:
        count, height, width, dim = maps_bhwc.shape
        positions = sine_positions_2d((height, width), dim, maps_bhwc.device)
        cells = maps_bhwc.flatten(1, 2)
        latents = self.latents_1d.expand(count, -1, -1)
        for layer in self.layers:
            latents = layer(latents, cells, positions)
        return latents

    def _windowed(self, maps_bhwc: Tensor, window: SizeHW) -> Tensor:
        cells = _windows(maps_bhwc, window)  # (maps * latents, cells of a window, dim)
        latents = self.latents_2d[:, None].repeat(len(maps_bhwc), 1, 1)  # (maps * latents, 1, dim)
        for layer in self.layers:
            latents = layer(latents, cells, None)
        return latents.unflatten(0, (len(maps_bhwc), -1)).flatten(1, 2)


def _windows(maps_bhwc: Tensor, window: SizeHW) -> Tensor:
    """(maps, h, w, dim) to (maps * windows, cells, dim), row by row."""
    split = maps_bhwc.unflatten(2, (-1, window[1])).unflatten(1, (-1, window[0])).transpose(2, 3)
    return split.flatten(0, 2).flatten(1, 2)
