"""The memory encoder, one object a thread, with products in the precision of the engine."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from masklet.engine.cpu.blocks import row_blocks
from masklet.engine.cpu.products import Linear, layer_norm
from masklet.engine.cpu.threads import for_each
from masklet.model.memory_encoder import MemoryEncoder, MemoryFuserBlock

ROWS = 1024
"""Rows of an MLP that one thread takes at a time."""


class CpuMemoryEncoder:
    """The packed weights of a ``MemoryEncoder`` of plain layers. Objects run separately, one per thread."""

    def __init__(self, encoder: MemoryEncoder, dtype: torch.dtype) -> None:
        self.downsampling = encoder.mask_downsampler.layers
        self.of_mask, self.of_features, self.projection = (
            Linear.pack(conv, dtype)
            for conv in (encoder.mask_downsampler.final_conv, encoder.feature_projection, encoder.projection)
        )
        self.blocks = [FuserBlock(cast(MemoryFuserBlock, block), dtype) for block in encoder.memory_fuser.layers]

    def __call__(self, features: Tensor, masks: Tensor) -> Tensor:
        """(1, dim, h, w) and (masks, 1, 16h, 16w), scaled, to (masks, h*w, memory_dim)."""
        h, w = features.shape[-2:]
        projected = self.of_features(features[0].flatten(1).T)  # (h*w, dim)
        memory = masks.new_empty(len(masks), h * w, self.projection.width)

        def encode(number: int) -> None:
            x = masks[number : number + 1]
            for layer in self.downsampling:
                x = layer(x)
            x = self.of_mask(x[0].flatten(1).T) + projected.float()
            for block in self.blocks:
                x = block(x.view(h, w, -1)).flatten(0, 1)
            memory[number] = self.projection(x)

        for_each(encode, range(len(masks)))
        return memory


class FuserBlock:
    """See ``MemoryFuserBlock``."""

    def __init__(self, block: MemoryFuserBlock, dtype: torch.dtype) -> None:
        self.block = block
        self.mlp_in, self.mlp_out = (
            Linear.pack(layer, dtype) for layer in (block.pointwise_conv1, block.pointwise_conv2)
        )

    def __call__(self, x: Tensor) -> Tensor:
        """(h, w, dim) float32 to the same."""
        block = self.block
        y = block.depthwise_conv(x[None].permute(0, 3, 1, 2))[0].permute(1, 2, 0).flatten(0, 1)
        before, out = x.flatten(0, 1), x.new_empty(y.shape)

        def mlp(rows: slice) -> None:
            update = self.mlp_out(F.gelu(self.mlp_in(layer_norm(block.layer_norm, y[rows]))))
            torch.add(before[rows], block.scale * update, out=out[rows])

        for_each(mlp, row_blocks(len(y), ROWS))
        return out.view(x.shape)
