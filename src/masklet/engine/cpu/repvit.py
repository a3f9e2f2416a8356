"""EdgeTAM's image encoder, RepViT, with folded batch norms, merged branches, and one band of rows per thread.

Source: RepViT (arXiv 2307.09283), section 3.2, "structural re-parameterization".
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from masklet.engine.cpu.blocks import row_blocks
from masklet.engine.cpu.image_encoder import decoder_features, joined, pack_levels
from masklet.engine.cpu.products import Linear
from masklet.engine.cpu.threads import for_each, num_threads
from masklet.model.edgetam.repvit import (
    ChannelMixer,
    ConvNorm,
    Downsample,
    RepVit,
    RepVitBlock,
    SqueezeExcite,
    Stage,
    TokenMixer,
)
from masklet.model.neck import Features
from masklet.model.sam2 import Sam2Model

CELLS = 4096
"""Cells of a map that a convolution computes in one thread at a time."""
ROWS = 1024
"""Cells that an MLP processes in one thread at a time."""
MARGIN = 1
"""Padding of a 3x3 convolution, in cells."""


@dataclass(frozen=True)
class Convolution:
    """A 3x3 convolution with padding, in float32, on maps (height, width, channels)."""

    weight: Tensor  # (channels out, channels in / groups, 3, 3)
    bias: Tensor  # (channels out,)
    stride: int
    groups: int

    @classmethod
    def pack(cls, layer: ConvNorm) -> Convolution:
        """Packs a convolution with the batch norm that follows it."""
        weight, bias = folded(layer)
        return cls(weight.contiguous(memory_format=torch.channels_last), bias, layer.c.stride[0], layer.c.groups)

    @classmethod
    def merge(cls, block: RepVitBlock) -> Convolution:
        """Merges the three branches of a token mixer into one convolution."""
        weight, bias = merged_branches(block.token_mixer)
        groups = block.token_mixer.conv.c.groups
        return cls(weight.contiguous(memory_format=torch.channels_last), bias, 1, groups)

    def __call__(self, x: Tensor, *, gelu: bool = False) -> Tensor:
        """(h, w, channels in) to (h / stride, w / stride, channels out), band by band."""
        height, width = len(x) // self.stride, x.shape[1] // self.stride
        out = x.new_empty(height, width, len(self.weight))

        def convolve(rows: slice) -> None:
            first, last = self.stride * rows.start - MARGIN, self.stride * (rows.stop - 1) + MARGIN
            band = x[max(first, 0) : last + 1]
            above, below = max(-first, 0), max(last + 1 - len(x), 0)
            if above or below:
                band = F.pad(band, (0, 0, 0, 0, above, below))
            # The axis of images comes first, or torch would not recognise channels last and take five times as long.
            y = F.conv2d(
                band[None].permute(0, 3, 1, 2), self.weight, self.bias, self.stride, (0, MARGIN), groups=self.groups
            )
            out[rows] = (F.gelu(y) if gelu else y)[0].permute(1, 2, 0)

        for_each(convolve, bands(height, width))
        return out


@dataclass(frozen=True)
class Mixer:
    """See ``ChannelMixer`` and ``SqueezeExcite``. Products are in the engine's precision, the rest in float32."""

    wide: Linear
    narrow: Linear
    excitation: SqueezeExcite | None

    @classmethod
    def pack(cls, mixer: ChannelMixer, dtype: torch.dtype, excitation: nn.Module | None = None) -> Mixer:
        """Packs plain layers."""
        wide, narrow = (pointwise(layer, dtype) for layer in (mixer.conv1, mixer.conv2))
        return cls(wide, narrow, excitation if isinstance(excitation, SqueezeExcite) else None)

    def __call__(self, x: Tensor) -> Tensor:
        """(h, w, dim) to the same: scales the channels, then adds the MLP."""
        cells, out = x.flatten(0, 1), torch.empty_like(x)
        weights = None if self.excitation is None else self.excitation.weights(cells.mean(0)[None, :, None, None])

        def mix(rows: slice) -> None:
            part = cells[rows] if weights is None else cells[rows] * weights.flatten()
            torch.add(part, self.narrow(F.gelu(self.wide(part))), out=out.flatten(0, 1)[rows])

        for_each(mix, row_blocks(len(cells), ROWS))
        return out


@dataclass(frozen=True)
class PackedStage:
    """See ``Stage``: convolutions, products and mixers in the order in which a map passes through them."""

    steps: list[Convolution | Mixer | Linear]

    @classmethod
    def pack(cls, stage: Stage, dtype: torch.dtype) -> PackedStage:
        """Packs plain layers."""
        steps: list[Convolution | Mixer | Linear] = []
        if isinstance(stage.downsample, Downsample):
            down = stage.downsample
            steps += _steps_of([down.pre_block], dtype)
            steps += [Convolution.pack(down.spatial_downsample), pointwise(down.channel_downsample, dtype)]
            steps += [Mixer.pack(down.ffn, dtype)]
        return cls(steps + _steps_of(cast(Iterable[RepVitBlock], stage.blocks), dtype))

    def __call__(self, x: Tensor) -> Tensor:
        """(h, w, dim_in) to (h', w', dim), float32."""
        for step in self.steps:
            x = in_blocks(step, x) if isinstance(step, Linear) else step(x)
        return x


def _steps_of(blocks: Iterable[RepVitBlock], dtype: torch.dtype) -> list[Convolution | Mixer | Linear]:
    return [
        step
        for block in blocks
        for step in (Convolution.merge(block), Mixer.pack(block.channel_mixer, dtype, block.se))
    ]


class CpuRepVitEncoder:
    """The packed weights of an EdgeTAM's trunk, neck and skip convolutions; see ``CpuImageEncoder``."""

    def __init__(self, model: Sam2Model, dtype: torch.dtype) -> None:
        trunk = cast(RepVit, model.vision_encoder.backbone.timm_model)
        self.stem = [Convolution.pack(layer) for layer in (trunk.stem.conv1, trunk.stem.conv2)]
        self.stages = [PackedStage.pack(stage, dtype) for stage in trunk.stages]
        self.levels = pack_levels(model, dtype)

    def __call__(self, pixel_values: Tensor, _: Tensor | None = None) -> Features:
        """(batch, 3, height, width), normalised float32. Images run one by one, independent of each other."""
        return joined([self._encode(pixels) for pixels in pixel_values])

    def _encode(self, pixels: Tensor) -> Features:
        first, second = self.stem
        x, maps = second(first(pixels.permute(1, 2, 0).contiguous(), gelu=True)), []
        for stage, level in zip(self.stages, self.levels, strict=True):
            x = stage(x)
            maps.append(in_blocks(level, x))
        return decoder_features(maps)


def folded(layer: ConvNorm) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution with its batch norm folded in."""
    norm = layer.bn
    assert norm.running_var is not None
    assert norm.running_mean is not None
    scale = norm.weight.detach() * (norm.running_var + norm.eps).rsqrt()
    return layer.c.weight.detach() * scale[:, None, None, None], norm.bias.detach() - norm.running_mean * scale


def merged_branches(mixer: TokenMixer) -> tuple[Tensor, Tensor]:
    """Weight and bias of one 3x3 convolution that does the work of all three branches."""
    (wide, wide_bias), (narrow, narrow_bias) = folded(mixer.conv), folded(mixer.conv1)
    return wide + F.pad(narrow + 1, (MARGIN,) * 4), wide_bias + narrow_bias  # the 1 is the identity branch


def pointwise(layer: ConvNorm, dtype: torch.dtype) -> Linear:
    """A 1x1 convolution and its batch norm as one matrix product."""
    weight, bias = folded(layer)
    return Linear(weight.flatten(1).to(dtype), bias.to(dtype))


def in_blocks(linear: Linear, x: Tensor) -> Tensor:
    """(h, w, channels in) to (h, w, channels out) float32."""
    cells, out = x.flatten(0, 1), x.new_empty(*x.shape[:2], linear.width)

    def multiply(rows: slice) -> None:
        out.flatten(0, 1)[rows] = linear(cells[rows])

    for_each(multiply, row_blocks(len(cells), ROWS))
    return out


def bands(height: int, width: int) -> list[slice]:
    """Bands of rows of a map, each of about ``CELLS`` cells at most; one for every thread if there are enough rows."""
    count = min(height, max(num_threads(), -(-height * width // CELLS)))
    edges = [height * i // count for i in range(count + 1)]
    return [slice(*pair) for pair in zip(edges[:-1], edges[1:], strict=True)]
