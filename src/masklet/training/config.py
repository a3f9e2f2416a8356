"""The configuration of a training run: frozen dataclasses that validate themselves."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from masklet.config import SIDE_MULTIPLE, Sam2Config
from masklet.errors import ConfigError
from masklet.training.data_config import DataConfig, as_number, path_as_text
from masklet.training.losses import LossWeights
from masklet.training.parameter_groups import COMPONENTS, TRAINABLE
from masklet.training.prompts import PromptRates

TRACKERS = ("tensorboard", "wandb")
PRECISIONS = ("auto", "bfloat16", "float16", "float32")
RANGES: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "seed": (lambda value: value >= 0, "a whole number >= 0"),
    "learning_rate": (lambda value: 0 < value < math.inf, "a number > 0"),
    "layer_decay": (lambda value: 0 < value <= 1, "a number above 0, up to 1"),
    "warmup_steps": (lambda value: value >= 0, "a whole number >= 0"),
    "weight_decay": (lambda value: 0 <= value < math.inf, "a number >= 0"),
    "max_gradient_norm": (lambda value: value > 0, "a number > 0"),
    "ema_decay": (lambda value: 0 <= value < 1, "a number from 0 to below 1"),
    "cache_gb": (lambda value: value >= 0, "a number >= 0"),
}
"""For fields of a run: a check of the value, and what to expect."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stage of training: steps at one input size, on images or on clips."""

    steps: int
    """Number of optimizer steps."""
    input_size: int = 0
    """Height and width of the network's input, in pixels; 0 for the model's own."""
    batch_size: int = 4
    """Number of images or clips in a batch."""
    objects: int = 4
    """Number of objects prompted in each image or clip: a random choice of them, with repeats if there are fewer."""
    rounds: int = 8
    """Number of decodings of each object: the first prompt, then one correction click per round. The papers correct
    7 times."""
    frames: int = 1
    """Frames of a clip. Objects are prompted in the first frame and tracked through the others. 1 for images."""
    image_steps: float = 0.0
    """Share of the steps of a stage on clips that are on images instead, evenly spread: SAM 2 is trained on both."""
    image_batch_size: int = 0
    """Number of images in the batch of such a step; 0 for ``batch_size``."""
    train: str = "everything"
    """Weights to train: ``everything``, ``frozen_encoder`` (all but the image encoder), ``decoder``, ``memory`` or
    ``lora`` (adapters)."""
    losses: LossWeights = field(default_factory=LossWeights)
    """Weights of the losses; by default those of the papers."""
    prompts: PromptRates | None = None
    """Rates of first prompts; those of the papers if None."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "objects", "rounds", "frames"):
            if not isinstance(value := getattr(self, name), int) or value < 1:
                raise ConfigError(f"{name} of a training stage is {value!r}: expected a whole number >= 1")
        self._check_image_steps()
        if self.input_size < 0 or self.input_size % SIDE_MULTIPLE:
            raise ConfigError(f"input_size of a training stage is {self.input_size}: not a multiple of {SIDE_MULTIPLE}")
        if self.train not in TRAINABLE:
            raise ConfigError(f"train of a training stage is {self.train!r}: expected one of {', '.join(TRAINABLE)}")

    def _check_image_steps(self) -> None:
        if not 0 <= self.image_steps < 1 or (self.image_steps and (self.frames == 1 or self.train == "memory")):
            raise ConfigError(
                f"image_steps of a training stage is {self.image_steps!r}: expected a share from 0 to below 1, in a "
                "stage on clips (frames above 1) that trains more than the memory"
            )
        if self.image_batch_size < 0 or (self.image_batch_size and not self.image_steps):
            raise ConfigError(
                f"image_batch_size of a training stage is {self.image_batch_size!r}: expected a whole number >= 0, "
                "with image_steps above 0"
            )

    @property
    def on_images(self) -> Stage:
        """This stage in a step on images."""
        size = self.image_batch_size or self.batch_size
        return replace(self, frames=1, batch_size=size, image_steps=0.0, image_batch_size=0)

    def image_steps_before(self, step: int) -> int:
        """How many of the stage's first ``step`` steps are on images."""
        return step if self.frames == 1 else int(step * self.image_steps + 1e-9)

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """The sizes of its batches."""
        return (self.batch_size, self.on_images.batch_size) if self.image_steps else (self.batch_size,)

    @property
    def prompt_rates(self) -> PromptRates:
        """Rates of first prompts."""
        default = PromptRates(click=0.25, box=0.25, mask=0.5) if self.frames > 1 else PromptRates()
        return self.prompts or default


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank adapters (arXiv 2106.09685): small matrices trained beside frozen ones, and merged into them on save."""

    rank: int = 8
    """Rank of each adapter."""
    alpha: int = 16
    """Adapters are scaled by ``alpha / rank``."""
    targets: tuple[str, ...] = ("vision_encoder.*.attn.*",)
    """Patterns of the names of linear layers; ``*`` matches anything."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "targets", _names(self.targets))
        if not self.targets:
            raise ConfigError(
                "lora has no targets: expected patterns of layer names; without the field, the encoder's attention"
            )
        if not isinstance(self.rank, int) or self.rank < 1:
            raise ConfigError(f"rank of lora is {self.rank!r}: expected a whole number >= 1")


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """All settings of a training run."""

    model: Sam2Config | str | os.PathLike[str] = "nano"
    """Model to start from (a name, a folder or a ``.pt`` file), or the configuration of a network to train from
    scratch."""
    data: DataConfig | tuple[DataConfig, ...] | None = None
    """Data to train on, or several data sets with weights; None if ``Run`` is given examples."""
    stages: tuple[Stage, ...]
    """Stages, in order."""
    seed: int = 0
    """Seed of the initial weights, the order of images, and prompts."""
    learning_rate: float = 1e-4
    """Peak learning rate, reached after the warm-up. It then falls to zero along a cosine of the pixels processed."""
    rates: Mapping[str, float] = field(default_factory=dict)
    """Factors on the learning rate by component: image_encoder, prompt_encoder, mask_decoder, object_score, memory."""
    layer_decay: float = 1.0
    """Ratio of the learning rates of a block of the image encoder and the block after it."""
    warmup_steps: int = 20
    """Steps in which the learning rate rises linearly from zero."""
    weight_decay: float = 0.01
    """Weight decay of matrices."""
    max_gradient_norm: float = 1.0
    """Norm to which longer gradients are clipped."""
    ema_decay: float = 0.99
    """Decay of the moving average of the weights, which is validated and saved; 0 uses the weights themselves."""
    micro_batches: int = 1
    """Equal parts into which a batch is split. Their gradients add up; several processes share them."""
    precision: str = "auto"
    """Precision of matrix products: ``bfloat16``, ``float16``, ``float32``, or ``auto`` for the best that the device
    has. Weights and losses stay in float32."""
    compile: bool = False
    """Compile the image encoder with ``torch.compile``: a minute or more at the start, then faster steps on GPUs."""
    checkpoint_activations: bool = False
    """Recompute the activations of blocks in the backward pass: less memory, about a third more time."""
    lora: LoraConfig | None = None
    """Adapters; they are trained in every stage."""
    workers: int = 2
    """Number of processes that read data and prepare batches; of threads for examples of your own."""
    save_every: int = 200
    """Steps between saves of the state, from which a run resumes, and of the model ``last``."""
    validate_every: int = 200
    """Steps between validations."""
    validation_objects: int = 200
    """Maximum number of objects to validate on."""
    store_float16: bool = False
    """Save models in float16, at half the size."""
    cache: str | os.PathLike[str] | None = None
    """Folder for the features of a frozen image encoder, so that each image is encoded once."""
    cache_gb: float = 20.0
    """Maximum size of that folder, in gigabytes."""
    trackers: tuple[str, ...] = ()
    """Experiment trackers to log to, in addition to the log file: ``tensorboard``, ``wandb``."""
    tracker_project: str = "masklet"
    """Project of the trackers."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "stages", tuple(self.stages))
        object.__setattr__(self, "trackers", _names(self.trackers))
        if not isinstance(self.model, Sam2Config):
            path_as_text(self, "model")
        path_as_text(self, "cache")
        if not self.stages:
            raise ConfigError("the run has no stages: expected at least one, such as {steps: 500}")
        self._check_choices()
        for name in ("micro_batches", "workers", "save_every", "validate_every", "validation_objects"):
            if not isinstance(value := getattr(self, name), int) or value < 1:
                raise ConfigError(f"{name} is {value!r}: expected a whole number >= 1")
        self._check_ranges()
        for stage in self.stages:
            if odd := [size for size in stage.batch_sizes if size % self.micro_batches]:
                raise ConfigError(
                    f"a batch_size of {odd[0]} cannot be split into {self.micro_batches} equal micro_batches"
                )
            if stage.train == "lora" and self.lora is None:
                raise ConfigError("a stage trains lora, but lora is not configured: add lora: {rank: 8}")
        if isinstance(self.model, Sam2Config):
            self.for_network(self.model)

    def _check_ranges(self) -> None:
        for name, (is_valid, expected) in RANGES.items():
            if not is_valid(value := getattr(self, name)):
                raise ConfigError(f"{name} is {value!r}: expected {expected}")
        rates = {name: as_number(rate, f"{name} of rates") for name, rate in self.rates.items()}
        if wrong := [name for name, rate in rates.items() if not 0 <= rate < math.inf]:
            raise ConfigError(f"{wrong[0]} of rates is {rates[wrong[0]]!r}: expected a number >= 0")
        object.__setattr__(self, "rates", rates)

    def _check_choices(self) -> None:
        for name in self.rates:
            if name not in COMPONENTS:
                raise ConfigError(f"rates name {name!r}: expected one of {', '.join(COMPONENTS)}")
        for name in self.trackers:
            if name not in TRACKERS:
                raise ConfigError(f"trackers name {name!r}: expected one of {', '.join(TRACKERS)}")
        if self.precision not in PRECISIONS:
            raise ConfigError(f"precision is {self.precision!r}: expected one of {', '.join(PRECISIONS)}")
        for data in self.data_sets:
            if self.cache is not None and (names := data.augment.unrepeatable):
                raise ConfigError(
                    f"cache stores the features of each image and its mirror image, but augment has {', '.join(names)}"
                    ", which make every image new: remove cache, or these augmentations"
                )

    def for_network(self, network: Sam2Config) -> TrainingConfig:
        """The same settings, with the network's own input size in stages that set none.

        Raises:
            ConfigError: A stage trains on clips, but the network has no memory, or not at its input size.
        """
        if not network.has_memory and any(stage.frames > 1 or stage.train == "memory" for stage in self.stages):
            raise ConfigError("a training stage is on clips, but the network has no memory to track objects with")
        stages = tuple(replace(stage, input_size=stage.input_size or network.image_size) for stage in self.stages)
        for stage in stages:
            if stage.frames > 1 and network.perceiver is not None:
                network.perceiver.check_input((stage.input_size, stage.input_size))
        return replace(self, stages=stages) if stages != self.stages else self

    @property
    def data_sets(self) -> tuple[DataConfig, ...]:
        """The data sets, however many there are."""
        if self.data is None:
            return ()
        return (self.data,) if isinstance(self.data, DataConfig) else self.data

    @property
    def steps(self) -> int:
        """Number of steps of all stages."""
        return sum(stage.steps for stage in self.stages)

    def stage_at(self, step: int) -> Stage:
        """The stage of step ``step``, counted from 0; in a step on images of a stage on clips, its ``on_images``.

        Raises:
            IndexError: The run has no such step.
        """
        for stage in self.stages:
            if step < stage.steps:
                is_mixed = stage.image_steps > 0
                on_images = is_mixed and stage.image_steps_before(step + 1) > stage.image_steps_before(step)
                return stage.on_images if on_images else stage
            step -= stage.steps
        raise IndexError("the run has ended before this step")

    def examples_before(self, step: int, *, on_images: bool) -> int:
        """Number of images, or of clips, in the batches before step ``step``."""
        examples = 0
        for stage in self.stages:
            done = min(max(step, 0), stage.steps)
            images = stage.image_steps_before(done)
            examples += images * stage.on_images.batch_size if on_images else (done - images) * stage.batch_size
            step -= stage.steps
        return examples

    def progress(self, step: int) -> float:
        """Share of the run's pixels in the batches before step ``step``, 0 to 1: roughly the share of its time."""
        processed, total = 0.0, 0.0
        for stage in self.stages:
            share = stage.image_steps
            images = share * stage.on_images.batch_size + (1 - share) * stage.batch_size * stage.frames
            pixels = images * stage.input_size**2
            processed += pixels * min(max(step, 0), stage.steps)
            total += pixels * stage.steps
            step -= stage.steps
        return processed / total


def _names(values: Any) -> tuple[str, ...]:
    """A list of names, or a single name without a list."""
    return (values,) if isinstance(values, str) else tuple(values)
