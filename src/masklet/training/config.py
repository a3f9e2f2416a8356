"""The numbers of a training run, read from YAML: frozen dataclasses, validated, nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from masklet.config import (
    SIDE_MULTIPLE,
    Sam2Config,
    Sam2ImageEncoderConfig,
    Sam2MaskDecoderConfig,
    Sam2MemoryAttentionConfig,
    Sam2MemoryEncoderConfig,
    Sam2PromptEncoderConfig,
)
from masklet.errors import ConfigError

PARTS = {
    "image_encoder": Sam2ImageEncoderConfig,
    "prompt_encoder": Sam2PromptEncoderConfig,
    "mask_decoder": Sam2MaskDecoderConfig,
    "memory_attention": Sam2MemoryAttentionConfig,
    "memory_encoder": Sam2MemoryEncoderConfig,
}


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stretch of training at one input size, on pictures or on clips."""

    image_size: int
    """Height and width of the pictures, in pixels."""
    steps: int
    """Optimizer steps."""
    pictures: int
    """Pictures in a batch, or clips."""
    objects: int
    """Prompted objects in each picture or clip."""
    rounds: int
    """Decodings of each object: the first prompt, then one correction click a round."""
    frames: int = 1
    """Of a clip, whose objects are prompted in the first and followed through the others; 1 for pictures."""
    focal_weight: float
    """Of the focal loss. The papers' 20 invites a network that knows nothing to call all background."""

    def __post_init__(self) -> None:
        for name in ("image_size", "steps", "pictures", "objects", "rounds", "frames"):
            if not isinstance(value := getattr(self, name), int) or value < 1:
                raise ConfigError(f"{name} of a training stage is {value!r}: expected a whole number >= 1")
        if self.image_size % SIDE_MULTIPLE:
            raise ConfigError(f"image_size of a training stage is {self.image_size}: not a multiple of {SIDE_MULTIPLE}")
        if self.frames > 1 and self.rounds > 1:
            raise ConfigError(f"rounds of a training stage on clips is {self.rounds}: expected 1, nothing is corrected")


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Everything a run is made of but its data."""

    model: Sam2Config
    """The network."""
    geometry_steps: int
    """Steps of the lesson before the first picture."""
    stages: tuple[Stage, ...]
    """In order; small pictures first, as many of them are seen in the time of a large one."""
    seed: int
    """Of the first weights, the pictures and the prompts."""
    learning_rate: float
    """At its height, after the warm-up; then it falls to zero along a cosine of the pixels seen."""
    warmup_steps: int
    """Steps in which the learning rate rises from zero."""
    weight_decay: float
    """AdamW's, on matrices."""
    max_gradient_norm: float
    """Longer gradients are shortened to this."""
    ema_decay: float
    """Of the running mean of the weights, which is what is kept."""
    bfloat16: bool
    """Multiply in bfloat16; weights and losses stay float32."""

    def __post_init__(self) -> None:
        if any(stage.frames > 1 for stage in self.stages) and not self.model.has_memory:
            raise ConfigError("a training stage is on clips, but the network has no memory to follow objects with")

    @property
    def steps(self) -> int:
        """Of all stages."""
        return sum(stage.steps for stage in self.stages)

    def stage_of(self, step: int) -> Stage:
        """The stage that step ``step``, counted from 0, belongs to."""
        for stage in self.stages:
            if step < stage.steps:
                return stage
            step -= stage.steps
        raise IndexError("the run has ended before this step")

    def progress(self, step: int) -> float:
        """Share of the run's pixels that were seen before step ``step``: 0 to 1, roughly the share of its time."""
        seen, total = 0, 0
        for stage in self.stages:
            pixels = stage.pictures * stage.frames * stage.image_size**2
            seen += pixels * min(max(step, 0), stage.steps)
            total += pixels * stage.steps
            step -= stage.steps
        return seen / total


def read_config(path: Path) -> TrainingConfig:
    """Read a run's YAML file.

    Raises:
        ConfigError: A number is missing, unknown or impossible.
    """
    try:
        values: dict[str, Any] = yaml.safe_load(path.read_text())
        model = {name: PARTS[name](**value) if name in PARTS else value for name, value in values.pop("model").items()}
        stages = tuple(Stage(**stage) for stage in values.pop("stages"))
        return TrainingConfig(model=Sam2Config(**model), stages=stages, **values)
    except (TypeError, KeyError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} is no training configuration: {error}") from error
