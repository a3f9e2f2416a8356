"""The numbers of a SAM 2 network: frozen dataclasses, validated, nothing else.

A field exists because models in use differ in it. What never varies is a constant in its layer, and what follows
from other fields is a property. Fields are named as in the ``config.json`` of a model folder; how they nest there is
known to ``checkpoints`` alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any

from masklet.errors import ConfigError
from masklet.numbers import shown

SizeHW = tuple[int, int]
"""(height, width) in pixels."""

STRIDES = (4, 8, 16)
"""Pixels per cell of the maps that leave the image encoder, finest first."""

STRIDE = STRIDES[-1]
"""Pixels per cell of the coarsest of them, the one that is prompted and remembered."""

SIDE_MULTIPLE = 32
"""Sides of the network's input are multiples of this: the deepest Hiera stage has stride 32."""

NUM_MULTIMASK_OUTPUTS = 3
"""Candidates for an ambiguous prompt (whole, part, subpart). SAM, section 3, "resolving ambiguity"."""

BACKGROUND, FOREGROUND, BOX_TOP_LEFT, BOX_BOTTOM_RIGHT = 0, 1, 2, 3
"""Labels of points."""
NOT_A_POINT = -1
"""Label of "not a point", for which the network has a learned embedding."""
PADDING = -10
"""Label that pads ragged lists of points, and coordinate that pads ragged boxes; nothing attends to it."""

LARGEST = 2**16
"""Limit of any number in a configuration. A damaged file may ask for more than fits in memory."""
MOST_LAYERS = 1000
"""Limit of the number of layers of one kind."""


@dataclass(frozen=True, kw_only=True)
class Sam2ImageEncoderConfig:
    """Hiera trunk (arXiv 2306.00989). The default is SAM 2's tiny."""

    hidden_size: int = 96
    """Channels of the first stage; they double at each further one."""
    num_attention_heads: int = 1
    """Heads of the first stage; they double at each further one."""
    blocks_per_stage: tuple[int, ...] = (1, 2, 7, 2)
    """Blocks per stage, strides 4, 8, 16, 32."""
    global_attention_blocks: tuple[int, ...] = (5, 7, 9)
    """Blocks, counted through all stages, that see the whole map instead of a window."""
    window_size_per_stage: tuple[int, ...] = (8, 4, 14, 7)
    """Side of the attention windows of each stage, in cells."""
    window_positional_embedding_background_size: tuple[int, int] = (7, 7)
    """(height, width) of the learned position grid that is stretched over the map."""
    hidden_act: str = "gelu"
    """Activation of the MLPs: gelu or relu."""

    def __post_init__(self) -> None:
        for name in ("blocks_per_stage", "global_attention_blocks", "window_size_per_stage"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        grid = tuple(self.window_positional_embedding_background_size)
        object.__setattr__(self, "window_positional_embedding_background_size", grid)
        _check_positive(self, "hidden_size", "num_attention_heads", "blocks_per_stage", "window_size_per_stage")
        _check_activation(self.hidden_act)
        for name in ("blocks_per_stage", "window_size_per_stage"):
            if len(getattr(self, name)) != 4:
                raise ConfigError(f"{name} is {getattr(self, name)}: expected four numbers, one for each stage")
        if len(grid) != 2 or not all(type(side) is int and 1 <= side <= LARGEST for side in grid):
            raise ConfigError(f"window_positional_embedding_background_size is {grid}: expected (height, width) >= 1")
        if odd := [window for window in self.window_size_per_stage[:3] if window % 2]:
            raise ConfigError(
                f"window_size_per_stage has {odd[0]}: expected even sizes in all stages but the last, since windows "
                "are halved where the map is"
            )
        if self.hidden_size % self.num_attention_heads:
            raise ConfigError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.num_attention_heads}"
            )
        total = sum(self.blocks_per_stage)
        if total > MOST_LAYERS:
            raise ConfigError(f"blocks_per_stage is {self.blocks_per_stage}: expected {MOST_LAYERS} blocks at most")
        if outside := [
            block for block in self.global_attention_blocks if type(block) is not int or not 0 <= block < total
        ]:
            raise ConfigError(
                f"global attention block {shown(outside[0])} does not exist: {self.blocks_per_stage} makes {total} "
                "blocks, counted from 0"
            )

    @property
    def embed_dim_per_stage(self) -> tuple[int, ...]:
        """Channels of each stage."""
        return tuple(self.hidden_size * 2**stage for stage in range(4))

    @property
    def num_attention_heads_per_stage(self) -> tuple[int, ...]:
        """Heads of each stage."""
        return tuple(self.num_attention_heads * 2**stage for stage in range(4))


@dataclass(frozen=True, kw_only=True)
class RepVitConfig:
    """RepViT trunk (arXiv 2307.09283), EdgeTAM's. The default is RepViT-M1."""

    embed_dim_per_stage: tuple[int, ...] = (48, 96, 192, 384)
    """Channels of each stage, strides 4, 8, 16, 32."""
    blocks_per_stage: tuple[int, ...] = (2, 2, 14, 2)
    """Blocks of each stage."""

    def __post_init__(self) -> None:
        for name in ("embed_dim_per_stage", "blocks_per_stage"):
            object.__setattr__(self, name, numbers := tuple(getattr(self, name)))
            if len(numbers) != 4:
                raise ConfigError(f"{name} is {numbers}: expected four numbers, one for each stage")
        _check_positive(self, "embed_dim_per_stage", "blocks_per_stage")
        if self.embed_dim_per_stage[0] % 2:
            raise ConfigError(f"embed_dim_per_stage is {self.embed_dim_per_stage}: expected an even number first")
        if sum(self.blocks_per_stage) > MOST_LAYERS:
            raise ConfigError(f"blocks_per_stage is {self.blocks_per_stage}: expected {MOST_LAYERS} blocks at most")


@dataclass(frozen=True, kw_only=True)
class SpatialPerceiverConfig:
    """2-D spatial perceiver (EdgeTAM, section 3.2): the tokens that a memory map is reduced to."""

    num_latents: int = 256
    """Global latents, each of which attends to the whole map."""
    num_latents_2d: int = 256
    """Latents that each attend to a window: a square number, the windows of a square grid."""

    def __post_init__(self) -> None:
        _check_positive(self, "num_latents", "num_latents_2d")
        if self.side**2 != self.num_latents_2d:
            raise ConfigError(f"num_latents_2d is {self.num_latents_2d}: expected a square number")

    @property
    def num_tokens(self) -> int:
        """Latents of both kinds."""
        return self.num_latents + self.num_latents_2d

    @property
    def side(self) -> int:
        """Side of the grid of windows."""
        return math.isqrt(self.num_latents_2d)

    def check_input(self, size_hw: SizeHW) -> None:
        """Raise a ConfigError unless the memory of an input of this size, in pixels, can be divided into windows."""
        if any(pixels % (self.side * STRIDE) for pixels in size_hw):
            raise ConfigError(
                f"the network's input is {size_hw[0]} x {size_hw[1]} pixels: expected sides that are multiples of "
                f"{self.side * STRIDE} for videos, since EdgeTAM divides its memory into {self.side} x {self.side} "
                "windows. Images have no such limit"
            )


@dataclass(frozen=True, kw_only=True)
class Sam2PromptEncoderConfig:
    """Prompt encoder (SAM, section 3)."""

    mask_input_channels: int = 16
    """Channels of a mask prompt before its last projection."""
    hidden_act: str = "gelu"
    """Activation between the convolutions of a mask prompt: gelu or relu."""

    def __post_init__(self) -> None:
        _check_positive(self, "mask_input_channels")
        if self.mask_input_channels % 4:
            raise ConfigError(f"mask_input_channels is {self.mask_input_channels}: expected a multiple of 4")
        _check_activation(self.hidden_act)


@dataclass(frozen=True, kw_only=True)
class Sam2MaskDecoderConfig:
    """Mask decoder (SAM, appendix A; SAM 2, section 4)."""

    mlp_dim: int = 2048
    """Width of the token MLPs."""
    num_attention_heads: int = 8
    """Heads of every attention in the decoder."""
    dynamic_multimask_via_stability: bool = True
    """Where the single mask would change much with its cut-off, use the best of three instead (SAM 2, appendix C)."""

    def __post_init__(self) -> None:
        _check_positive(self, "mlp_dim", "num_attention_heads")


@dataclass(frozen=True, kw_only=True)
class Sam2MemoryAttentionConfig:
    """Memory attention (SAM 2, section 4)."""

    num_layers: int = 4
    """Layers of self-attention, cross-attention to memory and MLP."""
    feed_forward_hidden_size: int = 2048
    """Width of the MLPs."""

    def __post_init__(self) -> None:
        _check_positive(self, "num_layers", "feed_forward_hidden_size")
        if self.num_layers > MOST_LAYERS:
            raise ConfigError(f"num_layers is {self.num_layers}: expected {MOST_LAYERS} at most")


@dataclass(frozen=True, kw_only=True)
class Sam2MemoryEncoderConfig:
    """Memory encoder (SAM 2, section 4)."""

    output_channels: int = 64
    """Channels of a stored memory; object pointers are split into tokens of this width."""

    def __post_init__(self) -> None:
        _check_positive(self, "output_channels")
        if self.output_channels % 4:
            raise ConfigError(f"output_channels is {self.output_channels}: expected a multiple of 4")


@dataclass(frozen=True, kw_only=True)
class Sam2EverythingConfig:
    """Thresholds of automatic masks that suit the weights; the defaults suit published checkpoints. SAM, appendix B."""

    iou_threshold: float = 0.8
    """Masks are kept if their predicted IoU is above this."""
    stability_threshold: float = 0.95
    """Masks are kept if their stability score is at least this."""

    def __post_init__(self) -> None:
        for threshold in fields(self):
            value = getattr(self, threshold.name)
            if not isinstance(value, int | float) or not 0 <= value <= 1:
                raise ConfigError(f"{threshold.name} is {value!r}: expected a number, 0 to 1")


@dataclass(frozen=True, kw_only=True)
class Sam2Config:
    """A whole SAM 2 network. The default is SAM 2.1 tiny; for EdgeTAM see ``edgetam_config``."""

    image_size: int = 1024
    """Side of the square input, in pixels, that the weights were trained at; other sizes run too."""
    hidden_size: int = 256
    """Channels of the image embedding, the tokens and the memory attention."""
    num_maskmem: int = 7
    """Memories that are read: the prompted frames count as one, the rest are the last tracked frames."""
    is_v2_1: bool = True
    """SAM 2.1's two additions: an embedding for occluded objects, and positions in time for object pointers."""
    has_memory: bool = True
    """Whether it can track objects through videos; checkpoints of the image half alone exist."""
    image_encoder: Sam2ImageEncoderConfig | RepVitConfig = field(default_factory=Sam2ImageEncoderConfig)
    prompt_encoder: Sam2PromptEncoderConfig = field(default_factory=Sam2PromptEncoderConfig)
    mask_decoder: Sam2MaskDecoderConfig = field(default_factory=Sam2MaskDecoderConfig)
    memory_attention: Sam2MemoryAttentionConfig = field(default_factory=Sam2MemoryAttentionConfig)
    memory_encoder: Sam2MemoryEncoderConfig = field(default_factory=Sam2MemoryEncoderConfig)
    # Not in repr, from which fingerprints are made: files that were saved with a SAM 2 still fit it.
    perceiver: SpatialPerceiverConfig | None = field(default=None, repr=False)
    """What reduces memory maps to tokens in EdgeTAM; None in SAM 2, which keeps whole maps."""
    everything: Sam2EverythingConfig = field(default_factory=Sam2EverythingConfig)

    def __post_init__(self) -> None:
        _check_positive(self, "image_size", "hidden_size", "num_maskmem")
        if self.image_size % SIDE_MULTIPLE:
            raise ConfigError(f"image_size is {self.image_size}: expected a multiple of {SIDE_MULTIPLE} pixels")
        # The decoder's attention halves the width and splits it into heads; its upscaling goes down to an eighth.
        heads = self.mask_decoder.num_attention_heads
        if self.hidden_size % (2 * heads) or self.hidden_size % 8:
            raise ConfigError(
                f"hidden_size is {self.hidden_size}: expected a multiple of 8 and of twice the {heads} decoder heads"
            )
        if self.has_memory and self.hidden_size % self.memory_encoder.output_channels:
            raise ConfigError(
                f"hidden_size {self.hidden_size} is not a multiple of the memory's "
                f"{self.memory_encoder.output_channels} channels"
            )
        if isinstance(self.image_encoder, RepVitConfig) != self.is_edgetam:
            raise ConfigError(
                f"image_encoder is a {type(self.image_encoder).__name__} and perceiver is {self.perceiver}: expected "
                "RepVitConfig and SpatialPerceiverConfig (EdgeTAM), or Sam2ImageEncoderConfig and None (SAM 2)"
            )

    @property
    def is_edgetam(self) -> bool:
        """Whether it is an EdgeTAM."""
        return self.perceiver is not None

    def tokens_per_memory(self, map_hw: SizeHW) -> int:
        """Tokens of the spatial memory of one frame, whose image embedding has this (h, w)."""
        return math.prod(map_hw) if self.perceiver is None else self.perceiver.num_tokens


def edgetam_config(**fields: Any) -> Sam2Config:
    """The configuration of EdgeTAM (arXiv 2501.07256), as published.

    Args:
        fields: Fields of ``Sam2Config`` that differ from it.
    """
    published: dict[str, Any] = {
        "is_v2_1": False,
        "image_encoder": RepVitConfig(),
        "memory_attention": Sam2MemoryAttentionConfig(num_layers=2),
        "perceiver": SpatialPerceiverConfig(),
    }
    return Sam2Config(**(published | fields))


def _check_positive(config: Any, *names: str) -> None:
    assert set(names) <= {f.name for f in fields(config)}
    for name in names:
        value = getattr(config, name)
        numbers = value if isinstance(value, tuple) else (value,)
        if not all(type(number) is int and number >= 1 for number in numbers):
            raise ConfigError(f"{name} is {shown(value)}: expected whole numbers >= 1")
        if max(numbers, default=1) > LARGEST:
            raise ConfigError(f"{name} is {shown(value)}: expected {LARGEST} at most")


def _check_activation(name: Any) -> None:
    if name not in ("gelu", "relu"):
        raise ConfigError(f"hidden_act is {name!r}: expected gelu or relu")
