"""A second lesson beside the prompts: which cells of an image belong together.

A prompt tells the encoder about one object; here every pair of cells does, so that features that tell objects apart are
learned in a fraction of the steps. The head is part of the training alone.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CELLS = 768
"""Cells drawn from an image."""
WIDTH = 32


class AffinityHead(nn.Module):
    """Pixel embeddings whose dot product says whether two cells show the same object."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj = nn.Linear(dim + dim // 4 + dim // 8, WIDTH)
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, embeddings: list[Tensor], targets: Tensor, generator: torch.Generator) -> Tensor:
        """How wrong the affinities are: a scalar.

        Args:
            embeddings: Of ``Sam2Model.get_image_embeddings``.
            targets: (batch, objects, h, w) bool, at the finest map's stride.
            generator: Draws the cells.
        """
        finest = embeddings[0]
        size_hw = (finest.shape[-2], finest.shape[-1])
        maps = [F.interpolate(m, size=size_hw, mode="nearest").flatten(2) for m in embeddings]
        cells = torch.randperm(size_hw[0] * size_hw[1], generator=generator)[:CELLS]
        features = torch.cat([m[:, :, cells] for m in maps], 1).transpose(1, 2)  # (batch, cells, channels)
        pixel = self.proj(features)
        logits = (pixel @ pixel.transpose(1, 2)).float() * WIDTH**-0.5 + self.bias
        inside = targets.flatten(2)[:, :, cells]  # (batch, objects, cells)
        labels = torch.where(inside.any(1), 1 + inside.float().argmax(1), 0)  # 0: background
        same = labels[:, :, None] == labels[:, None]
        counts = (labels[:, :, None] > 0) | (labels[:, None] > 0)  # background is no object: its pairs say nothing
        entropy = F.binary_cross_entropy_with_logits(logits, same.float(), reduction="none")
        # Few pairs are of one object, so both kinds weigh the same.
        halves = [(entropy * pairs).sum() / pairs.sum().clamp(min=1) for pairs in (same & counts, ~same & counts)]
        return (halves[0] + halves[1]) / 2
