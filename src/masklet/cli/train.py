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
"""Of the table of a whole run, at most."""


def train(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.yaml", help="What to train, on what and how.")],
    run: Annotated[
        Path, typer.Option(help="Folder for the models, the log and the state; a run that is there goes on.")
    ] = Path("run"),
    data: Annotated[str | None, typer.Option(metavar="FOLDER", help="Instead of the data's path in the file.")] = None,
    model: Annotated[str | None, typer.Option(help="To begin from, instead of the model in the file.")] = None,
    device: Annotated[str, typer.Option(help="auto or cpu.")] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="Of torch on a CPU; its own choice if not given.")] = None,
) -> None:
    """Fine-tune a model on your own masks, or train one from nothing."""
    import torch

    from masklet.training.config import read_config
    from masklet.training.run import Run

    if threads is not None:
        torch.set_num_threads(threads)
    whole = Run(read_config(config, data=data, model=model), run, device=device)
    if not whole.accelerator.is_main_process:  # one of several processes speaks for all
        for _ in whole.reports():
            pass
        return
    with _table(whole) as table:
        _follow(whole, table)
    print(whole.summary())


class Table(Protocol):
    """Where rows and the state of things go."""

    def row(self, *cells: str) -> None:
        """Add a row."""

    def at(self, step: int, text: str) -> None:
        """Show how far things are."""


def _follow(run: Run, table: Table) -> None:
    """Go through the run; a row every few steps, and one for each measurement."""
    from masklet.training.validation import Scores

    every = max(1, run.config.steps // ROWS)
    first, began = None, time.monotonic()
    for report in run.reports():
        if isinstance(report, Scores):
            table.row(*_score_cells(report))
            continue
        if first is None:
            first, began = report.step, time.monotonic()
        seconds = (time.monotonic() - began) / max(report.step - first, 1)
        left = timedelta(seconds=round(seconds * (run.config.steps - report.step)))
        table.at(report.step, f"IoU {report.ious[-1]:.3f}, {left} left")
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
    """A Rich table that grows, above a bar; in a pipe tab-separated lines."""
    if sys.stdout.isatty():
        with _LiveTable(run.config.steps) as live:
            yield live
    else:
        yield _Lines()


class _Lines:
    """Rows as they come, for a file or another program."""

    def __init__(self) -> None:
        print("\t".join(COLUMNS), flush=True)

    def row(self, *cells: str) -> None:
        print("\t".join(cells), flush=True)

    def at(self, step: int, text: str) -> None:
        pass


class _LiveTable:
    """The last rows and a bar, redrawn in place."""

    SHOWN = 20

    def __init__(self, steps: int) -> None:
        from rich.console import Console
        from rich.live import Live
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        self.rows: list[tuple[str, ...]] = []
        self.progress = Progress(BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
        self.task = self.progress.add_task("measuring the model as it is", total=steps)
        self.live = Live(self._drawn(), console=Console(), refresh_per_second=4)

    def __enter__(self) -> _LiveTable:
        self.live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.live.stop()

    def row(self, *cells: str) -> None:
        self.rows.append(cells)
        self.live.update(self._drawn())

    def at(self, step: int, text: str) -> None:
        self.progress.update(self.task, completed=step, description=text)

    def _drawn(self) -> Group:
        from rich.console import Group
        from rich.table import Table as RichTable

        table = RichTable(*COLUMNS)
        for cells in self.rows[-self.SHOWN :]:
            table.add_row(*cells)
        return Group(table, self.progress)
