"""EdgeTAM's image encoder, RepViT, with folded batch norms and merged branches, on maps whose channels lie last.

Products run in the engine's precision, and convolutions in float32: they have a ninth of the operations, and the merged
identity of a token mixer would be rounded with the weights of its convolution.

Source: RepViT (arXiv 2307.09283), section 3.2, "structural re-parameterization".
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from masklet.engine.cpu.repvit import folded, merged_branches
from masklet.engine.cuda.image_encoder import Neck
from masklet.engine.cuda.memory_encoder import Convolution
from masklet.engine.cuda.products import Product
from masklet.model.edgetam.repvit import ChannelMixer, ConvNorm, Downsample, RepVit, RepVitBlock, SqueezeExcite, Stage
from masklet.model.sam2 import Sam2Model


def convolution(layer: ConvNorm) -> Convolution:
    """A convolution and its batch norm."""
    return Convolution(layer.c, torch.float32, folded(layer))


def pointwise(layer: ConvNorm, dtype: torch.dtype) -> Product:
    """A 1x1 convolution and its batch norm as one matrix product."""
    weight, bias = folded(layer)
    return Product.pack([(weight.flatten(1), bias)], dtype)


@dataclass(frozen=True, eq=False)
class Mixer:
    """The packed weights of a ``ChannelMixer`` and of the ``SqueezeExcite`` before it, if there is one."""

    wide: Product
    narrow: Product
    excitation: SqueezeExcite | None

    @classmethod
    def pack(cls, mixer: ChannelMixer, dtype: torch.dtype, excitation: nn.Module | None = None) -> Mixer:
        """Packs plain layers."""
        wide, narrow = (pointwise(layer, dtype) for layer in (mixer.conv1, mixer.conv2))
        return cls(wide, narrow, excitation if isinstance(excitation, SqueezeExcite) else None)

    def __call__(self, x: Tensor) -> Tensor:
        """(batch, h, w, dim) to the same, float32."""
        if self.excitation is not None:
            x = x * self.excitation.weights(x.mean((1, 2))[..., None, None]).permute(0, 2, 3, 1)
        return x + self.narrow(F.gelu(self.wide(x)))


def steps_of(stage: Stage, dtype: torch.dtype) -> list[Convolution | Mixer | Product]:
    """What a map passes through in a stage, in this order."""
    steps: list[Convolution | Mixer | Product] = []
    blocks = list(cast(Iterable[RepVitBlock], stage.blocks))
    if isinstance(stage.downsample, Downsample):
        down = stage.downsample
        steps += _steps_of_block(down.pre_block, dtype)
        steps += [convolution(down.spatial_downsample), pointwise(down.channel_downsample, dtype)]
        steps += [Mixer.pack(down.ffn, dtype)]
    return steps + [step for block in blocks for step in _steps_of_block(block, dtype)]


def _steps_of_block(block: RepVitBlock, dtype: torch.dtype) -> list[Convolution | Mixer | Product]:
    mixer = block.token_mixer
    merged = Convolution(mixer.conv.c, torch.float32, merged_branches(mixer))
    return [merged, Mixer.pack(block.channel_mixer, dtype, block.se)]


class CudaRepVitEncoder:
    """The packed weights of RepViT and the neck, all of them plain layers."""

    def __init__(self, model: Sam2Model, dtype: torch.dtype) -> None:
        trunk = cast(RepVit, model.vision_encoder.backbone.timm_model)
        self.stem = [convolution(layer) for layer in (trunk.stem.conv1, trunk.stem.conv2)]
        self.stages = [steps_of(stage, dtype) for stage in trunk.stages]
        self.neck = Neck(model, dtype)

    def __call__(self, _: Tensor | None, pixel_values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Normalised (batch, 3, height, width) to the three maps of ``Features``."""
        first, second = self.stem
        x, maps = second(F.gelu(first(pixel_values.permute(0, 2, 3, 1)))), []
        for steps in self.stages:
            for step in steps:
                x = step(x)
            maps.append(x)
        return self.neck(maps)
