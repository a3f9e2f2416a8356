"""The feature pyramid that turns Hiera's maps into the image embedding."""

from __future__ import annotations

import torch
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

    def forward(self, maps_bhwc: list[Tensor], skips: tuple[nn.Conv2d, nn.Conv2d]) -> list[Tensor]:
        """Four maps (batch, h, w, dim), strides 4 to 32, to three (batch, channels, h, w), strides 4, 8, 16.

        Args:
            maps_bhwc: Of the trunk.
            skips: 1x1 convolutions that the two finest levels go through next. Nothing else reads these levels, and so
                they are never made as wide as the others: two such convolutions are one, whose weights are the product.
        """
        of_stride32, of_stride16, of_stride8, of_stride4 = (_matrix(conv) for conv in self.convs)
        stride4, stride8, stride16, stride32 = maps_bhwc
        coarse = _project(stride16, *of_stride16)
        coarse = coarse + F.interpolate(_project(stride32, *of_stride32), scale_factor=2.0, mode="nearest")
        return [
            _project(stride4, *_product(of_stride4, _matrix(skips[0]))),
            _project(stride8, *_product(of_stride8, _matrix(skips[1]))),
            coarse,
        ]


class ImageEncoder(nn.Module):
    """Trunk and neck (SAM 2, section 4, "image encoder")."""

    def __init__(self, config: Sam2Config) -> None:
        super().__init__()
        self.backbone = Hiera(config.image_encoder)
        self.neck = FpnNeck(config.image_encoder.embed_dim_per_stage, config.hidden_size)

    def forward(self, pixel_values: Tensor, skips: tuple[nn.Conv2d, nn.Conv2d]) -> list[Tensor]:
        """(batch, 3, height, width) to three maps (batch, channels, h, w), strides 4, 8, 16; see ``FpnNeck``."""
        return self.neck(self.backbone(pixel_values), skips)


Affine = tuple[Tensor, Tensor]
"""Weights (channels out, channels in) and bias (channels out,)."""


def _matrix(conv: nn.Module) -> Affine:
    """What a 1x1 convolution does to a cell."""
    weight, bias = conv.weight, conv.bias
    assert isinstance(weight, Tensor)
    assert isinstance(bias, Tensor)
    return weight.flatten(1), bias


def _product(first: Affine, second: Affine) -> Affine:
    """Both, one after the other; in float32 at least, or narrow weights would be rounded once more."""
    dtype = first[0].dtype
    with torch.autocast(first[0].device.type, enabled=False):
        wide = torch.promote_types(dtype, torch.float32)
        (w1, b1), (w2, b2) = ([t.to(wide) for t in pair] for pair in (first, second))
        return (w2 @ w1).to(dtype), (w2 @ b1 + b2).to(dtype)


def _project(x_bhwc: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    # A 1x1 convolution of a channels-last map is a product of matrices.
    return F.linear(x_bhwc, weight, bias).permute(0, 3, 1, 2)
