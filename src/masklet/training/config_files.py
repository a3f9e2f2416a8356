"""Training configurations from plain values, as in YAML, and back."""

from __future__ import annotations

import copy
import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import yaml

from masklet.config import (
    Sam2Config,
    Sam2EverythingConfig,
    Sam2ImageEncoderConfig,
    Sam2MaskDecoderConfig,
    Sam2MemoryAttentionConfig,
    Sam2MemoryEncoderConfig,
    Sam2PromptEncoderConfig,
)
from masklet.errors import ConfigError
from masklet.training.config import LoraConfig, Stage, TrainingConfig
from masklet.training.data_config import Augmentations, DataConfig, as_number
from masklet.training.losses import LossWeights
from masklet.training.prompts import PromptRates

NETWORK_CONFIGS = {
    "image_encoder": Sam2ImageEncoderConfig,
    "prompt_encoder": Sam2PromptEncoderConfig,
    "mask_decoder": Sam2MaskDecoderConfig,
    "memory_attention": Sam2MemoryAttentionConfig,
    "memory_encoder": Sam2MemoryEncoderConfig,
    "everything": Sam2EverythingConfig,
}


def read_config(path: Path, *, changes: Mapping[str, Any] | None = None) -> TrainingConfig:
    """Reads a YAML file.

    Args:
        path: The file.
        changes: Values to set, by their names: ``{"learning_rate": 1e-4, "stages.0.steps": 500, "data.path": …}``. See
            ``changed``.

    Raises:
        ConfigError: The file cannot be read, or a setting is missing, unknown or invalid.
    """
    values = read_yaml(path)
    try:
        return config_from(changed(values, changes or {}))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def read_yaml(path: Path) -> dict[str, Any]:
    """The names and values in a YAML file.

    Raises:
        ConfigError: The file cannot be read, or holds something else.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the training configuration {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds {type(values).__name__}: expected names and values, such as model: nano")
    return values


def changed(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Values with some of them set.

    Args:
        values: Nested as in YAML.
        changes: By name, with dots between levels. A list is entered by an index, or all of its items are changed:
            ``stages.steps`` sets ``steps`` of every stage.

    Raises:
        ConfigError: A name leads into a value that has no parts.
    """
    result: dict[str, Any] = copy.deepcopy(dict(values))
    for name, value in changes.items():
        _set(result, name.split("."), value, name)
    return result


def _set(target: Any, names: list[str], value: Any, whole: str) -> None:
    first, *rest = names
    if isinstance(target, list):
        if not first.isdigit():
            for item in target:
                _set(item, names, value, whole)
        elif int(first) >= len(target):
            raise ConfigError(f"{whole} names item {first} of a list of {len(target)}: they are counted from 0")
        elif rest:
            _set(target[int(first)], rest, value, whole)
        else:
            target[int(first)] = value
    elif not isinstance(target, dict):
        raise ConfigError(f"{whole} names a part of {target!r}, which has none")
    elif not rest:
        target[first] = value
    else:
        if target.get(first) is None:
            target[first] = {}
        _set(target[first], rest, value, whole)


def config_from(values: Mapping[str, Any]) -> TrainingConfig:
    """A configuration from plain values, nested as in YAML.

    Raises:
        ConfigError: A setting is missing, unknown or invalid.
    """
    values = dict(values)
    if isinstance(model := values.get("model"), Mapping):
        nested = {n: _make(NETWORK_CONFIGS[n], v, n) if n in NETWORK_CONFIGS else v for n, v in model.items()}
        values["model"] = _make(Sam2Config, nested, "model")
    if isinstance(data := values.get("data"), list | tuple):
        values["data"] = tuple(_data_from(one) for one in data)
    elif data is not None:
        values["data"] = _data_from(data)
    if (bfloat16 := values.pop("bfloat16", None)) is not None:  # in configurations of masklet 0.1
        values["precision"] = "bfloat16" if bfloat16 else "float32"
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
    if isinstance(values, DataConfig):
        return values
    values = _mapping(values, "data")
    if (flip := values.pop("flip", None)) is not None:  # in configurations of masklet 0.1
        values["augment"] = {"flip": 0.5 if flip else 0.0, **(values.get("augment") or {})}
    if values.get("augment") is not None and not isinstance(values["augment"], Augmentations):
        values["augment"] = _make(Augmentations, values["augment"], "augment")
    if isinstance(values.get("validation"), Mapping):
        values["validation"] = _data_from({"validation": 0.0, **values["validation"]})
    return _make(DataConfig, values, "data")


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
        return as_number(value, name)
    expected = {"bool": bool, "int": int, "str": str}.get(kind)
    if expected is not None and type(value) is not expected:
        raise ConfigError(
            f"{name} is {value!r}: expected {dict(bool='true or false', int='a whole number', str='text')[kind]}"
        )
    return value
