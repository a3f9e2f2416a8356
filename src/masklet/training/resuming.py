"""Whether a configuration continues a run: what was trained so far must be the same, the rest may change."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path, PurePath
from pickle import UnpicklingError
from typing import Any

import torch

from masklet.training.config import TrainingConfig
from masklet.training.config_files import as_plain

CHANGEABLE = (
    "workers",
    "save_every",
    "validate_every",
    "validation_objects",
    "trackers",
    "tracker_project",
    "cache",
    "cache_gb",
    "store_float16",
    "precision",
    "compile",
    "checkpoint_activations",
    "micro_batches",
)
"""Fields that a resumed run may change: they decide how it is computed, measured or stored, not what is learned."""
PATHS = ("path", "annotations")
"""Fields of data that say where they are, and not what they are."""


def as_yaml(config: TrainingConfig) -> dict[str, Any]:
    """The configuration as YAML holds it."""
    return json.loads(json.dumps(as_plain(config)))  # turns tuples into lists


def steps_done(state: Path) -> int:
    """The number of steps in a run's state; 0 if the file cannot be read, which loading it will explain."""
    try:
        return int(torch.load(state, weights_only=True, mmap=True)["step"])
    except (OSError, RuntimeError, ValueError, TypeError, KeyError, EOFError, UnpicklingError):
        return 0


def differences(before: TrainingConfig, now: TrainingConfig, step: int) -> list[str]:
    """The names of the settings that make ``now`` another run than ``before``, of which ``step`` steps are done.

    Data and models may have moved. Stages that are done must be the same; the one in progress may become longer or
    shorter, as long as it holds the steps done; those after it may be anything.
    """
    one, other = _essential(before, step), _essential(now, step)
    return [name for name in other if one.get(name) != other[name]]


def _essential(config: TrainingConfig, step: int) -> dict[str, Any]:
    """The settings that have affected the weights so far."""
    values = {name: value for name, value in as_yaml(config).items() if name not in CHANGEABLE}
    if isinstance(values["model"], str):
        values["model"] = PurePath(values["model"]).name
    values["data"] = _without_paths(values["data"])
    values["stages"] = _stages_done(values["stages"], step)
    return values


def _without_paths(data: Any) -> Any:
    if isinstance(data, list):
        return [_without_paths(one) for one in data]
    if isinstance(data, Mapping):
        return {name: _without_paths(value) for name, value in data.items() if name not in PATHS}
    return data


def _stages_done(stages: list[dict[str, Any]], step: int) -> list[dict[str, Any]]:
    """The stages that were begun, with the number of steps done in each."""
    done = []
    for stage in stages:
        if step > 0:
            done.append(stage | {"steps": min(step, stage["steps"])})
        step -= stage["steps"]
    return done
