"""The configuration of a training run, read from YAML: frozen dataclasses that validate themselves."""

from __future__ import annotations

import dataclasses
import difflib
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import yaml

from masklet.config import (
    SIDE_MULTIPLE,
    Sam2Config,
    Sam2EverythingConfig,
    Sam2ImageEncoderConfig,
    Sam2MaskDecoderConfig,
    Sam2MemoryAttentionConfig,
    Sam2MemoryEncoderConfig,
    Sam2PromptEncoderConfig,
)
from masklet.errors import ConfigError
from masklet.training.losses import LossWeights
from masklet.training.parameter_groups import COMPONENTS, TRAINABLE
from masklet.training.prompts import PromptRates

NETWORK_CONFIGS = {
    "image_encoder": Sam2ImageEncoderConfig,
    "prompt_encoder": Sam2PromptEncoderConfig,
    "mask_decoder": Sam2MaskDecoderConfig,
    "memory_attention": Sam2MemoryAttentionConfig,
    "memory_encoder": Sam2MemoryEncoderConfig,
    "everything": Sam2EverythingConfig,
}
LAYOUTS = ("folder", "coco", "sa1b", "videos", "sav")
TRACKERS = ("tensorboard", "wandb")
CHANGEABLE = ("workers", "save_every", "validate_every", "trackers", "cache", "cache_gb")
"""Fields that do not affect the weights, so a resumed run may change them."""
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
class DataConfig:
    """Where images or videos and their masks are."""

    layout: str
    """``folder``, ``coco``, ``sa1b``, ``videos`` (DAVIS, YouTube-VOS) or ``sav``; see ``masklet.training.data``."""
    path: str | os.PathLike[str]
    """Folder of the images or videos."""
    annotations: str | os.PathLike[str] | None = None
    """JSON file of the layout ``coco``."""
    split_masks: bool = False
    """Treat every connected component of a label as an object of its own: for masks of classes."""
    flip: bool = True
    """Mirror half of the images and clips."""
    validation: float | DataConfig = 0.1
    """Share of the images or videos, chosen by name, to validate on instead of training; or other data for that."""

    def __post_init__(self) -> None:
        _path_as_text(self, "path", "annotations")
        if self.layout not in LAYOUTS:
            raise ConfigError(f"data has layout {self.layout!r}: expected one of {', '.join(LAYOUTS)}")
        if (self.layout == "coco") != (self.annotations is not None):
            raise ConfigError(
                f"data of layout {self.layout}: annotations, a JSON file, are for layout coco, which needs them"
            )
        if self.split_masks and self.layout != "folder":
            raise ConfigError(f"data of layout {self.layout}: split_masks is for layout folder only")
        if not isinstance(self.validation, DataConfig) and not 0 <= self.validation < 1:
            raise ConfigError(f"data has validation {self.validation!r}: expected a share from 0 to 1, or data")


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
        if self.input_size < 0 or self.input_size % SIDE_MULTIPLE:
            raise ConfigError(f"input_size of a training stage is {self.input_size}: not a multiple of {SIDE_MULTIPLE}")
        if self.train not in TRAINABLE:
            raise ConfigError(f"train of a training stage is {self.train!r}: expected one of {', '.join(TRAINABLE)}")

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
    data: DataConfig | None = None
    """Data to train on; None if ``Run`` is given examples."""
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
    bfloat16: bool = False
    """Compute matrix products in bfloat16; weights and losses stay in float32."""
    checkpoint_activations: bool = False
    """Recompute the activations of blocks in the backward pass: less memory, about a third more time."""
    lora: LoraConfig | None = None
    """Adapters; they are trained in every stage."""
    workers: int = 2
    """Number of threads that prepare batches."""
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

    def __post_init__(self) -> None:
        object.__setattr__(self, "stages", tuple(self.stages))
        object.__setattr__(self, "trackers", _names(self.trackers))
        if not isinstance(self.model, Sam2Config):
            _path_as_text(self, "model")
        _path_as_text(self, "cache")
        if not self.stages:
            raise ConfigError("the run has no stages: expected at least one, such as {steps: 500}")
        self._check_choices()
        for name in ("micro_batches", "workers", "save_every", "validate_every", "validation_objects"):
            if not isinstance(value := getattr(self, name), int) or value < 1:
                raise ConfigError(f"{name} is {value!r}: expected a whole number >= 1")
        self._check_ranges()
        for stage in self.stages:
            if stage.batch_size % self.micro_batches:
                raise ConfigError(
                    f"a batch_size of {stage.batch_size} cannot be split into {self.micro_batches} equal micro_batches"
                )
            if stage.train == "lora" and self.lora is None:
                raise ConfigError("a stage trains lora, but lora is not configured: add lora: {rank: 8}")
        if isinstance(self.model, Sam2Config):
            self.for_network(self.model)

    def _check_ranges(self) -> None:
        for name, (is_valid, expected) in RANGES.items():
            if not is_valid(value := getattr(self, name)):
                raise ConfigError(f"{name} is {value!r}: expected {expected}")
        rates = {name: _plain(rate, "float", f"{name} of rates") for name, rate in self.rates.items()}
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

    def for_network(self, network: Sam2Config) -> TrainingConfig:
        """The same settings, with the network's own input size in stages that set none.

        Raises:
            ConfigError: A stage trains on clips, but the network has no memory.
        """
        if not network.has_memory and any(stage.frames > 1 or stage.train == "memory" for stage in self.stages):
            raise ConfigError("a training stage is on clips, but the network has no memory to track objects with")
        stages = tuple(replace(stage, input_size=stage.input_size or network.image_size) for stage in self.stages)
        return replace(self, stages=stages) if stages != self.stages else self

    @property
    def steps(self) -> int:
        """Number of steps of all stages."""
        return sum(stage.steps for stage in self.stages)

    def stage_at(self, step: int) -> Stage:
        """The stage of step ``step``, counted from 0.

        Raises:
            IndexError: The run has no such step.
        """
        for stage in self.stages:
            if step < stage.steps:
                return stage
            step -= stage.steps
        raise IndexError("the run has ended before this step")

    def examples_before(self, step: int) -> int:
        """Number of images and clips in the batches before step ``step``."""
        examples = 0
        for stage in self.stages:
            examples += stage.batch_size * min(max(step, 0), stage.steps)
            step -= stage.steps
        return examples

    def progress(self, step: int) -> float:
        """Share of the run's pixels in the batches before step ``step``, 0 to 1: roughly the share of its time."""
        processed, total = 0, 0
        for stage in self.stages:
            pixels = stage.batch_size * stage.frames * stage.input_size**2
            processed += pixels * min(max(step, 0), stage.steps)
            total += pixels * stage.steps
            step -= stage.steps
        return processed / total


def read_config(path: Path, *, data: str | None = None, model: str | None = None) -> TrainingConfig:
    """Reads a YAML file.

    Args:
        path: The file.
        data: Overrides the ``path`` of the data.
        model: Overrides the model to start from.

    Raises:
        ConfigError: The file cannot be read, or a setting is missing, unknown or invalid.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the training configuration {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds {type(values).__name__}: expected names and values, such as model: nano")
    if data is not None:
        values["data"] = {**(values.get("data") or {}), "path": data}
    if model is not None:
        values["model"] = model
    try:
        return config_from(values)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def config_from(values: Mapping[str, Any]) -> TrainingConfig:
    """A configuration from plain values, nested as in YAML.

    Raises:
        ConfigError: A setting is missing, unknown or invalid.
    """
    values = dict(values)
    if isinstance(model := values.get("model"), Mapping):
        nested = {n: _make(NETWORK_CONFIGS[n], v, n) if n in NETWORK_CONFIGS else v for n, v in model.items()}
        values["model"] = _make(Sam2Config, nested, "model")
    if values.get("data") is not None and not isinstance(values["data"], DataConfig):
        values["data"] = _data_from(values["data"])
    if values.get("lora") is not None:
        values["lora"] = _make(LoraConfig, values["lora"], "lora")
    if not isinstance(stages := values.get("stages") or (), list | tuple):
        raise ConfigError(f"stages is {stages!r}: expected a list, such as [{{steps: 500}}]")
    values["stages"] = tuple(stage if isinstance(stage, Stage) else _stage_from(stage) for stage in stages)
    return _make(TrainingConfig, values, "the run")


def as_plain(config: TrainingConfig) -> dict[str, Any]:
    """The configuration as nested dictionaries that ``config_from`` accepts."""
    return dataclasses.asdict(config)


T = TypeVar("T")


def _stage_from(values: Any) -> Stage:
    values = _mapping(values, "a stage")
    if values.get("losses") is not None:
        values["losses"] = _make(LossWeights, values["losses"], "losses")
    if values.get("prompts") is not None:
        values["prompts"] = _make(PromptRates, values["prompts"], "prompts")
    return _make(Stage, values, "a stage")


def _data_from(values: Any) -> DataConfig:
    values = _mapping(values, "data")
    if isinstance(values.get("validation"), Mapping):
        values["validation"] = _data_from({"validation": 0.0, **values["validation"]})
    return _make(DataConfig, values, "data")


def _path_as_text(config: object, *names: str) -> None:
    """Converts path objects in fields of a frozen dataclass to text, as in YAML."""
    for name in names:
        if isinstance(value := getattr(config, name), os.PathLike):
            object.__setattr__(config, name, os.fspath(value))
        elif value is not None and not isinstance(value, str):
            raise ConfigError(f"{name} is {value!r}: expected text")


def _names(values: Any) -> tuple[str, ...]:
    """A list of names, or a single name without a list."""
    return (values,) if isinstance(values, str) else tuple(values)


def _mapping(values: Any, where: str) -> dict[str, Any]:
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where} is {values!r}: expected names and values")
    return dict(values)


def _make(kind: type[T], values: Any, where: str) -> T:
    values = _mapping(values, where)
    known = {f.name: f for f in fields(kind)}  # type: ignore[arg-type]
    for name in values.keys() - known.keys():
        near = difflib.get_close_matches(str(name), known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"expected {', '.join(known)}"
        raise ConfigError(f"{where} has no {name!r}: {hint}")
    required = [n for n, f in known.items() if f.default is f.default_factory is dataclasses.MISSING]
    if missing := [name for name in required if name not in values]:
        raise ConfigError(f"{where} lacks {missing[0]!r}")
    try:
        return kind(
            **{name: _plain(value, str(known[name].type), f"{name} of {where}") for name, value in values.items()}
        )
    except TypeError as error:  # a value of a type that the check of its field cannot compare
        raise ConfigError(f"{where}: {error}") from error


def _plain(value: Any, kind: str, name: str) -> Any:
    """Checks a number, text or truth value against the type of its field; other types check themselves."""
    if kind == "float":
        try:
            return float(value)  # YAML reads 1e-4, which has no decimal point, as text
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{name} is {value!r}: expected a number") from error
    expected = {"bool": bool, "int": int, "str": str}.get(kind)
    if expected is not None and type(value) is not expected:
        raise ConfigError(
            f"{name} is {value!r}: expected {dict(bool='true or false', int='a whole number', str='text')[kind]}"
        )
    return value
