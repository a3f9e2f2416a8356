"""An extra loss on pairs of cells: whether both belong to the same object.

A prompt trains the encoder on one object, this loss on every pair of cells, so features that distinguish objects are
learned in a fraction of the steps. Its weights are not part of the model.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from masklet.model.neck import Features

NUM_CELLS = 768
"""Number of cells that are sampled from an image."""
WIDTH = 32
"""Dimension of a cell's embedding."""


class AffinityLoss(nn.Module):
    """Embeds cells; the dot product of two embeddings predicts whether the cells belong to the same object.

    Args:
        dim: The network's ``hidden_size``.
        weight: Weight of the loss.
    """

    def __init__(self, dim: int, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = weight
        self.proj = nn.Linear(dim + dim // 4 + dim // 8, WIDTH)
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, features: Features, targets: Tensor, generator: torch.Generator) -> Tensor:
        """The weighted loss, a scalar.

        Args:
            features: Features of the images.
            targets: (batch, objects, h, w) bool, at the stride of the finest map.
            generator: Samples the cells.
        """
        finest = features.stride4
        size_hw = (finest.shape[-2], finest.shape[-1])
        maps = [F.interpolate(m, size=size_hw, mode="nearest").flatten(2) for m in features]
        cells = torch.randperm(size_hw[0] * size_hw[1], generator=generator)[:NUM_CELLS]
        sampled = torch.cat([m[:, :, cells] for m in maps], 1).transpose(1, 2)  # (batch, cells, channels)
        embedded = self.proj(sampled)
        logits = (embedded @ embedded.transpose(1, 2)).float() * WIDTH**-0.5 + self.bias
        inside = targets.flatten(2)[:, :, cells]  # (batch, objects, cells)
        labels = torch.where(inside.any(1), 1 + inside.float().argmax(1), 0)  # 0: background
        is_same = labels[:, :, None] == labels[:, None]
        # Pairs of background cells are left out: the background is not one object.
        counts = (labels[:, :, None] > 0) | (labels[:, None] > 0)
        entropy = F.binary_cross_entropy_with_logits(logits, is_same.float(), reduction="none")
        # Few pairs belong to the same object, so both kinds get the same weight.
        halves = [(entropy * pairs).sum() / pairs.sum().clamp(min=1) for pairs in (is_same & counts, ~is_same & counts)]
        return self.weight * (halves[0] + halves[1]) / 2
