"""The feature pyramid that turns Hiera's maps into the image embedding."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from masklet.config import RepVitConfig, Sam2Config
from masklet.model.edgetam.repvit import RepVitTrunk
from masklet.model.hiera import Hiera


class Features(NamedTuple):
    """An encoded image, or a batch of them: the input of the mask decoder, the memory attention and memory encoder."""

    stride4: Tensor  # (batch, dim / 8, 4h, 4w), for the last upscaling of the mask decoder
    stride8: Tensor  # (batch, dim / 4, 2h, 2w), for the one before
    stride16: Tensor  # (batch, dim, h, w), the image embedding, before anything is added to it

    @property
    def map_hw(self) -> tuple[int, int]:
        """(h, w) of the image embedding."""
        return self.stride16.shape[-2], self.stride16.shape[-1]


class FpnNeck(nn.Module):
    """One 1x1 convolution a level; the stride-32 level is added to stride 16, the finer ones stay lateral.

    Source: feature pyramid networks (arXiv 1612.03144), as in SAM 2, section 4 (image encoder).
    """

    def __init__(self, dims: tuple[int, ...], hidden_size: int) -> None:
        super().__init__()
        # Stored coarsest level first.
        self.convs = nn.ModuleList(nn.Conv2d(dim, hidden_size, kernel_size=1) for dim in reversed(dims))

    def forward(self, maps_bhwc: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Four maps (batch, h, w, dim), strides 4 to 32, to three (batch, hidden_size, h, w), strides 4, 8, 16."""
        levels = zip(reversed(self.convs), maps_bhwc, strict=True)
        stride4, stride8, stride16, stride32 = (conv(x.permute(0, 3, 1, 2)) for conv, x in levels)
        return stride4, stride8, stride16 + F.interpolate(stride32, scale_factor=2.0, mode="nearest")


class ImageEncoder(nn.Module):
    """Trunk and neck (SAM 2, section 4, "image encoder")."""

    def __init__(self, config: Sam2Config) -> None:
        super().__init__()
        trunk = config.image_encoder
        self.backbone: Any = RepVitTrunk(trunk) if isinstance(trunk, RepVitConfig) else Hiera(trunk)
        self.neck = FpnNeck(config.image_encoder.embed_dim_per_stage, config.hidden_size)

    def forward(self, pixel_values: Tensor, positions: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """(batch, 3, height, width) to three maps (batch, dim, h, w), strides 4, 8, 16; see ``Hiera``."""
        maps = self.backbone(pixel_values) if positions is None else self.backbone(pixel_values, positions)
        return self.neck(maps)
