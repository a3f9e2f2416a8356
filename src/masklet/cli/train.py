"""masklet train."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Protocol

import typer

if TYPE_CHECKING:
    from rich.console import Group

    from masklet.training.loop import StepReport
    from masklet.training.run import Run
    from masklet.training.validation import Scores

COLUMNS = ("step", "total", "focal", "dice", "iou", "object", "train IoU", "rate", "s/step", "validation")
ROWS = 200
"""Maximum number of rows for the steps of a run."""


def train(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.yaml", help="YAML file of the model, data and stages.")],
    run: Annotated[
        Path, typer.Option(help="Folder for the models, the log and the state. A run in it is resumed.")
    ] = Path("run"),
    data: Annotated[str | None, typer.Option(metavar="FOLDER", help="Overrides the path of the data.")] = None,
    model: Annotated[str | None, typer.Option(help="Overrides the model to start from.")] = None,
    device: Annotated[str, typer.Option(help="auto or cpu.")] = "auto",
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads of PyTorch; its default if not given.")
    ] = None,
) -> None:
    """Fine-tune a model on your own masks, or train one from scratch."""
    import torch

    from masklet.training.config import read_config
    from masklet.training.run import Run

    if threads is not None:
        torch.set_num_threads(threads)
    execute(Run(read_config(config, data=data, model=model), run, device=device))


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
        seconds = (time.monotonic() - started) / max(report.step - first, 1)
        left = timedelta(seconds=round(seconds * (run.config.steps - report.step)))
        table.update(report.step, f"IoU {report.ious[-1]:.3f}, {left} left")
        if report.step % every == 0:
            table.row(*_step_cells(report, seconds))


def _score_cells(scores: Scores) -> list[str]:
    name = "before training: " if scores.step == 0 else ""
    return [str(scores.step), *[""] * (len(COLUMNS) - 2), f"{name}{scores}"]


def _step_cells(report: StepReport, seconds: float) -> list[str]:
    losses = [f"{report.losses[name]:.4f}" for name in ("total", "focal", "dice", "iou", "object_score")]
    ious = f"{report.ious[0]:.3f} → {report.ious[-1]:.3f}"
    return [str(report.step), *losses, ious, f"{report.learning_rate:.1e}", f"{seconds:.2f}", ""]


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
