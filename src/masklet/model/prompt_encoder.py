"""Prompt encoder: points, boxes and rough masks become tokens and a map.

Source: SAM (arXiv 2304.02643), section 3 and appendix A, "prompt encoder".
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from masklet.model.layers import LayerNorm2d
from masklet.model.positions import FourierPositions

BACKGROUND, FOREGROUND, BOX_TOP_LEFT, BOX_BOTTOM_RIGHT = 0, 1, 2, 3
NOT_A_POINT = -1
"""Label of a point that says "nothing here"; the network has a learned embedding for it."""
PADDING = -10
"""Label that fills up ragged prompts (and coordinate that fills up ragged boxes); nothing attends to it."""


@dataclass(frozen=True)
class PromptEmbeddings:
    """Prompts as the mask decoder reads them."""

    tokens: Tensor  # (batch, objects, tokens, dim)
    is_padding: Tensor | None  # (batch, objects, tokens) bool; None where no token is padding
    dense: Tensor  # (batch or 1, objects or 1, dim, h, w): 1 where no mask was given and all share one map

    def select(self, image: int, objects: slice) -> PromptEmbeddings:
        """Those of some objects of one image, as a batch of 1."""
        pick = (slice(image, image + 1), objects)
        is_shared = self.dense.shape[:2] == (1, 1)
        return PromptEmbeddings(
            self.tokens[pick],
            None if self.is_padding is None else self.is_padding[pick],
            self.dense if is_shared else self.dense[pick],
        )


class MaskEmbed(nn.Module):
    """A mask prompt, a quarter of the input's size, shrunk to the image embedding."""

    def __init__(self, channels: int, dim: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, channels // 4, kernel_size=2, stride=2)
        self.layer_norm1 = LayerNorm2d(channels // 4)
        self.conv2 = nn.Conv2d(channels // 4, channels, kernel_size=2, stride=2)
        self.layer_norm2 = LayerNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, dim, kernel_size=1)

    def forward(self, masks: Tensor) -> Tensor:
        """(masks, 1, 4h, 4w) logits to (masks, dim, h, w)."""
        x = F.gelu(self.layer_norm1(self.conv1(masks)))
        x = F.gelu(self.layer_norm2(self.conv2(x)))
        return self.conv3(x)


class PromptEncoder(nn.Module):
    """Points and box corners to tokens; masks to a map added to the image embedding."""

    def __init__(self, dim: int, mask_channels: int) -> None:
        super().__init__()
        self.shared_embedding = FourierPositions(dim)
        self.mask_embed = MaskEmbed(mask_channels, dim)
        self.no_mask_embed = nn.Embedding(1, dim)
        self.point_embed = nn.Embedding(4, dim)
        self.not_a_point_embed = nn.Embedding(1, dim)

    def forward(
        self,
        points: Tensor | None,
        labels: Tensor | None,
        boxes: Tensor | None,
        masks: Tensor | None,
        *,
        map_hw: tuple[int, int],
        image_hw: tuple[int, int],
    ) -> PromptEmbeddings:
        """Embed what was given.

        Args:
            points: (batch, objects, points, 2), x then y, model pixels.
            labels: (batch, objects, points): 1 foreground, 0 background, 2 and 3 box corners, -1 nothing, -10 padding.
            boxes: (batch, objects, 4), x0 y0 x1 y1, model pixels; a box of -10 is padding.
            masks: (batch, objects, 4h, 4w) logits.
            map_hw: (h, w) of the image embedding.
            image_hw: (height, width) of the network's input.
        """
        tokens, padding = [], []
        if points is not None:
            assert labels is not None
            tokens.append(self.embed_points(points, labels, image_hw))
            padding.append(labels == PADDING)
        if boxes is not None:
            corners = boxes.unflatten(-1, (2, 2))  # (batch, objects, 2, 2)
            corner_labels = torch.tensor([BOX_TOP_LEFT, BOX_BOTTOM_RIGHT], device=boxes.device).expand(
                corners.shape[:3]
            )
            tokens.append(self.embed_points(corners, corner_labels, image_hw))
            padding.append((boxes == PADDING).all(-1, keepdim=True).expand(-1, -1, 2))
        # SAM ended every list of clicks with "nothing here"; SAM 2's weights expect it after boxes too.
        tokens.append(self.not_a_point_embed.weight.expand(*tokens[0].shape[:2], 1, -1))
        padding.append(torch.zeros_like(padding[0][:, :, :1]))
        is_padding = torch.cat(padding, dim=2)
        return PromptEmbeddings(
            tokens=torch.cat(tokens, dim=2),
            is_padding=is_padding if is_padding.any() else None,
            dense=self.embed_masks(masks, map_hw),
        )

    def embed_points(self, points: Tensor, labels: Tensor, image_hw: tuple[int, int]) -> Tensor:
        """(batch, objects, points, 2) and labels (batch, objects, points) to (batch, objects, points, dim)."""
        # Clicks name the pixel's corner; the network was trained on pixel centres.
        side_xy = torch.tensor([image_hw[1], image_hw[0]], device=points.device)
        where = self.shared_embedding((points.float() + 0.5) / side_xy)
        what = self.point_embed(labels.clamp(min=0))
        nothing = self.not_a_point_embed.weight[0]
        # "Nothing here" has no place: its embedding replaces the position.
        return torch.where((labels == NOT_A_POINT)[..., None], nothing, where + what)

    def embed_masks(self, masks: Tensor | None, map_hw: tuple[int, int]) -> Tensor:
        """(batch, objects, 4h, 4w) to (batch, objects, dim, h, w); without masks one learned vector everywhere."""
        if masks is None:
            return self.no_mask_embed.weight.view(1, 1, -1, 1, 1).expand(-1, -1, -1, *map_hw)
        embedded = self.mask_embed(masks.flatten(0, 1)[:, None].to(self.no_mask_embed.weight.dtype))
        return embedded.unflatten(0, masks.shape[:2])
