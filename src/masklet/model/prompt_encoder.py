"""Prompt encoder: points, boxes and rough masks become tokens and a map.

Source: SAM (arXiv 2304.02643), section 3 and appendix A, "prompt encoder".
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from masklet.config import BACKGROUND as BACKGROUND
from masklet.config import BOX_BOTTOM_RIGHT as BOX_BOTTOM_RIGHT
from masklet.config import BOX_TOP_LEFT as BOX_TOP_LEFT
from masklet.config import FOREGROUND as FOREGROUND
from masklet.config import NOT_A_POINT as NOT_A_POINT
from masklet.config import PADDING as PADDING
from masklet.config import SizeHW
from masklet.model.layers import ACTIVATIONS, LayerNorm2d
from masklet.model.positions import FourierPositions


@dataclass(frozen=True)
class Prompts:
    """Prompts as tensors, in pixels of the network's input. Kinds of prompt that were not given are None."""

    points: Tensor | None = None  # (batch, objects, points, 2), x then y
    labels: Tensor | None = None  # (batch, objects, points): 1 foreground, 0 background, 2 and 3 box corners, -1, -10
    boxes: Tensor | None = None  # (batch, objects, 4), x0 y0 x1 y1; a box of -10 is padding
    masks: Tensor | None = None  # (batch, objects, 4h, 4w) logits
    has_padding: bool = False
    """Whether a label or a box is padding; known on the host, so that nothing is read back from the device."""

    def __len__(self) -> int:
        """How many objects are prompted in each image."""
        (count,) = {t.shape[1] for t in self._tensors() if t is not None}
        return count

    def __getitem__(self, objects: slice) -> Prompts:
        """The prompts of the chosen objects."""
        points, labels, boxes, masks = (None if t is None else t[:, objects] for t in self._tensors())
        return Prompts(points, labels, boxes, masks, self.has_padding)

    def to(self, device: torch.device) -> Prompts:
        """Copy the prompts to a device."""
        points, labels, boxes, masks = (None if t is None else t.to(device) for t in self._tensors())
        return Prompts(points, labels, boxes, masks, self.has_padding)

    @property
    def is_single_click(self) -> bool:
        """Whether every object has one point and nothing else: the ambiguous prompt."""
        return self.labels is not None and self.labels.shape[2] == 1 and self.masks is None and self.boxes is None

    def _tensors(self) -> tuple[Tensor | None, ...]:
        return self.points, self.labels, self.boxes, self.masks


@dataclass(frozen=True)
class PromptEmbeddings:
    """Prompts as the mask decoder reads them."""

    tokens: Tensor  # (batch, objects, tokens, dim)
    is_padding: Tensor | None  # (batch, objects, tokens) bool; None where no token is padding
    dense: Tensor  # (batch or 1, objects or 1, dim, h, w): 1 where all share the map for "no mask"


class MaskEmbed(nn.Module):
    """Downscale a mask prompt, a quarter of the input's size, to the image embedding."""

    def __init__(self, channels: int, dim: int, activation: str) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.conv1 = nn.Conv2d(1, channels // 4, kernel_size=2, stride=2)
        self.layer_norm1 = LayerNorm2d(channels // 4)
        self.conv2 = nn.Conv2d(channels // 4, channels, kernel_size=2, stride=2)
        self.layer_norm2 = LayerNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, dim, kernel_size=1)

    def forward(self, masks: Tensor) -> Tensor:
        """(masks, 1, 4h, 4w) logits to (masks, dim, h, w)."""
        x = self.activation(self.layer_norm1(self.conv1(masks)))
        x = self.activation(self.layer_norm2(self.conv2(x)))
        return self.conv3(x)


class PromptEncoder(nn.Module):
    """Points and box corners to tokens; masks to a map added to the image embedding."""

    def __init__(self, dim: int, mask_channels: int, activation: str = "gelu") -> None:
        super().__init__()
        self.shared_embedding = FourierPositions(dim)
        self.mask_embed = MaskEmbed(mask_channels, dim, activation)
        self.no_mask_embed = nn.Embedding(1, dim)
        self.point_embed = nn.Embedding(4, dim)
        self.not_a_point_embed = nn.Embedding(1, dim)

    def forward(self, prompts: Prompts, *, map_hw: SizeHW, input_hw: SizeHW) -> PromptEmbeddings:
        """Embed prompts.

        Args:
            prompts: With points or boxes.
            map_hw: (h, w) of the image embedding.
            input_hw: (height, width) of the network's input.
        """
        tokens = []
        if prompts.points is not None:
            assert prompts.labels is not None
            tokens.append(self.embed_points(prompts.points, prompts.labels, input_hw))
        if prompts.boxes is not None:
            corners = prompts.boxes.unflatten(-1, (2, 2))  # (batch, objects, 2, 2)
            labels = torch.tensor([BOX_TOP_LEFT, BOX_BOTTOM_RIGHT], device=corners.device).expand(corners.shape[:3])
            tokens.append(self.embed_points(corners, labels, input_hw))
        # SAM ended every list of clicks with "not a point"; SAM 2's weights expect it after boxes too.
        tokens.append(self.not_a_point_embed.weight.expand(*tokens[0].shape[:2], 1, -1))
        return PromptEmbeddings(
            tokens=torch.cat(tokens, dim=2),
            is_padding=_find_padding(prompts) if prompts.has_padding else None,
            dense=self.embed_masks(prompts.masks, map_hw),
        )

    def embed_points(self, points: Tensor, labels: Tensor, input_hw: SizeHW) -> Tensor:
        """(batch, objects, points, 2) and labels (batch, objects, points) to (batch, objects, points, dim)."""
        # Coordinates of clicks are pixel corners; the network was trained on pixel centres.
        size_xy = torch.tensor([input_hw[1], input_hw[0]], device=points.device)
        positions = self.shared_embedding((points.float() + 0.5) / size_xy)
        # Not clamp(min=0), which OpenVINO computes wrongly for int64 in exported graphs.
        kinds = self.point_embed(labels.masked_fill(labels < 0, 0))
        embedded = (positions + kinds).to(self.point_embed.weight.dtype)
        # "Not a point" has no position: its embedding stands alone.
        return torch.where((labels == NOT_A_POINT)[..., None], self.not_a_point_embed.weight[0], embedded)

    def embed_masks(self, masks: Tensor | None, map_hw: SizeHW) -> Tensor:
        """(batch, objects, 4h, 4w) to (batch, objects, dim, h, w); without masks, one learned vector in every cell."""
        if masks is None:
            return self.no_mask_embed.weight.view(1, 1, -1, 1, 1).expand(-1, -1, -1, *map_hw)
        embedded = self.mask_embed(masks.flatten(0, 1)[:, None].to(self.no_mask_embed.weight.dtype))
        return embedded.unflatten(0, masks.shape[:2])


def _find_padding(prompts: Prompts) -> Tensor:
    """(batch, objects, tokens) bool, for the tokens of points, of boxes, and the last one."""
    padding = []
    if prompts.labels is not None:
        padding.append(prompts.labels == PADDING)
    if prompts.boxes is not None:
        padding.append((prompts.boxes == PADDING).all(-1, keepdim=True).expand(-1, -1, 2))
    padding.append(torch.zeros_like(padding[0][:, :, :1]))
    return torch.cat(padding, dim=2)
