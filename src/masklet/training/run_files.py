"""The files in the folder of a run, except its state."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml

from masklet.atomic import replacing
from masklet.errors import ConfigError, TrainingError
from masklet.model.sam2 import Sam2Model
from masklet.training.config import TrainingConfig
from masklet.training.config_files import read_config
from masklet.training.curve import curve_svg
from masklet.training.resuming import as_yaml
from masklet.training.validation import Sample


class RunFiles:
    """Reads and writes the files of a run. Of several processes, only the main one writes.

    Args:
        folder: Folder of the run; created if missing.

    Raises:
        ConfigError: The folder cannot be created.
        TrainingError: In all methods that write: a file cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state = folder / "state.pt"
        self.is_writer = True
        """Whether this process writes, which is known only after it has found the others."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"cannot make the run's folder {folder}: {error.strerror}. Choose another") from error

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Turns errors of writing into a TrainingError."""
        try:
            yield
        except OSError as error:
            raise TrainingError(
                f"cannot write to {self.folder}: {error}. The last save is unchanged; make room, then start the run "
                "again to resume it"
            ) from error

    def config(self) -> TrainingConfig:
        """The configuration that was written last."""
        return read_config(self.folder / "config.yaml")

    def write_config(self, config: TrainingConfig) -> None:
        """Writes ``config.yaml``."""
        self._replace("config.yaml", yaml.safe_dump(as_yaml(config), sort_keys=False))

    def write_model(self, name: str, model: Sam2Model, dtype: torch.dtype | None) -> None:
        """Writes a model folder."""
        if self.is_writer:
            with self.writing():
                model.save_pretrained(self.folder / name, dtype=dtype)

    def begin_log(self) -> None:
        """Creates an empty ``log.jsonl``."""
        self._replace("log.jsonl", "")

    def log(self, line: Mapping[str, Any]) -> None:
        """Adds a line to the log: of a step, or of a validation, which has a ``score``."""
        if self.is_writer:
            with self.writing(), (self.folder / "log.jsonl").open("a", encoding="utf-8") as log:
                log.write(json.dumps(line) + "\n")

    def drop_later_lines(self, step: int, validated: int) -> None:
        """Removes lines of steps after ``step`` and of validations after ``validated``, which will be repeated."""
        if not self.is_writer or not (self.folder / "log.jsonl").exists():
            return
        kept = [line for line in self._log_lines() if _step_of(line) <= (validated if '"score"' in line else step)]
        self._replace("log.jsonl", "".join(f"{line}\n" for line in kept))

    def write_curve(self) -> None:
        """Draws the log as ``curve.svg``."""
        if self.is_writer:
            self._replace("curve.svg", curve_svg([json.loads(line) for line in self._log_lines()]))

    def write_samples(self, samples: Sequence[Sample], step: int) -> None:
        """Writes the sample images of a validation to ``samples``."""
        for number, sample in enumerate(samples if self.is_writer else ()):
            path = self.folder / "samples" / f"{step:06}-{number}.jpg"
            with self.writing(), replacing(path) as unfinished:
                sample.paint().save(unfinished, quality=90)

    def _log_lines(self) -> list[str]:
        return (self.folder / "log.jsonl").read_text(encoding="utf-8").splitlines()

    def _replace(self, name: str, text: str) -> None:
        if self.is_writer:
            with self.writing(), replacing(self.folder / name) as unfinished:
                unfinished.write_text(text, encoding="utf-8")


def _step_of(line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):  # the line was cut off
        return 2**63
