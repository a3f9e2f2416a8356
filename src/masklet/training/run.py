"""A training run, from its configuration to its summary: data, steps, validations, and the files in its folder."""

from __future__ import annotations

import logging
import os
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from masklet.atomic import sweep
from masklet.config import Sam2Config
from masklet.datasets.scenes import Scene
from masklet.errors import ConfigError, DataError, ImageError, TrainingError, VideoError
from masklet.model.sam2 import Sam2Model
from masklet.training.batches import Examples
from masklet.training.config import TrainingConfig
from masklet.training.config_files import config_from, read_config
from masklet.training.features import cache_for
from masklet.training.interruption import StopSignals, Terminated
from masklet.training.loop import Initialiser, StepReport, Trainer
from masklet.training.objective import ExtraLossFactory
from masklet.training.out_of_memory import explanation, is_out_of_memory
from masklet.training.parameter_groups import OptimizerFactory, adamw
from masklet.training.processes import make_accelerator, uses_all_weights
from masklet.training.resuming import differences, steps_done
from masklet.training.run_data import open_data
from masklet.training.run_files import RunFiles
from masklet.training.tracking import Trackers, check_trackers
from masklet.training.validation import Scores, Validation

_log = logging.getLogger(__name__)

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
        check_trackers(config)
        self.files = RunFiles(self.folder)
        self.is_resumed = self.files.state.exists()
        if self.is_resumed:
            self._check_same(config)
        self.accelerator = make_accelerator(
            device, config.trackers, self.folder, find_unused=not uses_all_weights(config)
        )
        self.files.is_writer = self.accelerator.is_main_process
        if self.files.is_writer:
            sweep(self.folder)  # a process killed during a save leaves a file as large as the state
        self.examples, self.scenes = open_data(config, examples, scenes)
        self.trainer = Trainer(
            config,
            self.accelerator,
            cache=cache_for(config),
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
        step = steps_done(self.files.state)
        if step > config.steps:
            raise ConfigError(
                f"{self.folder} holds a run that has done {step} steps, more than the {config.steps} of this "
                "configuration: choose another folder for a new run, or raise steps"
            )
        if different := differences(self.files.config(), config, step):
            raise ConfigError(
                f"{self.folder} holds a run with different {', '.join(different)}: choose another folder for a new "
                f"run, or use {self.folder / 'config.yaml'} to resume this one"
            )

    def reports(self) -> Iterator[Scores | StepReport]:
        """Trains, and yields a report of each step and each validation. The first is the score before training.

        Raises:
            TrainingError: The run cannot continue; the message says why, and what is saved.
        """
        self.trackers.start(steps_done(self.files.state) if self.is_resumed else 0)
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
            notes = self.trainer.load(self.files.state)
            self.start, self.best, self.last = (_scores_from(notes[name]) for name in SAVED_SCORES)
            step = self.trainer.step
            self.files.drop_later_lines(step, step if self.last is None else self.last.step)
            if self.files.config().validation_objects != self.config.validation_objects:
                self._measure_anew()
            self.files.write_config(self.given)
            _log.info("resuming after step %d", self.trainer.step)
            return
        self.files.write_config(self.given)
        self.files.begin_log()
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
        self.files.write_curve()
        self.files.write_samples(samples, self.trainer.step)
        if self.accelerator.is_main_process:
            self.trackers.show(samples, self.trainer.step)
        if self.best is None or scores.score > self.best.score:
            self._write_model("best", model)
            self.best = scores
        # Set last, so that a validation that is interrupted is repeated.
        self.start = self.start or scores
        self.last = scores
        yield scores

    def _save(self) -> None:
        """Writes the state first, because it cannot be recomputed."""
        if not self.files.is_writer:
            return
        notes = {name: scores and asdict(scores) for name in SAVED_SCORES for scores in (getattr(self, name),)}
        with self.files.writing():
            self.trainer.save(self.files.state, notes)
        self._write_model("last", self.trainer.averaged_model())

    def _write_model(self, name: str, model: Sam2Model) -> None:
        self.files.write_model(name, model, torch.float16 if self.config.store_float16 else None)

    def _log(self, line: Mapping[str, Any]) -> None:
        self.files.log(line)
        self.trackers.log(line)

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
            if self.trainer.processes == 1 and self.trainer.is_between_steps:  # others would wait for this process
                self.trainer.free_memory()
                self._save()
            raise TrainingError(explanation(self.config, self.trainer.step)) from error


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


def _scores_from(note: Mapping[str, Any] | None) -> Scores | None:
    return None if note is None else Scores(**note)
