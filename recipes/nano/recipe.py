"""Recipes: training configurations together with the parts of training that are in this folder."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml

from masklet.atomic import replacing
from masklet.errors import ConfigError
from masklet.model.sam2 import Sam2Model
from masklet.training import Run, TrainingConfig
from masklet.training.config_files import config_from
from masklet.training.parameter_groups import adamw
from masklet.training.processes import make_accelerator
from recipes.nano.affinity_loss import AffinityLoss
from recipes.nano.examples import ComposedExamples, held_out_scenes
from recipes.nano.geometry import pretrain_on_shapes
from recipes.nano.initialise import initialise
from recipes.nano.muon import muon_and_adamw
from recipes.nano.sources import read_sources

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All settings of a run of this folder."""

    training: TrainingConfig
    """Configuration of the run; it names no data."""
    geometry_steps: int = 0
    """Steps of pretraining on shapes, if the network is trained from scratch."""
    affinity: float = 0.0
    """Weight of the affinity loss; 0 for none."""
    muon: bool = False
    """Whether matrices are updated by Muon instead of AdamW."""

    def __post_init__(self) -> None:
        if self.training.data is not None:
            raise ConfigError("the training configuration of a recipe has data: expected none, sources are composed")
        if self.geometry_steps < 0:
            raise ConfigError(f"geometry_steps is {self.geometry_steps}: expected a whole number >= 0")
        if not 0 <= self.affinity < float("inf"):
            raise ConfigError(f"affinity is {self.affinity}: expected a number >= 0")


def read_recipe(path: Path, *, model: str | None = None) -> Recipe:
    """Reads a recipe from YAML.

    Args:
        path: The file.
        model: Overrides the model to start from.

    Raises:
        ConfigError: The file cannot be read, or a setting is missing, unknown or invalid.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the recipe {path}: {error.strerror}") from error
    known = {field.name for field in dataclasses.fields(Recipe)}
    if not isinstance(values, Mapping) or "training" not in values or (values.keys() - known):
        raise ConfigError(
            f"{path} is not a recipe: expected training, and optionally {', '.join(known - {'training'})}"
        )
    training: dict[str, Any] = dict(values["training"]) | ({} if model is None else {"model": model})
    return Recipe(**{**values, "training": config_from(training)})


def make_run(recipe: Recipe, data: Path, folder: Path, *, device: str = "auto") -> Run:
    """A run that trains on compositions of the sources in ``data`` and validates on those of held-out sources.

    Args:
        recipe: Settings.
        data: Folder of the archives, see ``sources``.
        folder: Folder of the run. If it holds a run, that run is resumed.
        device: ``auto`` or ``cpu``.

    Raises:
        ConfigError: The folder holds a run with different settings.
        DataError: The archives are incomplete.
    """
    accelerator = make_accelerator(device)
    is_resumed = (folder / "state.pt").exists()
    if accelerator.is_main_process or is_resumed:
        _check_or_write_settings(recipe, data, folder, is_resumed=is_resumed)
    config = recipe.training
    return Run(
        config,
        folder,
        device=device,
        examples=ComposedExamples(
            read_sources(data, held_out=False), config.seed, accelerator.device, config.micro_batches
        ),
        scenes=held_out_scenes(read_sources(data, held_out=True), config),
        initialiser=partial(_initialise, recipe=recipe, device=accelerator.device),
        make_optimizers=muon_and_adamw if recipe.muon else adamw,
        make_extra_loss=partial(_affinity_loss, weight=recipe.affinity) if recipe.affinity else None,
    )


def _initialise(model: Sam2Model, *, recipe: Recipe, device: torch.device) -> None:
    initialise(model)
    ious = pretrain_on_shapes(model.to(device), recipe.training, recipe.geometry_steps, device)
    for step, iou in enumerate(ious, start=1):
        if step % 100 == 0:
            _log.info("pretraining on shapes: step %d, IoU %.3f", step, iou)
    model.to("cpu")


def _affinity_loss(model: Sam2Model, *, weight: float) -> AffinityLoss:
    return AffinityLoss(model.config.hidden_size, weight)


def _check_or_write_settings(recipe: Recipe, data: Path, folder: Path, *, is_resumed: bool) -> None:
    """Keeps the settings that ``Run`` does not know in ``recipe.yaml``; a run is resumed only under the same ones."""
    path = folder / "recipe.yaml"
    settings = {field.name: getattr(recipe, field.name) for field in dataclasses.fields(recipe)} | {"data": str(data)}
    del settings["training"]
    if not is_resumed:
        with replacing(path) as unfinished:
            unfinished.write_text(yaml.safe_dump(settings), encoding="utf-8")
        return
    before = yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else {}
    if different := [name for name, value in settings.items() if before.get(name) != value]:
        raise ConfigError(f"{folder} holds a run with different {', '.join(different)}: choose another folder")
