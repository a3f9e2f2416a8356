"""Hiera, the trunk of the image encoder.

Source: Hiera (arXiv 2306.00989), with the absolute window positions of "Window attention is bugged" (2311.05613).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from masklet.config import Sam2ImageEncoderConfig, SizeHW
from masklet.model.layers import ACTIVATIONS, KeepsFloat32, LayerNorm

MLP_RATIO = 4
POOL = 2
"""Queries are pooled by this at every change of stage."""


class PatchEmbed(nn.Module):
    """Overlapping 7x7 patches, one every 4 pixels."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.projection = nn.Conv2d(3, dim, kernel_size=7, stride=4, padding=3)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """(batch, 3, height, width) to (batch, height / 4, width / 4, dim)."""
        return self.projection(pixel_values).permute(0, 2, 3, 1)


class MultiScaleAttention(nn.Module):
    """Self-attention whose queries may be pooled, so that the map shrinks."""

    def __init__(self, dim_in: int, dim: int, heads: int, pools: bool) -> None:
        super().__init__()
        self.heads = heads
        self.pools = pools
        self.qkv = nn.Linear(dim_in, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(windows, height, width, dim_in) to (windows, height', width', dim), halved where it pools."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(-3)  # each (windows, h, w, heads, head_dim)
        if self.pools:
            q = _max_pool(q.flatten(3)).unflatten(-1, (self.heads, -1))
        size_hw = q.shape[1:3]
        q, k, v = (t.flatten(1, 2).transpose(1, 2) for t in (q, k, v))  # (windows, heads, h * w, head_dim)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        return self.proj(attended.flatten(2)).unflatten(1, size_hw)


class Mlp(nn.Module):
    """The block's MLP."""

    def __init__(self, dim: int, activation: str) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.proj_in = nn.Linear(dim, MLP_RATIO * dim)
        self.proj_out = nn.Linear(MLP_RATIO * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim) to (..., dim)."""
        return self.proj_out(self.activation(self.proj_in(x)))


class HieraBlock(nn.Module):
    """Pre-norm attention and MLP. The first block of a later stage widens the channels and halves the map."""

    def __init__(self, dim_in: int, dim: int, heads: int, window: int, pools: bool, activation: str) -> None:
        super().__init__()
        self.window = window  # 0: attends to the whole map
        self.pools = pools
        self.layer_norm1 = LayerNorm(dim_in, eps=1e-6)
        self.attn = MultiScaleAttention(dim_in, dim, heads, pools)
        self.layer_norm2 = LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, activation)
        if dim != dim_in:
            self.proj = nn.Linear(dim_in, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, height, width, dim_in) to (batch, height', width', dim)."""
        normed = self.layer_norm1(x)
        shortcut = self.shortcut(x, normed)
        x = shortcut + self._attend(normed, size_hw=(shortcut.shape[1], shortcut.shape[2]))
        return x + self.mlp(self.layer_norm2(x))

    def shortcut(self, x: Tensor, normed: Tensor) -> Tensor:
        """The residual of the attention. At a change of stage it starts from the normed input, as trained."""
        return _max_pool(self.proj(normed)) if self.pools else x

    def _attend(self, x: Tensor, size_hw: SizeHW) -> Tensor:
        if self.window == 0:
            return self.attn(x)
        windows, grid = split_windows(x, self.window)
        return join_windows(self.attn(windows), grid, size_hw)


class Hiera(KeepsFloat32):
    """Four stages of blocks at strides 4, 8, 16 and 32."""

    def __init__(self, config: Sam2ImageEncoderConfig) -> None:
        super().__init__()
        dims, heads, windows = (
            config.embed_dim_per_stage,
            config.num_attention_heads_per_stage,
            config.window_size_per_stage,
        )
        grid = config.window_positional_embedding_background_size
        self.patch_embed = PatchEmbed(dims[0])
        self.pos_embed = nn.Parameter(torch.zeros(1, dims[0], *grid))
        self.pos_embed_window = nn.Parameter(torch.zeros(1, dims[0], windows[0], windows[0]))
        self.blocks = nn.ModuleList()
        self.stage_ends: list[int] = []
        for stage, count in enumerate(config.blocks_per_stage):
            for index in range(count):
                enters_stage = index == 0 and stage > 0
                # A stage's first block still cuts the map it receives into the windows of the stage before.
                before = stage - 1 if enters_stage else stage
                is_global = len(self.blocks) in config.global_attention_blocks
                window = 0 if is_global else windows[before]
                self.blocks.append(
                    HieraBlock(dims[before], dims[stage], heads[stage], window, enters_stage, config.hidden_act)
                )
            self.stage_ends.append(len(self.blocks) - 1)
        self.apply(_init_weights)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        nn.init.trunc_normal_(self.pos_embed_window, std=0.02)

    def forward(self, pixel_values: Tensor, positions: Tensor | None = None) -> list[Tensor]:
        """Encode images.

        Args:
            pixel_values: (batch, 3, height, width).
            positions: The result of ``window_positions`` for the map, if already computed; computed here if None.

        Returns:
            The map after each stage, (batch, h, w, dim), finest first.
        """
        x = self.patch_embed(pixel_values)
        if positions is None:
            positions = window_positions(self.pos_embed, self.pos_embed_window, (x.shape[1], x.shape[2]))
        x = x + positions.to(x.dtype)
        maps = []
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in self.stage_ends:
                maps.append(x)
        return maps


def window_positions(grid: Tensor, window: Tensor, size_hw: SizeHW) -> Tensor:
    """Positions of a map: a learned grid resized to it, plus a learned window repeated over it.

    Args:
        grid: (1, dim, rows, columns).
        window: (1, dim, side, side).
        size_hw: (height, width) of the map.

    Returns:
        (1, height, width, dim).
    """
    resized = F.interpolate(grid, size=size_hw, mode="bicubic", align_corners=False)
    side = window.shape[-1]
    repeats = (1, 1, -(-size_hw[0] // side), -(-size_hw[1] // side))
    return (resized + window.tile(repeats)[..., : size_hw[0], : size_hw[1]]).permute(0, 2, 3, 1)


def split_windows(x: Tensor, window: int) -> tuple[Tensor, SizeHW]:
    """Cut a map into square windows, padding it with zeros below and on the right.

    Args:
        x: (batch, height, width, dim).
        window: Side of a window, in cells.

    Returns:
        (batch * down * across, window, window, dim), row by row, and the grid of windows (down, across).
    """
    height, width = x.shape[1:3]
    down, across = -(-height // window), -(-width // window)
    padding = (0, 0, 0, across * window - width, 0, down * window - height)
    if any(padding):  # F.pad copies even where there is nothing to add
        # Zeros are added after the norm, and attended to: the checkpoints were trained so.
        x = F.pad(x, padding)
    windows = x.unflatten(2, (across, window)).unflatten(1, (down, window)).transpose(2, 3)
    return windows.flatten(0, 2), (down, across)


def join_windows(windows: Tensor, grid: SizeHW, size_hw: SizeHW) -> Tensor:
    """The inverse of ``split_windows``: windows of a grid to (batch, height, width, dim), without the padding."""
    x = windows.unflatten(0, (-1, *grid)).transpose(2, 3).flatten(3, 4).flatten(1, 2)
    return x[:, : size_hw[0], : size_hw[1]]


def _max_pool(x_bhwc: Tensor) -> Tensor:
    return F.max_pool2d(x_bhwc.permute(0, 3, 1, 2), POOL).permute(0, 2, 3, 1)


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
