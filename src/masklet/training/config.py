"""The numbers of a training run, read from YAML: frozen dataclasses, validated, nothing else."""

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
from masklet.training.parts import PARTS, TRAINED
from masklet.training.prompts import PromptRates

NETWORK_PARTS = {
    "image_encoder": Sam2ImageEncoderConfig,
    "prompt_encoder": Sam2PromptEncoderConfig,
    "mask_decoder": Sam2MaskDecoderConfig,
    "memory_attention": Sam2MemoryAttentionConfig,
    "memory_encoder": Sam2MemoryEncoderConfig,
    "everything": Sam2EverythingConfig,
}
LAYOUTS = ("folder", "coco", "sa1b", "videos", "sav", "synthetic")
OPTIMIZERS = ("adamw", "muon")
TRACKERS = ("tensorboard", "wandb")
HOUSEKEEPING = ("workers", "save_every", "validate_every", "trackers", "cache", "cache_gb")
"""Fields that leave the weights alone, and may change while a run is interrupted."""
RANGES: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "seed": (lambda value: value >= 0, "a whole number >= 0"),
    "learning_rate": (lambda value: 0 < value < math.inf, "a number > 0"),
    "layer_decay": (lambda value: 0 < value <= 1, "a number above 0, up to 1"),
    "warmup_steps": (lambda value: value >= 0, "a whole number >= 0"),
    "weight_decay": (lambda value: 0 <= value < math.inf, "a number >= 0"),
    "max_gradient_norm": (lambda value: value > 0, "a number > 0"),
    "ema_decay": (lambda value: 0 <= value < 1, "a number from 0 to below 1"),
    "geometry_steps": (lambda value: value >= 0, "a whole number >= 0"),
    "affinity": (lambda value: 0 <= value < math.inf, "a number >= 0"),
    "cache_gb": (lambda value: value >= 0, "a number >= 0"),
}
"""What fields of a run may be."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where images or videos and their masks lie."""

    layout: str
    """``folder``, ``coco``, ``sa1b``, ``videos`` (DAVIS, YouTube-VOS), ``sav`` or ``synthetic``; see ``data``."""
    path: str | os.PathLike[str]
    """Folder of the images or videos; for ``synthetic``, of the archives to compose from."""
    annotations: str | os.PathLike[str] | None = None
    """COCO's JSON file."""
    split_masks: bool = False
    """Take every connected part of a mask for an object of its own: for maps of classes."""
    flip: bool = True
    """Mirror half of the images and clips."""
    validation: float | DataConfig = 0.1
    """Share of the images or videos, chosen by name, that is only measured on; or other data for that."""

    def __post_init__(self) -> None:
        _as_text(self, "path", "annotations")
        if self.layout not in LAYOUTS:
            raise ConfigError(f"data has layout {self.layout!r}: expected one of {', '.join(LAYOUTS)}")
        if (self.layout == "coco") != (self.annotations is not None):
            raise ConfigError(
                f"data of layout {self.layout}: annotations, a JSON file, belong to coco, and to it alone"
            )
        if self.split_masks and self.layout != "folder":
            raise ConfigError(f"data of layout {self.layout}: split_masks belongs to layout folder alone")
        if not isinstance(self.validation, DataConfig) and not 0 <= self.validation < 1:
            raise ConfigError(f"data has validation {self.validation!r}: expected a share from 0 to 1, or data")


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stretch of training at one input size, on images or on clips."""

    steps: int
    """Optimizer steps."""
    image_size: int | None = None
    """Height and width of the images, in pixels; the model's own if not given."""
    images: int = 4
    """Images in a batch, or clips."""
    objects: int = 4
    """Prompted objects in each image or clip: drawn where there are more, some twice where there are fewer."""
    rounds: int = 8
    """Decodings of each object: the first prompt, then one correction click a round. The papers correct 7 times."""
    frames: int = 1
    """Of a clip, whose objects are prompted in the first and followed through the others; 1 for images."""
    train: str = "everything"
    """What learns: ``everything``, ``frozen_encoder`` (all but it), ``decoder``, ``memory`` or ``lora`` (adapters)."""
    losses: LossWeights = field(default_factory=LossWeights)
    """Weights of the losses; the papers' if not given."""
    prompts: PromptRates | None = None
    """How objects are shown first; as often as in the papers if None."""

    def __post_init__(self) -> None:
        for name in ("steps", "images", "objects", "rounds", "frames"):
            if not isinstance(value := getattr(self, name), int) or value < 1:
                raise ConfigError(f"{name} of a training stage is {value!r}: expected a whole number >= 1")
        if self.image_size is not None and (self.image_size < 1 or self.image_size % SIDE_MULTIPLE):
            raise ConfigError(f"image_size of a training stage is {self.image_size}: not a multiple of {SIDE_MULTIPLE}")
        if self.train not in TRAINED:
            raise ConfigError(f"train of a training stage is {self.train!r}: expected one of {', '.join(TRAINED)}")

    @property
    def prompt_rates(self) -> PromptRates:
        """How objects are shown first."""
        of_papers = PromptRates(click=0.25, box=0.25, mask=0.5) if self.frames > 1 else PromptRates()
        return self.prompts or of_papers

    @property
    def side_px(self) -> int:
        """Height and width of the images, once the model is known."""
        assert self.image_size is not None
        return self.image_size


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank adapters (arXiv 2106.09685): matrices that learn beside frozen ones, and are added to them on save."""

    rank: int = 8
    """Of each adapter."""
    alpha: int = 16
    """An adapter counts ``alpha / rank`` times."""
    targets: tuple[str, ...] = ("vision_encoder.*.attn.*",)
    """Patterns of the names of linear layers, with ``*`` for anything."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "targets", _names(self.targets))
        if not self.targets:
            raise ConfigError(
                "lora has no targets: expected patterns of layers' names, or leave it out for attention's"
            )
        if not isinstance(self.rank, int) or self.rank < 1:
            raise ConfigError(f"rank of lora is {self.rank!r}: expected a whole number >= 1")


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Everything a run is made of."""

    model: Sam2Config | str | os.PathLike[str] = "nano"
    """A model to begin from (a name, a folder, a ``.pt`` file), or the network to train from nothing."""
    data: DataConfig
    """What to learn from."""
    stages: tuple[Stage, ...]
    """In order."""
    seed: int = 0
    """Of first weights, the order of images, and prompts."""
    optimizer: str = "adamw"
    """``muon`` moves the matrices of linear maps by Muon (arXiv 2502.16982), and all else by AdamW."""
    learning_rate: float = 1e-4
    """At its height, after the warm-up; then it falls to zero along a cosine of the pixels seen."""
    rates: Mapping[str, float] = field(default_factory=dict)
    """Factors on the learning rate, by part: image_encoder, prompt_encoder, mask_decoder, object_score, memory."""
    layer_decay: float = 1.0
    """A block of the image encoder learns at this times the rate of the one after it."""
    warmup_steps: int = 20
    """Steps in which the learning rate rises from zero."""
    weight_decay: float = 0.01
    """AdamW's, on matrices."""
    max_gradient_norm: float = 1.0
    """Longer gradients are shortened to this."""
    ema_decay: float = 0.99
    """Of the running mean of the weights, which is what is measured and kept; 0 keeps the weights themselves."""
    parts: int = 1
    """A batch is learned from in so many parts, whose gradients add up; several processes share them out."""
    bfloat16: bool = False
    """Multiply in bfloat16; weights and losses stay float32."""
    checkpoint_activations: bool = False
    """Compute blocks twice instead of keeping what they made: less memory, a third more time."""
    lora: LoraConfig | None = None
    """Adapters, which learn in every stage."""
    geometry_steps: int = 0
    """Steps of the lesson in geometry before the first image, for a network that starts from nothing."""
    affinity: float = 0.0
    """Weight of the lesson in which cells belong together, for an encoder that starts from nothing."""
    workers: int = 2
    """Threads that read or compose the next images."""
    save_every: int = 200
    """Steps between saves of the state, to go on from, and of the model ``last``."""
    validate_every: int = 200
    """Steps between measurements."""
    validation_objects: int = 200
    """Objects measured on, at most."""
    store_float16: bool = False
    """Write the models in half the size."""
    cache: str | os.PathLike[str] | None = None
    """Folder for the features of images whose encoder is frozen, so that each is encoded once."""
    cache_gb: float = 20.0
    """What that folder may grow to."""
    trackers: tuple[str, ...] = ()
    """``tensorboard``, ``wandb``: where else to log to."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "stages", tuple(self.stages))
        object.__setattr__(self, "trackers", _names(self.trackers))
        if not isinstance(self.model, Sam2Config):
            _as_text(self, "model")
        _as_text(self, "cache")
        if not self.stages:
            raise ConfigError("the run has no stages: expected at least one, such as {steps: 500}")
        self._check_choices()
        for name in ("parts", "workers", "save_every", "validate_every", "validation_objects"):
            if not isinstance(value := getattr(self, name), int) or value < 1:
                raise ConfigError(f"{name} is {value!r}: expected a whole number >= 1")
        self._check_ranges()
        for stage in self.stages:
            if stage.images % self.parts:
                raise ConfigError(f"a stage of {stage.images} images cannot be split into {self.parts} equal parts")
            if stage.train == "lora" and self.lora is None:
                raise ConfigError("a stage trains lora, but there is none: add lora: {rank: 8}")
        if isinstance(self.model, Sam2Config):
            self.fitting(self.model)
        elif self.geometry_steps:
            raise ConfigError("geometry_steps are for a network that starts from nothing: give its numbers as model")

    def _check_ranges(self) -> None:
        for name, (is_fine, expected) in RANGES.items():
            if not is_fine(value := getattr(self, name)):
                raise ConfigError(f"{name} is {value!r}: expected {expected}")
        rates = {part: _plain(rate, "float", f"{part} of rates") for part, rate in self.rates.items()}
        if wrong := [part for part, rate in rates.items() if not 0 <= rate < math.inf]:
            raise ConfigError(f"{wrong[0]} of rates is {rates[wrong[0]]!r}: expected a number >= 0")
        object.__setattr__(self, "rates", rates)

    def _check_choices(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            raise ConfigError(f"optimizer is {self.optimizer!r}: expected one of {', '.join(OPTIMIZERS)}")
        for name in self.rates:
            if name not in PARTS:
                raise ConfigError(f"rates name {name!r}: expected one of {', '.join(PARTS)}")
        for name in self.trackers:
            if name not in TRACKERS:
                raise ConfigError(f"trackers name {name!r}: expected one of {', '.join(TRACKERS)}")

    def fitting(self, network: Sam2Config) -> TrainingConfig:
        """The same, with the input sizes that follow from the network.

        Raises:
            ConfigError: Clips are to be learned from by a network without memory.
        """
        if not network.has_memory and any(stage.frames > 1 or stage.train == "memory" for stage in self.stages):
            raise ConfigError("a training stage is on clips, but the network has no memory to follow objects with")
        stages = (replace(stage, image_size=stage.image_size or network.image_size) for stage in self.stages)
        return self if all(stage.image_size for stage in self.stages) else replace(self, stages=tuple(stages))

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

    def drawn_before(self, step: int) -> int:
        """Images and clips drawn before step ``step``."""
        drawn = 0
        for stage in self.stages:
            drawn += stage.images * min(max(step, 0), stage.steps)
            step -= stage.steps
        return drawn

    def progress(self, step: int) -> float:
        """Share of the run's pixels that were seen before step ``step``: 0 to 1, roughly the share of its time."""
        seen, total = 0, 0
        for stage in self.stages:
            pixels = stage.images * stage.frames * stage.side_px**2
            seen += pixels * min(max(step, 0), stage.steps)
            total += pixels * stage.steps
            step -= stage.steps
        return seen / total


def read_config(path: Path, *, data: str | None = None, model: str | None = None) -> TrainingConfig:
    """Read a run's YAML file.

    Args:
        path: The file.
        data: Folder to use instead of the ``path`` of its data.
        model: Model to begin from, instead of its own.

    Raises:
        ConfigError: It cannot be read; a value is missing, unknown or impossible.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the training configuration {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no YAML: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds {type(values).__name__}: expected names and values, such as model: nano")
    if data is not None:
        values["data"] = {**(values.get("data") or {}), "path": data}
    if model is not None:
        values["model"] = model
        values.pop("geometry_steps", None)  # a model that has learned anything has learned that
    try:
        return config_from(values)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def config_from(values: Mapping[str, Any]) -> TrainingConfig:
    """A configuration from plain values, nested as in YAML."""
    values = dict(values)
    if isinstance(model := values.get("model"), Mapping):
        parts = {n: _make(NETWORK_PARTS[n], v, n) if n in NETWORK_PARTS else v for n, v in model.items()}
        values["model"] = _make(Sam2Config, parts, "model")
    if "data" in values and not isinstance(values["data"], DataConfig):
        values["data"] = _data_from(values["data"])
    if values.get("lora") is not None:
        values["lora"] = _make(LoraConfig, values["lora"], "lora")
    if not isinstance(stages := values.get("stages") or (), list | tuple):
        raise ConfigError(f"stages is {stages!r}: expected a list, such as [{{steps: 500}}]")
    values["stages"] = tuple(stage if isinstance(stage, Stage) else _stage_from(stage) for stage in stages)
    return _make(TrainingConfig, values, "the run")


def as_plain(config: TrainingConfig) -> dict[str, Any]:
    """What ``config_from`` takes, for YAML or JSON."""
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


def _as_text(config: object, *names: str) -> None:
    """Paths in fields of a frozen dataclass as text, as they stand in YAML."""
    for name in names:
        if isinstance(value := getattr(config, name), os.PathLike):
            object.__setattr__(config, name, os.fspath(value))
        elif value is not None and not isinstance(value, str):
            raise ConfigError(f"{name} is {value!r}: expected text")


def _names(values: Any) -> tuple[str, ...]:
    """One name may stand without a list around it."""
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
        hint = f"did you mean {near[0]}?" if near else f"expected some of {', '.join(known)}"
        raise ConfigError(f"{where} has no {name!r}: {hint}")
    required = [n for n, f in known.items() if f.default is f.default_factory is dataclasses.MISSING]
    if missing := [name for name in required if name not in values]:
        raise ConfigError(f"{where} lacks {missing[0]!r}")
    try:
        return kind(
            **{name: _plain(value, str(known[name].type), f"{name} of {where}") for name, value in values.items()}
        )
    except TypeError as error:  # something else than what the field's own check compares with
        raise ConfigError(f"{where}: {error}") from error


def _plain(value: Any, kind: str, name: str) -> Any:
    """A number, text or truth value of the kind that the field has; other kinds check for themselves."""
    if kind == "float":
        try:
            return float(value)  # YAML reads 1e-4, which lacks a point, as text
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{name} is {value!r}: expected a number") from error
    expected = {"bool": bool, "int": int, "str": str}.get(kind)
    if expected is not None and type(value) is not expected:
        raise ConfigError(
            f"{name} is {value!r}: expected {dict(bool='true or false', int='a whole number', str='text')[kind]}"
        )
    return value
