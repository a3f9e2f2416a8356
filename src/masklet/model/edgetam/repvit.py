"""RepViT, the trunk of EdgeTAM's image encoder.

Source: RepViT (arXiv 2307.09283), sections 3.2 to 3.4. Attributes are named as the tensors of timm's ``repvit_m1``.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from masklet.config import RepVitConfig
from masklet.model.layers import KeepsFloat32

MLP_RATIO = 2
SQUEEZE_RATIO = 4
SQUEEZE_MULTIPLE = 8
"""Channels of a squeeze-and-excitation are rounded to a multiple of this."""


class BatchNorm2d(KeepsFloat32, nn.BatchNorm2d):
    """Batch normalisation, computed in float32; the result has the type of the input."""

    def forward(self, input: Tensor) -> Tensor:
        """(batch, channels, height, width) to the same."""
        assert self.weight is not None
        return super().forward(input.to(self.weight.dtype)).to(input.dtype)


class ConvNorm(nn.Module):
    """A convolution without bias, then batch normalisation."""

    def __init__(self, dim_in: int, dim_out: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.c = nn.Conv2d(dim_in, dim_out, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
        self.bn = BatchNorm2d(dim_out)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, dim_in, height, width) to (batch, dim_out, height / stride, width / stride)."""
        return self.bn(self.c(x))


class TokenMixer(nn.Module):
    """Depthwise 3x3 and 1x1 convolutions and the input itself, added (section 3.2)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = ConvNorm(dim, dim, kernel=3, groups=dim)
        self.conv1 = ConvNorm(dim, dim, groups=dim)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, dim, h, w) to the same."""
        return self.conv(x) + self.conv1(x) + x


class SqueezeExcite(nn.Module):
    """Channels weighted by a function of their means (arXiv 1709.01507)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        rounded = int(dim / SQUEEZE_RATIO + SQUEEZE_MULTIPLE / 2) // SQUEEZE_MULTIPLE * SQUEEZE_MULTIPLE
        narrow = max(SQUEEZE_MULTIPLE, rounded)
        self.fc1 = nn.Conv2d(dim, narrow, kernel_size=1)
        self.fc2 = nn.Conv2d(narrow, dim, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, dim, h, w) to the same."""
        return x * self.weights(x.mean((2, 3), keepdim=True))

    def weights(self, means: Tensor) -> Tensor:
        """Means of channels (batch, dim, 1, 1) to weights in (0, 1) of the same shape."""
        return self.fc2(F.relu(self.fc1(means))).sigmoid()


class ChannelMixer(nn.Module):
    """Two 1x1 convolutions with GELU in between; the caller adds the input."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(dim, MLP_RATIO * dim)
        self.conv2 = ConvNorm(MLP_RATIO * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, dim, h, w) to the same."""
        return self.conv2(F.gelu(self.conv1(x)))


class RepVitBlock(nn.Module):
    """Mixes neighbouring cells, then channels (figure 4)."""

    def __init__(self, dim: int, *, has_excitation: bool) -> None:
        super().__init__()
        self.token_mixer = TokenMixer(dim)
        self.se = SqueezeExcite(dim) if has_excitation else nn.Identity()
        self.channel_mixer = ChannelMixer(dim)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, dim, h, w) to the same."""
        x = self.se(self.token_mixer(x))
        return x + self.channel_mixer(x)


class Downsample(nn.Module):
    """Halves the map and widens the channels, between a block and an MLP (section 3.3, "deeper downsampling")."""

    def __init__(self, dim_in: int, dim: int) -> None:
        super().__init__()
        self.pre_block = RepVitBlock(dim_in, has_excitation=False)
        self.spatial_downsample = ConvNorm(dim_in, dim_in, kernel=3, stride=2, groups=dim_in)
        self.channel_downsample = ConvNorm(dim_in, dim)
        self.ffn = ChannelMixer(dim)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, dim_in, h, w) to (batch, dim, h / 2, w / 2)."""
        x = self.channel_downsample(self.spatial_downsample(self.pre_block(x)))
        return x + self.ffn(x)


class Stem(nn.Module):
    """Two strided convolutions (section 3.3, "early convolutions")."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(3, dim // 2, kernel=3, stride=2)
        self.conv2 = ConvNorm(dim // 2, dim, kernel=3, stride=2)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """(batch, 3, height, width) to (batch, dim, height / 4, width / 4)."""
        return self.conv2(F.gelu(self.conv1(pixel_values)))


class Stage(nn.Module):
    """Blocks at one stride. Every other block has a squeeze-and-excitation (section 3.4), the first included."""

    def __init__(self, dim_in: int, dim: int, depth: int, *, halves: bool) -> None:
        super().__init__()
        self.downsample = Downsample(dim_in, dim) if halves else nn.Identity()
        self.blocks = nn.Sequential(*(RepVitBlock(dim, has_excitation=index % 2 == 0) for index in range(depth)))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, dim_in, h, w) to (batch, dim, h', w'), halved in all stages but the first."""
        return self.blocks(self.downsample(x))


class RepVit(nn.Module):
    """Four stages at strides 4, 8, 16 and 32."""

    def __init__(self, config: RepVitConfig) -> None:
        super().__init__()
        dims = config.embed_dim_per_stage
        self.stem = Stem(dims[0])
        widths = zip((dims[0], *dims), dims, config.blocks_per_stage, strict=False)
        for stage, (dim_in, dim, depth) in enumerate(widths):
            self.add_module(f"stages_{stage}", Stage(dim_in, dim, depth, halves=stage > 0))

    @property
    def stages(self) -> list[Stage]:
        """Stages, from fine to coarse."""
        return [module for module in self.children() if isinstance(module, Stage)]

    def forward(self, pixel_values: Tensor) -> list[Tensor]:
        """(batch, 3, height, width) to the map after each stage, (batch, dim, h, w), finest first."""
        x, maps = self.stem(pixel_values), []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


class RepVitTrunk(nn.Module):
    """RepViT with the interface of Hiera. In model folders its tensors stand under the name ``timm_model``."""

    def __init__(self, config: RepVitConfig) -> None:
        super().__init__()
        self.timm_model = RepVit(config)

    def forward(self, pixel_values: Tensor) -> list[Tensor]:
        """(batch, 3, height, width) to four maps (batch, h, w, dim), finest first."""
        return [x.permute(0, 2, 3, 1) for x in self.timm_model(pixel_values)]
