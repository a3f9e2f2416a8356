"""Memory encoder: a frame's features and the mask of an object become a spatial memory.

Source: SAM 2 (arXiv 2408.00714), section 4 and appendix C, "memory encoder".
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from masklet.model.layers import LayerNorm2d

MASK_CHANNELS = (1, 4, 16, 64, 256)
"""Channels of a mask from stride 1 to stride 16: each halving of the sides quadruples the channels."""
NUM_FUSER_LAYERS = 2
LAYER_SCALE_INIT = 1e-6


class MaskDownsamplerLayer(nn.Module):
    """Halve both sides."""

    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim_in, dim_out, kernel_size=3, stride=2, padding=1)
        self.layer_norm = LayerNorm2d(dim_out)

    def forward(self, x: Tensor) -> Tensor:
        """(masks, dim_in, height, width) to (masks, dim_out, height / 2, width / 2)."""
        return F.gelu(self.layer_norm(self.conv(x)))


class MaskDownsampler(nn.Module):
    """Downscale a mask from the size of the input to that of the image embedding."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            MaskDownsamplerLayer(*pair) for pair in zip(MASK_CHANNELS[:-1], MASK_CHANNELS[1:], strict=True)
        )
        self.final_conv = nn.Conv2d(MASK_CHANNELS[-1], dim, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        """(masks, 1, height, width) to (masks, dim, height / 16, width / 16)."""
        for layer in self.layers:
            x = layer(x)
        return self.final_conv(x)


class MemoryFuserBlock(nn.Module):
    """A ConvNeXt block (arXiv 2201.03545) with layer scale."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.depthwise_conv = nn.Conv2d(dim, dim, kernel_size=7, padding=3, groups=dim)
        self.layer_norm = LayerNorm2d(dim)
        self.pointwise_conv1 = nn.Linear(dim, 4 * dim)
        self.pointwise_conv2 = nn.Linear(4 * dim, dim)
        self.scale = nn.Parameter(torch.full((dim,), LAYER_SCALE_INIT))

    def forward(self, x: Tensor) -> Tensor:
        """(maps, dim, h, w) to the same."""
        y = self.layer_norm(self.depthwise_conv(x)).permute(0, 2, 3, 1)
        y = self.scale * self.pointwise_conv2(F.gelu(self.pointwise_conv1(y)))
        return x + y.permute(0, 3, 1, 2)


class MemoryFuser(nn.Module):
    """ConvNeXt blocks."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(MemoryFuserBlock(dim) for _ in range(NUM_FUSER_LAYERS))

    def forward(self, x: Tensor) -> Tensor:
        """(maps, dim, h, w) to the same."""
        for layer in self.layers:
            x = layer(x)
        return x


class MemoryEncoder(nn.Module):
    """An image embedding and a mask to a spatial memory."""

    def __init__(self, dim: int, memory_dim: int) -> None:
        super().__init__()
        self.mask_downsampler = MaskDownsampler(dim)
        self.feature_projection = nn.Conv2d(dim, dim, kernel_size=1)
        self.memory_fuser = MemoryFuser(dim)
        self.projection = nn.Conv2d(dim, memory_dim, kernel_size=1)

    def forward(self, features: Tensor, masks: Tensor) -> Tensor:
        """Encode masks of one frame.

        Args:
            features: (masks or 1, dim, h, w), the image embedding of the frame.
            masks: (masks, 1, 16h, 16w), scaled to the range -10 to 10.

        Returns:
            (masks, memory_dim, h, w).
        """
        fused = self.feature_projection(features) + self.mask_downsampler(masks)
        return self.projection(self.memory_fuser(fused))
