"""masklet train."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import typer

from masklet.atomic import replacing
from masklet.cli.groups import grouped
from masklet.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Group

    from masklet.training.loop import StepReport
    from masklet.training.run import Run
    from masklet.training.validation import Scores

COLUMNS = ("step", "total", "focal", "dice", "iou", "object", "train IoU", "rate", "s/step", "validation")
STAGE_OPTIONS = ("train", "steps", "batch_size", "objects", "rounds", "frames", "input_size")
TEMPLATE_NAME = "train.yaml"
ROWS = 200
"""Maximum number of rows for the steps of a run."""


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Settings of a run that are set often; None leaves them as they are."""

    data: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Override the path of the data in CONFIG.yaml.")
    ] = None
    model: Annotated[str | None, typer.Option(help="Model to start from: a name, a folder or a .pt file.")] = None
    train: Annotated[
        str | None, typer.Option(help="Weights to train: decoder, lora, frozen_encoder, everything or memory.")
    ] = None
    steps: Annotated[int | None, typer.Option(min=1, help="Number of optimizer steps.")] = None
    learning_rate: Annotated[float | None, typer.Option("--learning-rate", "--lr", help="Peak learning rate.")] = None
    batch_size: Annotated[int | None, typer.Option(min=1, help="Images or clips in a step.")] = None
    objects: Annotated[int | None, typer.Option(min=1, help="Objects prompted in each of them.")] = None
    rounds: Annotated[int | None, typer.Option(min=1, help="Decodings of each object: a prompt, then corrections.")] = (
        None
    )
    frames: Annotated[int | None, typer.Option(min=1, help="Frames of a clip; 1 for images.")] = None
    input_size: Annotated[int | None, typer.Option(min=1, help="Height and width of the network's input.")] = None
    validation: Annotated[float | None, typer.Option(help="Share of the data to validate on.")] = None
    precision: Annotated[str | None, typer.Option(help="auto, bfloat16, float16 or float32.")] = None
    workers: Annotated[int | None, typer.Option(min=1, help="Processes that read data.")] = None
    set: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Set anything else: --set stages.losses.focal=5. Repeatable."),
    ] = None

    @property
    def changes(self) -> dict[str, Any]:
        """The settings to change, by their names in the configuration.

        Raises:
            ConfigError: A ``--set`` is not a name and a value.
        """
        changes: dict[str, Any] = {}
        places = {"data": "data.path", "validation": "data.validation"}
        places |= {name: f"stages.{name}" for name in STAGE_OPTIONS}
        for name, value in vars(self).items():
            if name != "set" and value is not None:
                changes[places.get(name, name)] = value
        for given in self.set or []:
            changes |= _setting(given)
        return changes


def _setting(given: str) -> dict[str, Any]:
    import yaml

    name, is_setting, text = given.partition("=")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        is_setting = ""
    if not is_setting or not name:
        raise ConfigError(f"--set {given}: expected NAME=VALUE, such as learning_rate=1e-4 or stages.0.steps=500")
    return {name: value}


@grouped
def train(
    source: Annotated[
        Path | None,
        typer.Argument(
            metavar="[DATA|CONFIG.yaml]",
            help="Images or videos with masks: a folder, or a COCO file. Or a YAML file with all settings.",
        ),
    ] = None,
    *,
    out: Annotated[
        Path, typer.Option("--out", "-o", "--run", help="Folder for the models, the log and the state.")
    ] = Path("run"),
    options: RunOptions,
    init: Annotated[
        bool, typer.Option("--init", help=f"Write {TEMPLATE_NAME}, a YAML file of all settings with comments, and end.")
    ] = False,
    device: Annotated[str, typer.Option(help="auto or cpu.")] = "auto",
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads of PyTorch; its default if not given.")
    ] = None,
) -> None:
    """Fine-tune a model on your own masks, or train one from scratch. The same command resumes a run."""
    from masklet.training import check_installed

    check_installed()
    from masklet.training.config_files import config_from, read_config

    if init:
        _write_template(source)
        return
    if source is None:
        raise ConfigError(
            "nothing to train on: give a folder of data, or a YAML file (masklet train --init writes one)"
        )
    if is_config(source):
        config = read_config(source, changes=options.changes)
    else:
        config = config_from(_values_for(source, options.changes))
    import torch

    from masklet.training.run import Run

    if threads is not None:
        torch.set_num_threads(threads)
    execute(Run(config, out, device=device))


def is_config(path: Path) -> bool:
    """Whether a file holds the settings of a run. JSON may also be the annotations of COCO."""
    if path.suffix.lower() in (".yaml", ".yml"):
        return True
    return path.suffix.lower() == ".json" and path.is_file() and '"stages"' in path.read_text(encoding="utf-8")


def _values_for(data: Path, changes: dict[str, Any]) -> dict[str, Any]:
    """The settings of the template for a data set, changed."""
    import yaml

    from masklet.datasets.detection import detect_layout
    from masklet.training.config_files import changed
    from masklet.training.template import template

    return changed(yaml.safe_load(template(detect_layout(data))), changes)


def _write_template(data: Path | None) -> None:
    from masklet.datasets.detection import detect_layout
    from masklet.training.template import EXAMPLE, template

    path = Path(TEMPLATE_NAME)
    text = template(EXAMPLE if data is None else detect_layout(data))
    if path.exists():
        raise ConfigError(f"there is a {path} already: rename it first")
    with replacing(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")
    print(f"wrote {path}: edit it, then run masklet train {path} --out RUN")


def execute(run: Run) -> None:
    """Executes a run. The main process prints a table of its steps and validations, then the summary."""
    if not run.accelerator.is_main_process:
        for _ in run.reports():
            pass
        return
    with _table(run) as table:
        _print_reports(run, table)
    print(run.summary())


class Table(Protocol):
    """Prints rows and progress."""

    def row(self, *cells: str) -> None:
        """Adds a row."""

    def update(self, step: int, text: str) -> None:
        """Shows the progress."""


def _print_reports(run: Run, table: Table) -> None:
    """Executes the run; prints a row every few steps and one for each validation."""
    from masklet.training.validation import Scores

    every = max(1, run.config.steps // ROWS)
    first, started = None, time.monotonic()
    for report in run.reports():
        if isinstance(report, Scores):
            table.row(*_score_cells(report))
            continue
        if first is None:
            first, started = report.step, time.monotonic()
        if report.step == first:  # it includes one-time work, so its duration is not typical
            seconds, left = math.nan, ""
        else:
            seconds = (time.monotonic() - started) / (report.step - first)
            left = f", {timedelta(seconds=round(seconds * (run.config.steps - report.step)))} left"
        table.update(report.step, f"IoU {report.ious[-1]:.3f}{left}")
        if report.step % every == 0:
            table.row(*_step_cells(report, seconds))


def _score_cells(scores: Scores) -> list[str]:
    name = "before training: " if scores.step == 0 else ""
    return [str(scores.step), *[""] * (len(COLUMNS) - 2), f"{name}{scores}"]


def _step_cells(report: StepReport, seconds: float) -> list[str]:
    losses = [f"{report.losses[name]:.4f}" for name in ("total", "focal", "dice", "iou", "object_score")]
    ious = f"{report.ious[0]:.3f} → {report.ious[-1]:.3f}"
    cells = [str(report.step), *losses, ious, f"{report.learning_rate:.1e}"]
    return [*cells, "" if math.isnan(seconds) else f"{seconds:.2f}", ""]


@contextmanager
def _table(run: Run) -> Iterator[Table]:
    """A live table above a progress bar in a terminal, tab-separated lines otherwise."""
    if sys.stdout.isatty():
        with _LiveTable(run.config.steps) as live:
            yield live
    else:
        yield _Lines()


class _Lines:
    """Prints rows as tab-separated lines, for files and other programs."""

    def __init__(self) -> None:
        print("\t".join(COLUMNS), flush=True)

    def row(self, *cells: str) -> None:
        print("\t".join(cells), flush=True)

    def update(self, step: int, text: str) -> None:
        pass


class _LiveTable:
    """The last rows and a progress bar, redrawn in place."""

    MAX_ROWS = 20

    def __init__(self, steps: int) -> None:
        from rich.console import Console
        from rich.live import Live
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        self.rows: list[tuple[str, ...]] = []
        self.progress = Progress(BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
        self.task = self.progress.add_task("validating the initial model", total=steps)
        self.live = Live(self._rendered(), console=Console(), refresh_per_second=4)

    def __enter__(self) -> _LiveTable:
        self.live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.live.stop()

    def row(self, *cells: str) -> None:
        self.rows.append(cells)
        self.live.update(self._rendered())

    def update(self, step: int, text: str) -> None:
        self.progress.update(self.task, completed=step, description=text)

    def _rendered(self) -> Group:
        from rich.console import Group
        from rich.table import Table as RichTable

        table = RichTable(*COLUMNS)
        for cells in self.rows[-self.MAX_ROWS :]:
            table.add_row(*cells)
        return Group(table, self.progress)
