"""A training run, from its configuration to its summary: data, steps, validations, and the files in its folder."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import yaml

from masklet.atomic import replacing, sweep
from masklet.config import Sam2Config
from masklet.datasets import VIDEO_LAYOUTS, read_scenes
from masklet.datasets.scenes import Scene, split_by_name
from masklet.errors import ConfigError, DataError, ImageError, TrainingError, VideoError
from masklet.model.sam2 import Sam2Model
from masklet.training.batches import Examples
from masklet.training.config import TrainingConfig
from masklet.training.config_files import config_from, read_config
from masklet.training.curve import curve_svg
from masklet.training.data_config import DataConfig
from masklet.training.features import FeatureCache
from masklet.training.interruption import StopSignals, Terminated
from masklet.training.loop import Initialiser, StepReport, Trainer, make_accelerator, uses_all_weights
from masklet.training.objective import ExtraLossFactory
from masklet.training.parameter_groups import TRAINABLE, OptimizerFactory, adamw
from masklet.training.resuming import as_yaml, differences, steps_done
from masklet.training.sampling import DataSet, SceneExamples, check_scenes
from masklet.training.tracking import Trackers
from masklet.training.validation import Sample, Scores, Validation

_log = logging.getLogger(__name__)

GIGABYTE = 10**9
SAVED_SCORES = ("start", "best", "last")


@dataclass(frozen=True)
class Summary:
    """The result of a run."""

    steps: int
    folder: Path
    start: Scores | None
    """Scores of the model that the run started from; None if there was nothing to validate on."""
    best: Scores | None
    last: Scores | None

    @property
    def helped(self) -> bool | None:
        """Whether the best model is better than the one the run started from; None if that was not measured."""
        return None if self.start is None or self.best is None else self.best.score > self.start.score

    def __str__(self) -> str:
        last, best = self.folder / "last", self.folder / "best"
        if self.start is None or self.best is None or self.last is None:
            return f"{self.steps} steps without validation: check the model before you rely on it ({last})"
        if self.helped:
            return (
                f"training helped: {self.start.score:.3f} before, {self.best.score:.3f} after step {self.best.step} "
                f"({best}), {self.last.score:.3f} at the end ({last})"
            )
        return (
            f"training did not help: {self.start.score:.3f} before, {self.last.score:.3f} at the end ({last}). {best} "
            "is the model that training started from"
        )


class Run:
    """A training run. ``reports`` executes it, and resumes it if it was interrupted.

    The folder holds ``best`` and ``last`` (models), ``state.pt`` (to resume from), ``config.yaml``, ``log.jsonl``,
    ``curve.svg`` and ``samples`` (images of validation results).

    Args:
        config: Configuration.
        folder: Folder of the run; made if missing. If it holds a run, that run is resumed.
        device: ``auto`` or ``cpu``.
        examples: Examples to train on, instead of the configuration's data.
        scenes: Scenes to validate on, instead of the configuration's data.
        initialiser: Sets the initial weights if ``config.model`` is the configuration of a network. It is not called
            when a run is resumed.
        make_optimizers: Makes the optimizers; by default AdamW.
        make_extra_loss: Makes an extra loss, see ``Objective``.

    Raises:
        ConfigError: The folder holds another run, a tracker is not installed, or there is nothing to train on.
        DataError, ImageError, VideoError: The data cannot be read, or not as configured.
        CheckpointError: The model, or the state of the run, cannot be read.
    """

    def __init__(
        self,
        config: TrainingConfig,
        folder: str | os.PathLike[str],
        *,
        device: str = "auto",
        examples: Examples[Any] | None = None,
        scenes: Sequence[Scene] | None = None,
        initialiser: Initialiser | None = None,
        make_optimizers: OptimizerFactory = adamw,
        make_extra_loss: ExtraLossFactory | None = None,
    ) -> None:
        self.folder = Path(folder)
        _check_trackers(config)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"cannot make the run's folder {self.folder}: {error.strerror}. Choose another"
            ) from error
        self.state = self.folder / "state.pt"
        self.is_resumed = self.state.exists()
        if self.is_resumed:
            self._check_same(config)
        self.accelerator = make_accelerator(
            device, config.trackers, self.folder, find_unused=not uses_all_weights(config)
        )
        if self.accelerator.is_main_process:
            sweep(self.folder)  # a process killed during a save leaves a file as large as the state
        self.examples, self.scenes = open_data(config, examples, scenes)
        self.trainer = Trainer(
            config,
            self.accelerator,
            cache=_cache_for(config),
            initialiser=None if self.is_resumed else initialiser,
            make_optimizers=make_optimizers,
            make_extra_loss=make_extra_loss,
        )
        self.given, self.config = config, self.trainer.config
        self.trackers = Trackers(self.accelerator, config, self.folder)
        self.validation = Validation(self.scenes, self.config) if self.scenes else None
        self.start: Scores | None = None
        self.best: Scores | None = None
        self.last: Scores | None = None
        # Otherwise a slow process could take the first save of a fast one for that of an earlier run.
        self.accelerator.wait_for_everyone()

    def _check_same(self, config: TrainingConfig) -> None:
        """Refuses to resume a run under settings that would have given it other weights."""
        step = steps_done(self.state)
        if step > config.steps:
            raise ConfigError(
                f"{self.folder} holds a run that has done {step} steps, more than the {config.steps} of this "
                "configuration: choose another folder for a new run, or raise steps"
            )
        if different := differences(read_config(self.folder / "config.yaml"), config, step):
            raise ConfigError(
                f"{self.folder} holds a run with different {', '.join(different)}: choose another folder for a new "
                f"run, or use {self.folder / 'config.yaml'} to resume this one"
            )

    def reports(self) -> Iterator[Scores | StepReport]:
        """Trains, and yields a report of each step and each validation. The first is the score before training.

        Raises:
            TrainingError: The run cannot continue; the message says why, and what is saved.
        """
        self.trackers.start(steps_done(self.state) if self.is_resumed else 0)
        signals = StopSignals(may_raise=lambda: self.trainer.is_between_steps and self.trainer.processes == 1)
        self.trainer.is_stop_requested = lambda: signals.is_requested
        with signals.handled(), closing(self._work(signals)) as work:
            while True:
                # A signal must not raise in the caller's code, where nothing would save the run.
                with signals.interruptible():
                    report = next(work, None)
                if report is None:
                    break
                yield report
        self.trackers.end()

    def _work(self, signals: StopSignals) -> Generator[Scores | StepReport]:
        yield from self._begin()
        with self._saved_on_failure():
            if self.is_resumed:
                yield from self._catch_up()
            for report in self.trainer.run(self.examples):
                self._log(asdict(report))
                yield report
                if self.trainer.is_stopped:
                    signals.check()  # one of several processes received the signal, and all end together
                    raise Terminated
                if self.trainer.processes == 1:
                    signals.check()
                if self._is_validation_due():
                    yield from self._validate()
                if report.step == self.config.steps or report.step % self.config.save_every == 0:
                    self._save()

    def summary(self) -> Summary:
        """The result so far."""
        return Summary(self.trainer.step, self.folder, self.start, self.best, self.last)

    def _begin(self) -> Iterator[Scores]:
        if self.is_resumed:
            notes = self.trainer.load(self.state)
            self.start, self.best, self.last = (_scores_from(notes[name]) for name in SAVED_SCORES)
            self._drop_later_lines()
            if read_config(self.folder / "config.yaml").validation_objects != self.config.validation_objects:
                self._measure_anew()
            self._write_config()
            _log.info("resuming after step %d", self.trainer.step)
            return
        self._write_config()
        if self.accelerator.is_main_process:
            with self._writing():
                (self.folder / "log.jsonl").write_text("")
        if self.validation is not None:
            yield from self._validate()
            if self.start is None:
                raise DataError("nothing to validate on: no image for validation has an object. Choose other images")
        self._save()

    def _measure_anew(self) -> None:
        """Scores the models of earlier validations on the objects of this one, so that they can be compared."""
        if self.validation is None or self.best is None or self.start is None:
            return
        best, _ = self.validation.measure(
            Sam2Model.from_pretrained(self.folder / "best").to(self.accelerator.device),
            self.best.step,
            self.accelerator,
        )
        if self.start.step == self.best.step:
            self.start = best
        elif not isinstance(self.config.model, Sam2Config):
            model = Sam2Model.from_pretrained(self.config.model).to(self.accelerator.device)
            self.start, _ = self.validation.measure(model, self.start.step, self.accelerator)
        self.best = best

    def _write_config(self) -> None:
        if self.accelerator.is_main_process:
            with self._writing(), replacing(self.folder / "config.yaml") as unfinished:
                unfinished.write_text(yaml.safe_dump(as_yaml(self.given), sort_keys=False), encoding="utf-8")

    def _is_validation_due(self) -> bool:
        """Whether a validation is due after the last step and was not finished before an interruption."""
        step = self.trainer.step
        is_due = step == self.config.steps or step % self.config.validate_every == 0
        return self.validation is not None and is_due and (self.last is None or self.last.step != step)

    def _catch_up(self) -> Iterator[Scores]:
        """Does what an interruption may have prevented after the last step: its validation, and the model ``last``."""
        if self._is_validation_due():
            yield from self._validate()
            self._save()
        else:
            self._write_model("last", self.trainer.averaged_model())

    def _validate(self) -> Iterator[Scores]:
        assert self.validation is not None
        model = self.trainer.averaged_model()
        scores, samples = self.validation.measure(model, self.trainer.step, self.accelerator)
        if scores is None:
            return
        self._log({"step": scores.step, "score": scores.score, **scores.values})
        if self.accelerator.is_main_process:
            self._write_curve()
            self._write_samples(samples)
            self.trackers.show(samples, self.trainer.step)
        if self.best is None or scores.score > self.best.score:
            self._write_model("best", model)
            self.best = scores
        # Set last, so that a validation that is interrupted is repeated.
        self.start = self.start or scores
        self.last = scores
        yield scores

    def _save(self) -> None:
        """Writes the state first, because it is what cannot be made again."""
        if not self.accelerator.is_main_process:
            return
        notes = {name: scores and asdict(scores) for name in SAVED_SCORES for scores in (getattr(self, name),)}
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

    def _write_samples(self, samples: list[Sample]) -> None:
        for number, sample in enumerate(samples):
            path = self.folder / "samples" / f"{self.trainer.step:06}-{number}.jpg"
            with self._writing(), replacing(path) as unfinished:
                sample.paint().save(unfinished, quality=90)

    def _log(self, line: Mapping[str, Any]) -> None:
        if self.accelerator.is_main_process:
            with self._writing(), (self.folder / "log.jsonl").open("a", encoding="utf-8") as log:
                log.write(json.dumps(line) + "\n")
        self.trackers.log(line)

    def _drop_later_lines(self) -> None:
        """Removes log lines of steps and validations that are about to be repeated."""
        log, step = self.folder / "log.jsonl", self.trainer.step
        validated = step if self.last is None else self.last.step
        if self.accelerator.is_main_process and log.exists():
            lines = [
                line
                for line in log.read_text(encoding="utf-8").splitlines()
                if _step_of(line) <= (validated if '"score"' in line else step)
            ]
            with self._writing(), replacing(log) as unfinished:
                unfinished.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")

    @contextmanager
    def _saved_on_failure(self) -> Iterator[None]:
        """Saves the last complete step when the data fail or the run is interrupted."""
        try:
            yield
        except (ImageError, DataError, VideoError) as error:
            self._save()
            # The launcher ends all processes when one ends, but the main process has yet to save.
            self.accelerator.wait_for_everyone()
            raise TrainingError(
                f"{error}. The run was saved after step {self.trainer.step}: fix the data, then start it again to "
                "resume"
            ) from error
        except (KeyboardInterrupt, Terminated):
            if self.trainer.is_between_steps:
                self._save()
            raise
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            raise TrainingError(self._explain_out_of_memory()) from error

    def _explain_out_of_memory(self) -> str:
        if self.trainer.processes == 1 and self.trainer.is_between_steps:  # others would wait for this process
            self.trainer.free_memory()
            self._save()
        config, stage = self.config, self.config.stage_at(min(self.trainer.step, self.config.steps - 1))
        changes = [] if config.checkpoint_activations else ["checkpoint_activations: true"]
        if following := next(
            (
                n
                for n in range(config.micro_batches + 1, stage.batch_size + 1)
                if all(s.batch_size % n == 0 for s in config.stages)
            ),
            None,
        ):
            changes.append(f"micro_batches: {following}")
        if config.precision == "float32":
            changes.append("precision: auto")
        return (
            f"step {self.trainer.step + 1} ran out of memory. Set {', or '.join(changes) or 'a smaller batch_size'}, "
            "then start the run again to resume it. If that is not enough, start a new run with fewer objects, rounds "
            "or frames"
        )

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Turns errors of writing into a TrainingError."""
        try:
            yield
        except OSError as error:
            raise TrainingError(
                f"cannot write to {self.folder}: {error}. The last save is unchanged; make room, then start the run "
                "again to resume it"
            ) from error


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


def _check_trackers(config: TrainingConfig) -> None:
    for name in config.trackers:
        if find_spec(name) is None:
            raise ConfigError(f"trackers name {name}, which is not installed: pip install {name}, or remove it")


def _cache_for(config: TrainingConfig) -> Callable[[Sam2Model], FeatureCache] | None:
    """Makes the feature cache of a model, if one is configured."""
    if config.cache is None:
        return None
    trained = [name for stage in config.stages for name in TRAINABLE[stage.train]]
    adapted = [] if config.lora is None else [t for t in config.lora.targets if t.startswith(("*", "vision"))]
    if "image_encoder" in trained or adapted:
        raise ConfigError(
            "cache stores the features of a frozen image encoder, but this run trains the encoder: remove cache, or "
            "train decoder, frozen_encoder, memory, or lora with targets outside vision_encoder"
        )
    return partial(FeatureCache, Path(config.cache), max_bytes=config.cache_gb * GIGABYTE)


def train(
    config: TrainingConfig | Mapping[str, Any] | str | os.PathLike[str],
    run: str | os.PathLike[str],
    *,
    device: str = "auto",
) -> Summary:
    """Trains a model, or resumes a run that was interrupted.

    Args:
        config: A configuration, its values as a mapping, or the path of a YAML file.
        run: Folder for the results: ``best`` and ``last`` are models that ``masklet.load`` accepts.
        device: ``auto`` or ``cpu``. ``accelerate launch`` starts the same program once for each of several GPUs.

    Returns:
        The scores before training, of the best model and at the end.

    Raises:
        ConfigError: A setting is missing, unknown or invalid.
        DataError, ImageError, VideoError: The data cannot be read, or not as configured.
        CheckpointError: The model to start from cannot be read.
        TrainingError: The run cannot continue. Everything up to the last save is kept.
    """
    if isinstance(config, str | os.PathLike):
        config = read_config(Path(config))
    elif isinstance(config, Mapping):
        config = config_from(config)
    training = Run(config, run, device=device)
    for report in training.reports():
        if isinstance(report, Scores):
            _log.info("validation after step %d: %s", report.step, report)
    return training.summary()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the CPU or a GPU has too little memory."""
    return isinstance(error, MemoryError | torch.cuda.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def _scores_from(note: Mapping[str, Any] | None) -> Scores | None:
    return None if note is None else Scores(**note)


def _step_of(line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):  # the line was not written whole
        return 2**63
