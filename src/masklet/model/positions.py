"""Encodings of position: random Fourier features, sines, and rotations. All are computed in float32.

Only the matrix of the Fourier features is stored in a checkpoint. Half precision would blur coordinates by pixels.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from masklet.model.layers import KeepsFloat32

TEMPERATURE = 10000.0
"""Ratio of the longest to the shortest wavelength of sines and rotations."""

Rotations = tuple[Tensor, Tensor]
"""Cosines and sines, each (tokens, dim / 2)."""


class FourierPositions(KeepsFloat32):
    """Random Fourier features of a point; the matrix is fixed, and part of a checkpoint.

    Source: Tancik et al. 2020, as used in SAM, section 3 (prompt encoder).
    """

    positional_embedding: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("positional_embedding", torch.randn(2, dim // 2))

    def forward(self, points_norm: Tensor) -> Tensor:
        """(..., 2), x then y, each 0 to 1 over the image, to (..., dim)."""
        matrix = self.positional_embedding
        angles = 2 * math.pi * ((2 * points_norm.to(matrix.dtype) - 1) @ matrix)
        return torch.cat([angles.sin(), angles.cos()], dim=-1)

    def grid(self, size_hw: tuple[int, int]) -> Tensor:
        """(height * width, dim): the centre of every cell of a map, row by row."""
        height, width = size_hw
        device = self.positional_embedding.device
        y = (torch.arange(height, device=device, dtype=torch.float32) + 0.5) / height
        x = (torch.arange(width, device=device, dtype=torch.float32) + 0.5) / width
        return self(torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)).flatten(0, 1)


def _wavelengths(count: int, device: torch.device) -> Tensor:
    return TEMPERATURE ** (torch.arange(count, device=device, dtype=torch.float32) / count)


def sine_positions_2d(size_hw: tuple[int, int], dim: int, device: torch.device) -> Tensor:
    """(height * width, dim): sines of y in the first half and of x in the second, sin and cos interleaved.

    Source: DETR (arXiv 2005.12872), appendix A.4, normalised to one period over the map.
    """
    height, width = size_hw
    wavelengths = _wavelengths(dim // 4, device)

    def axis(cells: int) -> Tensor:
        periods = (torch.arange(cells, device=device, dtype=torch.float32) + 1) / (cells + 1e-6) * 2 * math.pi
        angles = periods[:, None] / wavelengths  # (cells, dim / 4)
        return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)  # (cells, dim / 2)

    y = axis(height)[:, None].expand(-1, width, -1)
    x = axis(width)[None].expand(height, -1, -1)
    return torch.cat([y, x], dim=-1).flatten(0, 1)


def sine_positions_1d(position: Tensor, dim: int) -> Tensor:
    """(...) to (..., dim): sines of a number in the first half, cosines in the second, each wavelength twice in a row.

    Source: Attention is all you need (arXiv 1706.03762), section 3.5; the repetition is what SAM 2's weights expect.
    """
    angles = position[..., None] / _wavelengths(dim // 4, position.device).repeat_interleave(2)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def axial_rotations(size_hw: tuple[int, int], dim: int, device: torch.device) -> Rotations:
    """Rotations for the pairs of a ``dim``-vector at every cell: cosines and sines, each (height * width, dim / 2).

    The first half of the pairs rotates with x, the second with y.

    Source: Heo et al., rotary position embedding for vision transformers (arXiv 2403.13298), "axial"; SAM 2, section 4.
    """
    height, width = size_hw
    speeds = 1.0 / _wavelengths(dim // 4, device)
    x = torch.arange(width, device=device)[None, :, None].expand(height, -1, -1) * speeds
    y = torch.arange(height, device=device)[:, None, None].expand(-1, width, -1) * speeds
    angles = torch.cat([x, y], dim=-1).flatten(0, 1)  # (height * width, dim / 2)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, rotations: Rotations) -> Tensor:
    """Rotate neighbouring pairs of the last axis of (..., tokens, dim).

    In real arithmetic, so that it can be exported. The result has the type of ``x``.
    """
    cos, sin = rotations
    first, second = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([first * cos - second * sin, first * sin + second * cos], dim=-1).flatten(-2).to(x.dtype)
