"""Experiment trackers: TensorBoard and Weights & Biases, through accelerate."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator

from masklet.atomic import replacing
from masklet.errors import ConfigError
from masklet.training.config import TrainingConfig
from masklet.training.resuming import as_yaml
from masklet.training.validation import Sample

WANDB_ID = "wandb.id"
"""File of a run's folder that names its run at Weights & Biases, so that a resumed run continues there."""


class Trackers:
    """The trackers of a run: its settings, the numbers of its log, and sample images.

    Args:
        accelerator: Made with the names of the trackers. Only its main process tracks.
        config: Configuration of the run.
        folder: Folder of the run.
    """

    def __init__(self, accelerator: Accelerator, config: TrainingConfig, folder: Path) -> None:
        self.accelerator = accelerator
        self.config = config
        self.folder = folder

    def start(self, step: int) -> None:
        """Starts to log, or continues after ``step``, replacing what was logged after it."""
        if not self.config.trackers:
            return
        options = {"tensorboard": {"purge_step": step + 1}}
        if "wandb" in self.config.trackers and self.accelerator.is_main_process:
            options["wandb"] = {"id": self._wandb_id(), "resume": "allow", "dir": str(self.folder)}  # type: ignore[dict-item]
        settings = {name: _storable(value) for name, value in flat(as_yaml(self.config)).items()}
        self.accelerator.init_trackers(self.config.tracker_project, config=settings, init_kwargs=options)

    def log(self, line: Mapping[str, Any]) -> None:
        """Tracks the numbers of a line of the log."""
        if self.config.trackers:
            numbers = {key: value for key, value in flat(line).items() if key != "step"}
            self.accelerator.log(numbers, step=line["step"])

    def show(self, samples: Sequence[Sample], step: int) -> None:
        """Tracks images of true and predicted masks."""
        for tracker in self.accelerator.trackers if self.config.trackers else ():
            for number, sample in enumerate(samples):
                image = np.asarray(sample.paint())[None]
                options = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
                tracker.log_images({f"samples/{number}": image}, step=step, **options)

    def end(self) -> None:
        """Waits until everything is tracked."""
        if self.config.trackers:
            self.accelerator.end_training()

    def _wandb_id(self) -> str:
        file = self.folder / WANDB_ID
        if not file.exists():
            with replacing(file) as unfinished:
                unfinished.write_text(secrets.token_hex(4), encoding="utf-8")
        return file.read_text(encoding="utf-8").strip()


def check_trackers(config: TrainingConfig) -> None:
    """Checks that the trackers of a run are installed.

    Raises:
        ConfigError: One is not.
    """
    for name in config.trackers:
        if find_spec(name) is None:
            raise ConfigError(f"trackers name {name}, which is not installed: pip install {name}, or remove it")


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values by their names, with slashes between levels."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}/")
        elif isinstance(value, list):
            found |= flat({str(index): one for index, one in enumerate(value)}, f"{prefix}{key}/")
        else:
            found[f"{prefix}{key}"] = value
    return found


def _storable(value: Any) -> Any:
    return value if isinstance(value, int | float | str | bool) else str(value)
