"""The feature pyramid that turns Hiera's maps into the image embedding."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from masklet.config import Sam2Config
from masklet.model.hiera import Hiera


class FpnNeck(nn.Module):
    """One 1x1 convolution a level; the stride-32 level flows into stride 16, the finer ones stay lateral.

    Source: feature pyramid networks (arXiv 1612.03144), as in SAM 2, section 4 (image encoder).
    """

    def __init__(self, dims: tuple[int, ...], hidden_size: int) -> None:
        super().__init__()
        # Stored coarsest level first.
        self.convs = nn.ModuleList(nn.Conv2d(dim, hidden_size, kernel_size=1) for dim in reversed(dims))

    def forward(self, maps_bhwc: list[Tensor]) -> list[Tensor]:
        """Four maps (batch, h, w, dim) to three (batch, hidden_size, h, w), strides 4, 8, 16."""
        lateral = [_project(conv, x) for conv, x in zip(self.convs, reversed(maps_bhwc), strict=True)]
        stride32, stride16, stride8, stride4 = lateral
        stride16 = stride16 + F.interpolate(stride32, scale_factor=2.0, mode="nearest")
        return [stride4, stride8, stride16]


class ImageEncoder(nn.Module):
    """Trunk and neck (SAM 2, section 4, "image encoder")."""

    def __init__(self, config: Sam2Config) -> None:
        super().__init__()
        self.backbone = Hiera(config.image_encoder)
        self.neck = FpnNeck(config.image_encoder.embed_dim_per_stage, config.hidden_size)

    def forward(self, pixel_values: Tensor) -> list[Tensor]:
        """(batch, 3, height, width) to three maps (batch, hidden_size, h, w), strides 4, 8, 16."""
        return self.neck(self.backbone(pixel_values))


def _project(conv: nn.Module, x_bhwc: Tensor) -> Tensor:
    # A 1x1 convolution of a channels-last map is a product of matrices.
    weight, bias = conv.weight, conv.bias
    assert isinstance(weight, Tensor)
    assert isinstance(bias, Tensor)
    return F.linear(x_bhwc, weight.flatten(1), bias).permute(0, 3, 1, 2)
