"""A run from its configuration to the summary: data, steps, measurements, and what is kept in its folder."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import yaml

from masklet.atomic import replacing, sweep
from masklet.errors import ConfigError, DataError, ImageError, TrainingError, VideoError
from masklet.model.sam2 import Sam2Model
from masklet.training.batches import Examples
from masklet.training.composed import Composed, held_out_scenes
from masklet.training.config import HOUSEKEEPING, DataConfig, TrainingConfig, as_plain, config_from, read_config
from masklet.training.curve import curve_svg
from masklet.training.data import read_scenes
from masklet.training.data.drawing import Drawn, look_at
from masklet.training.data.scenes import Scene, split_by_name
from masklet.training.features import FeatureCache
from masklet.training.loop import StepReport, Trainer, make_accelerator
from masklet.training.parts import TRAINED
from masklet.training.sources import read_sources
from masklet.training.validation import Scores, Shown, Validation

_log = logging.getLogger(__name__)

GIGABYTE = 10**9


@dataclass(frozen=True)
class Summary:
    """What a run came to."""

    steps: int
    folder: Path
    start: Scores | None
    """Of the model it began with; None if nothing was kept to measure on."""
    best: Scores | None
    last: Scores | None

    @property
    def helped(self) -> bool | None:
        """Whether the best model is better than the one the run began with; None if that was not measured."""
        return None if self.start is None or self.best is None else self.best.score > self.start.score

    def __str__(self) -> str:
        if self.start is None or self.best is None or self.last is None:
            return f"{self.steps} steps; nothing was measured, so look before you trust it: {self.folder / 'last'}"
        if self.helped:
            return (
                f"training helped: {self.start.score:.3f} before, {self.best.score:.3f} after step {self.best.step} "
                f"({self.folder / 'best'}), {self.last.score:.3f} at the end ({self.folder / 'last'})"
            )
        return (
            f"training did not help: {self.start.score:.3f} before, {self.last.score:.3f} at the end "
            f"({self.folder / 'last'}). {self.folder / 'best'} is the model it began with"
        )


class Run:
    """One run; ``reports`` goes through it, and may go on where an earlier process was killed.

    Its folder holds ``best`` and ``last`` (models), ``state.pt`` (to go on), ``config.yaml``, ``log.jsonl``, and
    ``curve.svg`` and ``samples`` (images to look at).

    Args:
        config: What to do.
        folder: Made if missing; a run that it holds goes on.
        device: ``auto`` or ``cpu``.

    Raises:
        ConfigError: The run in the folder was another one; a tracker is not installed.
        DataError, ImageError, VideoError: The data are not what they should be.
        CheckpointError: The model, or the state of the run, cannot be read.
    """

    def __init__(self, config: TrainingConfig, folder: str | os.PathLike[str], *, device: str = "auto") -> None:
        self.folder = Path(folder)
        self._check_trackers(config)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"cannot make the run's folder {self.folder}: {error.strerror}. Choose another"
            ) from error
        self.state = self.folder / "state.pt"
        self.goes_on = self.state.exists()
        if self.goes_on:
            self._check_same(config)
        self.accelerator = make_accelerator(device, config.trackers, self.folder)
        if self.accelerator.is_main_process:
            sweep(self.folder)  # a kill amid a save leaves a file as large as the state
        self.examples, scenes = open_data(config, self.accelerator.device)
        self.trainer = Trainer(config, self.accelerator, _cache_for(config))
        self.given, self.config = config, self.trainer.config
        self.validation = Validation(scenes, self.config) if scenes else None
        self.start: Scores | None = None
        self.best: Scores | None = None
        self.last: Scores | None = None
        self.accelerator.wait_for_everyone()  # or a slow process would take a fast one's state for an earlier run's

    def _check_trackers(self, config: TrainingConfig) -> None:
        for name in config.trackers:
            if find_spec(name) is None:
                raise ConfigError(f"trackers name {name}, which is not installed: pip install {name}, or leave it out")

    def _check_same(self, config: TrainingConfig) -> None:
        """Refuse to go on with a run of other numbers, which would end as neither of them."""
        before, now = _numbers(read_config(self.folder / "config.yaml")), _numbers(config)
        if other := [name for name in now if before.get(name) != now[name]]:
            raise ConfigError(
                f"{self.folder} holds a run with other {', '.join(other)}: choose another folder for a new run, or "
                f"take its {self.folder / 'config.yaml'} to go on"
            )

    def reports(self) -> Iterator[Scores | StepReport]:
        """Train, and yield what each step and each measurement says, the score before training first.

        Raises:
            TrainingError: It cannot go on; the message says why, and what is kept.
        """
        if self.config.trackers:
            self.accelerator.init_trackers("masklet")
        yield from self._begin()
        with self._kept_when_cut():
            if self.goes_on:
                yield from self._catch_up()
            for report in self.trainer.run(self.examples):
                self._log(asdict(report))
                yield report
                if self._has_to_measure():
                    yield from self._measure()
                if report.step == self.config.steps or report.step % self.config.save_every == 0:
                    self._save()
        if self.config.trackers:
            self.accelerator.end_training()

    def summary(self) -> Summary:
        """What it came to so far."""
        return Summary(self.trainer.step, self.folder, self.start, self.best, self.last)

    def _begin(self) -> Iterator[Scores]:
        if self.goes_on:
            notes = self.trainer.load(self.state)
            self.start, self.best, self.last = (_scores_from(notes[name]) for name in ("start", "best", "last"))
            self._forget_unfinished_lines()
            _log.info("going on after step %d", self.trainer.step)
            return
        for step, iou in enumerate(self.trainer.teach_geometry(), start=1):
            if step % 100 == 0:
                _log.info("geometry: step %d, IoU %.3f", step, iou)
        if self.accelerator.is_main_process:
            with self._writing(), replacing(self.folder / "config.yaml") as unfinished:
                unfinished.write_text(yaml.safe_dump(_as_yaml(self.given), sort_keys=False), encoding="utf-8")
                (self.folder / "log.jsonl").write_text("")
        if self.validation is not None:
            yield from self._measure()
            if self.start is None:
                raise DataError("nothing can be measured: the images for validation show no objects. Take others")
        self._save()

    def _has_to_measure(self) -> bool:
        """Whether a measurement is due after the step that was last taken, and was not made before a cut."""
        step = self.trainer.step
        is_due = step == self.config.steps or step % self.config.validate_every == 0
        return self.validation is not None and is_due and (self.last is None or self.last.step != step)

    def _catch_up(self) -> Iterator[Scores]:
        """What a cut may have left undone after the last step: its measurement, and the model ``last``."""
        if self._has_to_measure():
            yield from self._measure()
            self._save()
        else:
            self._write_model("last", self.trainer.averaged_model())

    def _measure(self) -> Iterator[Scores]:
        assert self.validation is not None
        model = self.trainer.averaged_model()
        scores, shown = self.validation.measure(model, self.trainer.step, self.accelerator)
        if scores is None:
            return
        self._log({"step": scores.step, "score": scores.score, **scores.values})
        if self.accelerator.is_main_process:
            self._write_curve()
            self._write_samples(shown)
        if self.best is None or scores.score > self.best.score:
            self._write_model("best", model)
            self.best = scores
        # Last, so that a measurement that is cut is made again.
        self.start = self.start or scores
        self.last = scores
        yield scores

    def _save(self) -> None:
        """The state first: it is what cannot be made again."""
        if not self.accelerator.is_main_process:
            return
        notes = {name: scores and asdict(scores) for name, scores in vars(self.summary()).items() if name in NOTED}
        with self._writing():
            self.trainer.save(self.state, notes)
        self._write_model("last", self.trainer.averaged_model())

    def _write_model(self, name: str, model: Sam2Model) -> None:
        if self.accelerator.is_main_process:
            with self._writing():
                model.save_pretrained(self.folder / name, dtype=torch.float16 if self.config.store_float16 else None)

    def _write_curve(self) -> None:
        lines = [json.loads(line) for line in (self.folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
        with self._writing(), replacing(self.folder / "curve.svg") as unfinished:
            unfinished.write_text(curve_svg(lines), encoding="utf-8")

    def _write_samples(self, shown: list[Shown]) -> None:
        for number, example in enumerate(shown):
            path = self.folder / "samples" / f"{self.trainer.step:06}-{number}.jpg"
            with self._writing(), replacing(path) as unfinished:
                example.paint().save(unfinished, quality=90)

    def _log(self, line: Mapping[str, Any]) -> None:
        if self.accelerator.is_main_process:
            with self._writing(), (self.folder / "log.jsonl").open("a", encoding="utf-8") as log:
                log.write(json.dumps(line) + "\n")
        if self.config.trackers:
            flat = {key: value for key, value in _flat(line).items() if key != "step"}
            self.accelerator.log(flat, step=line["step"])

    def _forget_unfinished_lines(self) -> None:
        """Steps that are taken again, and measurements that are made again, are written again."""
        log, step = self.folder / "log.jsonl", self.trainer.step
        measured = step if self.last is None else self.last.step
        if self.accelerator.is_main_process and log.exists():
            lines = [
                line
                for line in log.read_text(encoding="utf-8").splitlines()
                if _step_of(line) <= (measured if '"score"' in line else step)
            ]
            with self._writing(), replacing(log) as unfinished:
                unfinished.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")

    @contextmanager
    def _kept_when_cut(self) -> Iterator[None]:
        """What to do when steps end early: keep the last whole one, and say so."""
        try:
            yield
        except (ImageError, DataError, VideoError) as error:
            self._save()
            # The launcher ends all processes when one ends, and the first has yet to save.
            self.accelerator.wait_for_everyone()
            raise TrainingError(
                f"{error}. The run is kept after step {self.trainer.step}: mend the data, and start it again to go on"
            ) from error
        except KeyboardInterrupt:
            if self.trainer.is_whole:
                self._save()
            raise

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """A disk that is full, or gone, ends the run; the system's error says which."""
        try:
            yield
        except OSError as error:
            raise TrainingError(
                f"cannot write to {self.folder}: {error}. The last save is unchanged; make room, and start the run "
                "again to go on from there"
            ) from error


NOTED = ("start", "best", "last")


def open_data(config: TrainingConfig, device: torch.device) -> tuple[Examples[Any], list[Scene]]:
    """Examples to learn from, made on ``device`` if they are synthetic, and scenes to measure on.

    Raises:
        DataError, ImageError, VideoError: They are not what they should be.
    """
    data, share = config.data, config.data.validation
    apart = share if isinstance(share, DataConfig) else None
    learned: list[Scene] = []
    measured: list[Scene] = []
    examples: Examples[Any]
    if data.layout == "synthetic":
        examples = Composed(read_sources(Path(data.path), held_out=False), config.seed, device, config.parts)
        if share and apart is None:
            measured = _compositions(data, config)
    else:
        learned, measured = split_by_name(read_scenes(data), 0.0 if isinstance(share, DataConfig) else share)
        examples = Drawn(learned, config, flip=data.flip)
    if apart is not None:
        measured = _compositions(apart, config) if apart.layout == "synthetic" else read_scenes(apart)
    if real := [*learned, *(measured if (apart or data).layout != "synthetic" else [])]:
        look_at(real)
    return examples, measured


def _compositions(data: DataConfig, config: TrainingConfig) -> list[Scene]:
    return held_out_scenes(read_sources(Path(data.path), held_out=True), config)


def _cache_for(config: TrainingConfig) -> Callable[[Sam2Model], FeatureCache] | None:
    """What makes the feature cache of a model, if there is to be one."""
    if config.cache is None:
        return None
    names = [name for stage in config.stages for name in TRAINED[stage.train]]
    adapted = [] if config.lora is None else [t for t in config.lora.targets if t.startswith(("*", "vision"))]
    if "image_encoder" in names or adapted:
        raise ConfigError(
            "cache keeps what a frozen image encoder makes, but here it learns: leave cache out, or train decoder, "
            "frozen_encoder, memory, or lora with targets beside vision_encoder"
        )
    return partial(FeatureCache, Path(config.cache), max_bytes=config.cache_gb * GIGABYTE)


def train(
    config: TrainingConfig | Mapping[str, Any] | str | os.PathLike[str],
    run: str | os.PathLike[str],
    *,
    device: str = "auto",
) -> Summary:
    """Train a model, or go on with a run that was cut.

    Args:
        config: A configuration, its values as a mapping, or the path of a YAML file.
        run: Folder for all that it makes: ``best`` and ``last`` are models that ``masklet.load`` takes.
        device: ``auto`` or ``cpu``. ``accelerate launch`` starts the same program once for each of several GPUs.

    Returns:
        How well the model did before, at its best and at the end.

    Raises:
        ConfigError: A value is missing, unknown or impossible.
        DataError, ImageError, VideoError: The data are not what they should be.
        CheckpointError: The model to begin from cannot be read.
        TrainingError: It cannot go on; what it had learned by its last save is kept.
    """
    if isinstance(config, str | os.PathLike):
        config = read_config(Path(config))
    elif isinstance(config, Mapping):
        config = config_from(config)
    whole = Run(config, run, device=device)
    for report in whole.reports():
        if isinstance(report, Scores):
            _log.info("validation after step %d: %s", report.step, report)
    return whole.summary()


def _numbers(config: TrainingConfig) -> dict[str, Any]:
    """All that decides about the weights."""
    return {name: value for name, value in _as_yaml(config).items() if name not in HOUSEKEEPING}


def _as_yaml(config: TrainingConfig) -> dict[str, Any]:
    return json.loads(json.dumps(as_plain(config)))  # lists for tuples


def _scores_from(note: Mapping[str, Any] | None) -> Scores | None:
    return None if note is None else Scores(**note)


def _step_of(line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):  # cut off in the middle
        return 2**63


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    flat: dict[str, float] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}/")
        elif isinstance(value, list):
            flat |= {f"{prefix}{key}/{place}": number for place, number in enumerate(value)}
        else:
            flat[f"{prefix}{key}"] = value
    return flat
