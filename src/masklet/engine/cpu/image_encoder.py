"""The image encoder in blocks, with the finest levels of the neck narrowed in one product."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from masklet.engine.cpu.blocks import in_blocks
from masklet.engine.cpu.packing import Packed
from masklet.model.hiera import MLP_RATIO, HieraBlock, join_windows, split_windows
from masklet.model.neck import Features
from masklet.model.sam2 import Sam2Model

Affine = tuple[Tensor, Tensor]
"""Weight (channels out, channels in) and bias (channels out,) of a 1x1 convolution."""


@dataclass(frozen=True)
class PackedNeck:
    """The 1x1 convolutions after the trunk, one for each level, as matrices.

    Only the decoder's skip convolutions read the two finest levels, so neck and skip convolution are merged into one
    product, and the wide maps between them are never computed.
    """

    stride4: Affine
    stride8: Affine
    stride16: Affine
    stride32: Affine

    @classmethod
    def pack(cls, model: Sam2Model) -> PackedNeck:
        """Pack a network whose convolutions are plain ones."""
        stride32, stride16, stride8, stride4 = (_matrix(conv) for conv in model.vision_encoder.neck.convs)
        decoder = model.mask_decoder
        skips = (_product(stride4, _matrix(decoder.conv_s0)), _product(stride8, _matrix(decoder.conv_s1)))
        return cls(*skips, stride16, stride32)

    def __call__(self, maps_bhwc: list[Tensor]) -> Features:
        """Four maps of the trunk, finest first, to features."""
        stride4, stride8, stride16, stride32 = maps_bhwc
        top = F.interpolate(_project(stride32, self.stride32), scale_factor=2.0, mode="nearest")
        return Features(
            _project(stride4, self.stride4), _project(stride8, self.stride8), _project(stride16, self.stride16) + top
        )


class CpuImageEncoder:
    """See ``Sam2Model.encode``. Layers of every kind are called as they are, adapters included."""

    def __init__(self, model: Sam2Model) -> None:
        self.model = model
        decoder = model.mask_decoder
        self.neck: Packed[PackedNeck] = Packed(
            lambda: [*model.vision_encoder.neck.convs, decoder.conv_s0, decoder.conv_s1],
            lambda: PackedNeck.pack(model),
        )

    def __call__(self, pixel_values: Tensor, positions: Tensor) -> Features:
        """(batch, 3, height, width), normalised float32, and the trunk's table of positions."""
        encoder = self.model.vision_encoder
        maps = self._run_trunk(pixel_values, positions)
        neck = self.neck.get()
        if neck is not None:
            return neck(maps)
        stride4, stride8, stride16 = encoder.neck(maps)
        decoder = self.model.mask_decoder
        return Features(decoder.conv_s0(stride4), decoder.conv_s1(stride8), stride16)

    def _run_trunk(self, pixel_values: Tensor, positions: Tensor) -> list[Tensor]:
        trunk = self.model.vision_encoder.backbone
        x = trunk.patch_embed(pixel_values) + positions
        maps = []
        for index, block in enumerate(trunk.blocks):
            x = _run_block(block, x) if type(block) is HieraBlock else block(x)
            if index in trunk.stage_ends:
                maps.append(x)
        return maps


def _run_block(block: HieraBlock, x: Tensor) -> Tensor:
    """As ``HieraBlock.forward``, with windows and the rows of the MLP in blocks."""
    normed = block.layer_norm1(x)
    shortcut = block.shortcut(x, normed)
    if block.window == 0:
        x = shortcut + block.attn(normed)
    else:
        windows, grid = split_windows(normed, block.window)
        widest = windows.shape[1] * windows.shape[2] * 3 * shortcut.shape[-1]
        x = shortcut + join_windows(
            in_blocks(block.attn, windows, widest), grid, (shortcut.shape[1], shortcut.shape[2])
        )
    y = block.layer_norm2(x)
    return x + in_blocks(block.mlp, y.flatten(0, -2), MLP_RATIO * y.shape[-1]).view(y.shape)


def _matrix(conv: nn.Module) -> Affine:
    assert isinstance(conv, nn.Conv2d)
    assert conv.bias is not None
    return conv.weight.detach().flatten(1), conv.bias.detach()


def _product(first: Affine, second: Affine) -> Affine:
    """One convolution that does the work of both, ``first`` before ``second``."""
    (w1, b1), (w2, b2) = first, second
    return w2 @ w1, w2 @ b1 + b2


def _project(x_bhwc: Tensor, weights: Affine) -> Tensor:
    # A 1x1 convolution of a channels-last map is a product of matrices.
    return F.linear(x_bhwc, *weights).permute(0, 3, 1, 2)
