"""The data of a run: what it trains on, and what it validates on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from masklet.datasets import VIDEO_LAYOUTS, read_scenes
from masklet.datasets.scenes import Scene, split_by_name
from masklet.errors import ConfigError
from masklet.training.batches import Examples
from masklet.training.config import TrainingConfig
from masklet.training.data_config import DataConfig
from masklet.training.sampling import DataSet, SceneExamples, check_scenes


def open_data(
    config: TrainingConfig, examples: Examples[Any] | None = None, scenes: Sequence[Scene] | None = None
) -> tuple[Examples[Any], Sequence[Scene]]:
    """Examples to train on and scenes to validate on: those given, otherwise from the configuration's data.

    Raises:
        ConfigError: There is nothing to train on.
        DataError, ImageError, VideoError: The data cannot be read, or not as configured.
    """
    if not config.data_sets:
        if examples is None:
            raise ConfigError("there is nothing to train on: add data to the configuration, or give examples")
        return examples, scenes or ()
    if examples is not None and scenes is not None:
        return examples, scenes
    data_sets, validation_scenes = [], []
    for data in config.data_sets:
        if isinstance(data.validation, DataConfig):
            train_scenes, held_out = _read(data), _read(data.validation) if scenes is None else []
        else:
            train_scenes, held_out = split_by_name(_read(data), data.validation)
        check_scenes([*train_scenes, *held_out])
        is_video = data.layout in VIDEO_LAYOUTS
        data_sets.append(DataSet(train_scenes, data.weight, data.augment, is_video))
        validation_scenes += held_out
    if examples is None:
        examples = SceneExamples(data_sets, config)
    return examples, validation_scenes if scenes is None else scenes


def _read(data: DataConfig) -> list[Scene]:
    return read_scenes(data.layout, data.path, annotations=data.annotations, split_masks=data.split_masks)
