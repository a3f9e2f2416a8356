"""A first lesson: where prompts are. Plain shapes are asked for on noise, so only the prompt says anything.

A network that starts from nothing spends its first thousands of steps finding out how coordinates of a prompt relate to
cells of the image. Without images to encode, a step of this costs a tenth.
"""

from __future__ import annotations

import torch
from torch import Tensor

from masklet.config import STRIDES, Sam2Config

NOISE = 0.3
"""Standard deviation of the image embedding that stands for an image."""


def random_shapes(batch: int, objects: int, side_px: int, generator: torch.Generator) -> Tensor:
    """Ellipses and rectangles of all sizes: (batch, objects, side, side) bool, none empty."""
    shape = (batch, objects, 1, 1)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=generator)

    centres = (torch.arange(side_px) + 0.5) / side_px
    radius_x, radius_y = uniform(0.04, 0.45), uniform(0.04, 0.45)
    x = (centres - uniform(0.1, 0.9)) / radius_x  # (batch, objects, 1, side)
    y = (centres[:, None] - uniform(0.1, 0.9)) / radius_y  # (batch, objects, side, 1)
    is_ellipse = torch.rand(shape, generator=generator) < 0.6
    return torch.where(is_ellipse, x**2 + y**2 < 1, torch.maximum(x.abs(), y.abs()) < 1)


def noise_embeddings(config: Sam2Config, batch: int, side_px: int, generator: torch.Generator) -> list[Tensor]:
    """What stands for the image encoder's maps."""
    channels = (config.hidden_size // 8, config.hidden_size // 4, config.hidden_size)
    return [
        NOISE * torch.randn(batch, width, side_px // stride, side_px // stride, generator=generator)
        for width, stride in zip(channels, STRIDES, strict=True)
    ]
