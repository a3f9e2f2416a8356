"""The image encoder with few operators: one product for queries, keys, values and shortcut of a block."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from masklet.checkpoints.preprocessor import PreprocessorConfig
from masklet.config import SizeHW
from masklet.engine.cuda.fused import layer_norm, resize_axis
from masklet.engine.cuda.products import Norm, Product, affine, merged
from masklet.engine.resizing import FrameResizer
from masklet.model.hiera import POOL, HieraBlock
from masklet.model.sam2 import Sam2Model


@dataclass(frozen=True)
class Windows:
    """How a map is cut into windows: the whole map is one window where attention is global."""

    grid_hw: SizeHW  # windows down and across
    window_hw: SizeHW
    map_hw: SizeHW

    @classmethod
    def of(cls, window: int, map_hw: SizeHW) -> Windows:
        """The windows of a block; ``window`` is 0 for global attention."""
        if window == 0:
            return cls((1, 1), map_hw, map_hw)
        return cls((-(-map_hw[0] // window), -(-map_hw[1] // window)), (window, window), map_hw)

    @property
    def padded_hw(self) -> SizeHW:
        """Size of the map that the windows cover."""
        return self.grid_hw[0] * self.window_hw[0], self.grid_hw[1] * self.window_hw[1]

    def pooled(self) -> Windows:
        """The same windows of the map of half the size."""
        half = (self.window_hw[0] // POOL, self.window_hw[1] // POOL)
        return Windows(self.grid_hw, half, (self.map_hw[0] // POOL, self.map_hw[1] // POOL))

    def by_window(self, x: Tensor) -> Tensor:
        """View (batch, padded height, padded width, dim) as (batch, down, across, height, width, dim)."""
        (down, across), (height, width) = self.grid_hw, self.window_hw
        return x.view(x.shape[0], down, height, across, width, -1).transpose(2, 3)

    def split(self, x: Tensor) -> Tensor:
        """(batch, h, w, dim) to windows (windows, cells, dim), padded with zeros."""
        padding = (self.padded_hw[0] - self.map_hw[0], self.padded_hw[1] - self.map_hw[1])
        if any(padding):
            x = F.pad(x, (0, 0, 0, padding[1], 0, padding[0]))
        cells = self.window_hw[0] * self.window_hw[1]
        return self.by_window(x).reshape(-1, cells, x.shape[-1])

    def add(self, x: Tensor, windows: Tensor) -> Tensor:
        """(batch, h, w, dim) plus windows (windows, cells, dim), in the type of ``x``."""
        parts = self._parts(windows, len(x))
        if self.padded_hw == self.map_hw:
            return (self.by_window(x) + parts).transpose(2, 3).reshape(x.shape)
        return x + self.join(windows, len(x))

    def join(self, windows: Tensor, batch: int) -> Tensor:
        """Windows (windows, cells, dim) to (batch, h, w, dim)."""
        joined = self._parts(windows, batch).transpose(2, 3).reshape(batch, *self.padded_hw, -1)
        return joined[:, : self.map_hw[0], : self.map_hw[1]]

    def _parts(self, windows: Tensor, batch: int) -> Tensor:
        return windows.view(batch, *self.grid_hw, *self.window_hw, -1)


class Block:
    """The packed weights of a ``HieraBlock``."""

    def __init__(self, block: HieraBlock, dtype: torch.dtype) -> None:
        self.window, self.pools, self.heads = block.window, block.pools, block.attn.heads
        self.dtype = dtype
        self.norm1, self.norm2 = Norm.pack(block.layer_norm1), Norm.pack(block.layer_norm2)
        weight, bias = affine(block.attn.qkv)
        q, k, v = zip(weight.chunk(3), bias.chunk(3), strict=True)
        # Queries and shortcut are pooled together, so they lie side by side.
        inputs = [q, affine(block.proj), k, v] if self.pools else [q, k, v]
        self.inputs = Product.pack(inputs, dtype)
        self.proj = Product.pack([affine(block.attn.proj)], dtype)
        self.mlp_in = Product.pack([affine(block.mlp.proj_in)], dtype)
        self.mlp_out = Product.pack([affine(block.mlp.proj_out)], dtype)
        self.activation = block.mlp.activation

    def __call__(self, x: Tensor) -> Tensor:
        """(batch, height, width, dim_in) to (batch, height', width', dim), float32."""
        x = self._attend_pooled(x) if self.pools else self._attend(x)
        return x + self.mlp_out(self.activation(self.mlp_in(layer_norm(x, self.norm2, self.dtype))))

    def _attend(self, x: Tensor) -> Tensor:
        windows = Windows.of(self.window, (x.shape[1], x.shape[2]))
        y = self.inputs(windows.split(layer_norm(x, self.norm1, self.dtype)))
        q, k, v = y.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind()
        return windows.add(x, self._attention(q, k, v))

    def _attend_pooled(self, x: Tensor) -> Tensor:
        windows = Windows.of(self.window, (x.shape[1], x.shape[2]))
        y = self.inputs(windows.split(layer_norm(x, self.norm1, self.dtype)))  # (windows, cells, 4 * dim)
        dim = y.shape[-1] // 4
        maps = y[..., : 2 * dim].unflatten(1, windows.window_hw).permute(0, 3, 1, 2)
        pooled = F.max_pool2d(maps, POOL).permute(0, 2, 3, 1).reshape(len(y), -1, 2 * dim)
        k, v = y[..., 2 * dim :].unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind()
        q = pooled[..., :dim].unflatten(-1, (self.heads, -1)).transpose(1, 2)
        attended = self._attention(q, k, v) + pooled[..., dim:]
        return windows.pooled().join(attended, len(x)).float().contiguous()

    def _attention(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(windows, heads, cells, head_dim) each to (windows, cells, dim)."""
        attended = F.scaled_dot_product_attention(q, k, v)
        return self.proj(attended.transpose(1, 2).flatten(2))


class CudaImageEncoder:
    """The packed weights of Hiera and the neck, all of them plain layers."""

    def __init__(self, model: Sam2Model, dtype: torch.dtype) -> None:
        trunk = model.vision_encoder.backbone
        projection = trunk.patch_embed.projection
        assert projection.bias is not None
        self.dtype = dtype
        self.patches = projection.weight.detach().to(dtype, memory_format=torch.channels_last)
        self.patch_bias = projection.bias.detach().to(dtype)
        self.stride, self.padding = projection.stride, projection.padding
        self.blocks = [Block(cast(HieraBlock, block), dtype) for block in trunk.blocks]
        self.stage_ends = list(trunk.stage_ends)
        self.neck = Neck(model, dtype)

    def __call__(self, positions: Tensor | None, pixel_values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The trunk's table of positions and normalised (batch, 3, height, width) to the three maps of ``Features``."""
        assert positions is not None
        pixels = pixel_values.to(self.dtype, memory_format=torch.channels_last)
        patches = F.conv2d(pixels, self.patches, self.patch_bias, self.stride, self.padding)
        x = (patches.permute(0, 2, 3, 1) + positions).contiguous()
        maps = []
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in self.stage_ends:
                maps.append(x)
        return self.neck(maps)


class Neck:
    """The packed weights of a neck of plain layers, with the decoder's skip convolutions merged in."""

    def __init__(self, model: Sam2Model, dtype: torch.dtype) -> None:
        stride32, stride16, stride8, stride4 = (affine(conv) for conv in model.vision_encoder.neck.convs)
        decoder = model.mask_decoder
        levels = [
            merged(stride4, affine(decoder.conv_s0)),
            merged(stride8, affine(decoder.conv_s1)),
            stride16,
            stride32,
        ]
        self.levels = [Product.pack([level], dtype) for level in levels]

    def __call__(self, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """The map after each stage, (batch, h, w, dim), finest first, to the three maps of ``Features``."""
        stride4, stride8, stride16, stride32 = (level(stage) for level, stage in zip(self.levels, maps, strict=True))
        height, width = stride32.shape[1:3]
        # Every cell of the coarsest map is added to the four that it covers.
        fine = stride16.unflatten(2, (width, 2)).unflatten(1, (height, 2))
        stride16 = (fine + stride32[:, :, None, :, None]).view(stride16.shape)
        fine4, fine8, embedding = (level.float().permute(0, 3, 1, 2) for level in (stride4, stride8, stride16))
        return fine4, fine8, embedding


ImageEncoder: TypeAlias = Callable[[Tensor | None, Tensor], tuple[Tensor, Tensor, Tensor]]
"""``CudaImageEncoder``, or EdgeTAM's."""


class CudaFrameEncoder:
    """Resizes and normalises a frame on the device, and encodes it."""

    def __init__(
        self, encoder: ImageEncoder, preprocessor: PreprocessorConfig, frame_hw: SizeHW, device: torch.device
    ) -> None:
        self.encoder = encoder
        self.resize = FrameResizer.make(frame_hw, preprocessor.input_hw, device)
        self.mean, self.std = (
            torch.tensor(values, dtype=torch.float32, device="cpu").view(3, 1, 1).to(device)
            for values in (preprocessor.image_mean, preprocessor.image_std)
        )
        self.divisor = 1 / preprocessor.rescale_factor

    def __call__(self, positions: Tensor | None, frame: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The table of positions and a frame (1, height, width, 3) uint8 to the three maps of ``Features``."""
        resized = self.resize(frame[0].to(self.mean.device, non_blocking=True), resize_axis)
        return self.encoder(positions, ((resized.permute(2, 0, 1) / self.divisor - self.mean) / self.std)[None])
