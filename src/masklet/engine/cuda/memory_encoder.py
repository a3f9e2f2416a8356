"""The memory encoder for all objects at once, on maps whose channels lie last."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from masklet.config import STRIDE
from masklet.engine.cuda.fused import layer_norm
from masklet.engine.cuda.products import Norm, Product, affine
from masklet.model.memory_encoder import MaskDownsamplerLayer, MemoryFuserBlock
from masklet.model.sam2 import MEMORY_BIAS, MEMORY_SCALE, Sam2Model


class Convolution:
    """The packed weights of a convolution, which may be given in the place of the layer's own."""

    def __init__(self, layer: nn.Module, dtype: torch.dtype, weights: tuple[Tensor, Tensor] | None = None) -> None:
        assert isinstance(layer, nn.Conv2d)
        if weights is None:
            assert layer.bias is not None
            weights = layer.weight.detach(), layer.bias.detach()
        self.weight = weights[0].to(dtype, memory_format=torch.channels_last)
        self.bias = weights[1].to(dtype)
        self.stride, self.padding, self.groups = layer.stride, layer.padding, layer.groups

    def __call__(self, x_bhwc: Tensor) -> Tensor:
        """(maps, height, width, channels in) to (maps, height', width', channels out)."""
        x = x_bhwc.permute(0, 3, 1, 2).to(self.weight.dtype)
        y = F.conv2d(x, self.weight, self.bias, self.stride, self.padding, groups=self.groups)
        return y.permute(0, 2, 3, 1).contiguous()


class FuserBlock:
    """The packed weights of a ``MemoryFuserBlock``."""

    def __init__(self, block: MemoryFuserBlock, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.depthwise, self.norm = Convolution(block.depthwise_conv, dtype), Norm.pack(block.layer_norm)
        self.widen = Product.pack([affine(block.pointwise_conv1)], dtype)
        # The layer scale is a factor of the channels of the last product.
        (weight, bias), scale = affine(block.pointwise_conv2), block.scale.detach().float()
        self.narrow = Product.pack([(weight * scale[:, None], bias * scale)], dtype)

    def __call__(self, x_bhwc: Tensor) -> Tensor:
        """(maps, h, w, dim) to the same, float32."""
        return x_bhwc + self.narrow(F.gelu(self.widen(layer_norm(self.depthwise(x_bhwc), self.norm, self.dtype))))


class CudaMemoryEncoder:
    """The packed weights of a memory encoder of plain layers."""

    def __init__(self, model: Sam2Model, dtype: torch.dtype) -> None:
        encoder = model.memory_encoder
        self.dtype = dtype
        downsampler = cast(Iterable[MaskDownsamplerLayer], encoder.mask_downsampler.layers)
        self.downsampler = [(Convolution(layer.conv, dtype), Norm.pack(layer.layer_norm)) for layer in downsampler]
        self.mask_projection = Product.pack([affine(encoder.mask_downsampler.final_conv)], dtype)
        self.feature_projection = Product.pack([affine(encoder.feature_projection)], dtype)
        self.fuser = [
            FuserBlock(block, dtype) for block in cast(Iterable[MemoryFuserBlock], encoder.memory_fuser.layers)
        ]
        self.projection = Product.pack([affine(encoder.projection)], dtype)
        self.bias = torch.full((1,), MEMORY_BIAS, device=model.device)
        self.compress = model.compress  # EdgeTAM's perceiver has few channels: it runs as it is, in float32
        self.absent = None
        if model.config.is_v2_1:
            self.absent = model.occlusion_spatial_embedding_parameter.detach().float()

    def __call__(self, binarize: bool, stride16: Tensor, logits: Tensor, object_scores: Tensor) -> tuple[Tensor]:
        """See ``Sam2Model.write_memory``."""
        size_hw = (stride16.shape[-2] * STRIDE, stride16.shape[-1] * STRIDE)
        masks = F.interpolate(logits[:, None].float(), size=size_hw, mode="bilinear", align_corners=False)
        if binarize:
            masks = torch.where(masks > 0, MEMORY_SCALE + MEMORY_BIAS, MEMORY_BIAS)
        else:
            masks = torch.add(self.bias, masks.sigmoid(), alpha=MEMORY_SCALE)
        x = masks.permute(0, 2, 3, 1)
        for conv, norm in self.downsampler:
            x = layer_norm(conv(x), norm, self.dtype, gelu=True)
        x = self.feature_projection(stride16.permute(0, 2, 3, 1)).float() + self.mask_projection(x)
        for block in self.fuser:
            x = block(x)
        memory = self.projection(x).flatten(1, 2)  # (objects, h*w, memory_dim)
        if self.absent is None:
            return (self.compress(memory.float(), (stride16.shape[-2], stride16.shape[-1])),)
        return (torch.where(object_scores[:, None] > 0, 0.0, self.absent) + memory,)
