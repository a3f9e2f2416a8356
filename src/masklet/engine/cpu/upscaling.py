"""The mask decoder's upscaling, arranged for caches.

Masks are drawn cell by cell: the stride of a 2x2 transposed convolution is its size, so it is one matrix product, and
the four parts of a cell stay side by side until the logits are put in their places.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from masklet.config import SizeHW
from masklet.engine.cpu.products import layer_norm
from masklet.engine.cpu.threads import for_each
from masklet.model.mask_decoder import MaskDecoder

STRIP_CELLS = 2**9
"""Cells that are drawn at once; each becomes sixteen cells of ``dim / 8`` channels."""


@dataclass(frozen=True)
class SkipMaps:
    """The finer features of one image beside the cells that they lie in, with the biases of the convolutions."""

    stride4: Tensor  # (h*w, 4, 4, dim / 8) in the precision of products
    stride8: Tensor  # (h*w, 4, dim / 4) float32
    map_hw: SizeHW


class CellUpscaling:
    """The decoder's upscaling and the product with the mask weights, for each cell by itself."""

    def __init__(self, decoder: MaskDecoder, dtype: torch.dtype) -> None:
        self.norm = decoder.upscale_layer_norm
        self.dtype = dtype
        self.conv1, self.conv2 = (_by_part(conv).to(dtype) for conv in (decoder.upscale_conv1, decoder.upscale_conv2))
        self.bias1, self.bias2 = (_bias(conv) for conv in (decoder.upscale_conv1, decoder.upscale_conv2))

    def skip_maps(self, stride4: Tensor, stride8: Tensor) -> SkipMaps:
        """Arrange (1, dim / 8, 4h, 4w) and (1, dim / 4, 2h, 2w) by cell."""
        map_hw = (stride8.shape[-2] // 2, stride8.shape[-1] // 2)
        fine = (_by_cell(stride4, map_hw)[0] + self.bias2).to(self.dtype)
        return SkipMaps(fine, _by_cell(stride8, map_hw)[0] + self.bias1, map_hw)

    def __call__(self, cells: Tensor, mask_weights: Tensor, skips: SkipMaps) -> Tensor:
        """(objects, h*w, dim) and (objects, masks, dim / 8) to logits (objects, masks, 4h, 4w)."""
        h, w = skips.map_hw
        objects, masks = mask_weights.shape[:2]
        logits = mask_weights.new_empty(objects, masks, h, 4, w, 4)
        weights = mask_weights.to(self.dtype).transpose(1, 2)
        rows = max(1, STRIP_CELLS // w)

        def draw(strip: tuple[int, int]) -> None:
            number, top = strip
            bottom = min(h, top + rows)
            part = slice(top * w, bottom * w)
            drawn = self._draw(cells[number, part], weights[number], skips.stride8[part], skips.stride4[part])
            # (rows, w, 2, 2, 2, 2, masks): the pairs are (down, across) at stride 8, then at stride 4.
            drawn = drawn.unflatten(0, (-1, w, 2, 2, 2, 2)).permute(6, 0, 2, 4, 1, 3, 5)
            logits[number, :, top:bottom].unflatten(4, (2, 2)).unflatten(2, (2, 2)).copy_(drawn)

        for_each(draw, [(number, top) for number in range(objects) for top in range(0, h, rows)])
        return logits.view(objects, masks, 4 * h, 4 * w)

    def _draw(self, cells: Tensor, weights: Tensor, stride8: Tensor, stride4: Tensor) -> Tensor:
        """(cells, dim) and (dim / 8, masks) to logits (cells * 16, masks)."""
        x = (cells @ self.conv1).view(stride8.shape) + stride8  # (cells, 4, dim / 4), float32
        x = F.gelu(layer_norm(self.norm, x).to(self.dtype))
        x = (x.flatten(0, 1) @ self.conv2).view(stride4.shape)
        x += stride4  # (cells, 4, 4, dim / 8)
        return F.gelu(x).flatten(0, 2) @ weights


def _bias(conv: nn.ConvTranspose2d) -> Tensor:
    assert conv.bias is not None
    return conv.bias.detach()


def _by_part(conv: nn.ConvTranspose2d) -> Tensor:
    """A 2x2 transposed convolution's weight as (dim_in, 4 * dim_out): down, across, channel."""
    return conv.weight.detach().permute(0, 2, 3, 1).flatten(1)


def _by_cell(finer: Tensor, map_hw: SizeHW) -> Tensor:
    """(batch, dim, h * 2**n, w * 2**n) to (batch, h*w, 4 [, 4], dim): every part beside the coarse cell it lies in."""
    h, w = map_hw
    if finer.shape[-2] == 2 * h:
        x = finer.unflatten(-1, (w, 2)).unflatten(-3, (h, 2))  # (batch, dim, h, 2, w, 2)
        return x.permute(0, 2, 4, 3, 5, 1).flatten(3, 4).flatten(1, 2)
    x = finer.unflatten(-1, (w, 2, 2)).unflatten(-4, (h, 2, 2))  # (batch, dim, h, 2, 2, w, 2, 2)
    return x.permute(0, 2, 5, 3, 6, 4, 7, 1).flatten(5, 6).flatten(3, 4).flatten(1, 2)
