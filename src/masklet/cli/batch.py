"""masklet batch."""

from __future__ import annotations

import json
import sys
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from math import inf
from typing import TYPE_CHECKING, Annotated, Any

import typer

from masklet.cli.cluster import ClusterOptions
from masklet.cli.groups import grouped
from masklet.cli.options import POLICY_HELP, GridOptions, ModelOptions, PixelOptions, complete_policy, given
from masklet.cli.tables import show_table

if TYPE_CHECKING:
    from masklet.batch.runs import Progress

VIDEO_TASKS = "Videos"
SECONDS_PER_LINE = 10
"""Least time between two lines of progress in a log."""


@dataclass(frozen=True, kw_only=True)
class TrackOptions:
    """How videos are tracked; None for the defaults."""

    direction: Annotated[
        str | None,
        typer.Option(help="forward, backward or both.", show_default="forward", rich_help_panel=VIDEO_TASKS),
    ] = None
    every: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="track: track every Nth frame. discover: search every Nth frame.",
            show_default="1; 30",
            rich_help_panel=VIDEO_TASKS,
        ),
    ] = None
    policy: Annotated[
        str | None,
        typer.Option(
            help=POLICY_HELP,
            show_default="paper",
            autocompletion=complete_policy,
            rich_help_panel=VIDEO_TASKS,
        ),
    ] = None
    chunk_frames: Annotated[
        int, typer.Option(min=1, help="Frames after which a video is saved.", rich_help_panel=VIDEO_TASKS)
    ] = 1000

    @property
    def keywords(self) -> dict[str, Any]:
        """Those of ``make_task``."""
        return given(direction=self.direction, every=self.every, policy=self.policy)


@grouped
def run_batch(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A folder, a pattern in quotation marks, a list of addresses (.txt, .parquet), or an address such as s3://bucket/images.",
        ),
    ],
    *,
    out: Annotated[
        str, typer.Option("--out", "-o", metavar="FOLDER", help="A folder, or an address that can be written.")
    ],
    task: Annotated[
        str, typer.Option(help="everything or prompts, for images; track or discover, for videos.")
    ] = "everything",
    prompts: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Prompts of the inputs: .json, .jsonl, .csv, .parquet, or a COCO data set."),
    ] = None,
    format: Annotated[
        str, typer.Option(metavar="NAMES", help="Besides parquet: coco, png, or both, separated by commas.")
    ] = "parquet",
    block: Annotated[int, typer.Option(min=1, help="Images in one file of the results.")] = 64,
    print_json: Annotated[
        bool, typer.Option("--json", help="Print a line of JSON with the progress after each file of results.")
    ] = False,
    track: TrackOptions,
    cluster: ClusterOptions,
    grid: GridOptions,
    pixels: PixelOptions,
    model: ModelOptions,
) -> None:
    """Segment a data set: every image or video of a source to Parquet files, on one machine or on Ray.

    Repeat the command to continue an interrupted run. Inputs that cannot be processed do not stop the
    others: failures.parquet names them with the reason, and the next run tries them again.
    """
    from masklet.batch.prompt_files import read_prompt_file
    from masklet.batch.runs import Run
    from masklet.batch.tasks import make_task

    run = Run(
        source,
        out,
        make_task(task, grid.keywords, pixels.keywords, **track.keywords),
        None if prompts is None else read_prompt_file(prompts),
        model.keywords,
        [name.strip() for name in format.split(",")],
        block,
        track.chunk_frames,
    )
    unit = "images" if run.task.kind == "image" else "frames"
    (progress,) = deque(_shown(run(cluster.execute()), print_json, unit), maxlen=1)
    if not print_json:
        show_totals(progress)
    if progress.failed:
        inputs = "1 input" if progress.failed == 1 else f"{progress.failed} inputs"
        print(f"masklet: {inputs} failed: see failures.parquet in {out}", file=sys.stderr)
        raise typer.Exit(1)


def show_totals(progress: Progress) -> None:
    """Prints what a run has done."""
    names = ("processed", "failed", "finished before", "frames", "masks", "seconds")
    counts = (progress.done, progress.failed, progress.skipped, progress.frames, progress.masks)
    show_table(names, [(*counts, f"{progress.seconds:.1f}")])


def _shown(steps: Iterator[Progress], print_json: bool, unit: str) -> Iterator[Progress]:
    """Shows the progress as a bar; in a pipe as lines; or as lines of JSON on stdout."""
    if print_json:
        for step in steps:
            print(json.dumps(step.to_json()), flush=True)
            yield step
    elif sys.stderr.isatty():
        yield from _with_bar(steps, unit)
    else:
        yield from _with_lines(steps, unit)


def _with_lines(steps: Iterator[Progress], unit: str) -> Iterator[Progress]:
    """Prints a line for a log at the start, and later every ``SECONDS_PER_LINE`` at most."""
    printed = -inf
    for step in steps:
        if step.seconds >= printed + SECONDS_PER_LINE:
            printed = step.seconds
            before = f", {step.skipped} finished before" if step.skipped else ""
            count = f"{step.done + step.failed} of {step.total} inputs{before}"
            print(f"masklet: {count}{_speed(step, unit)}", file=sys.stderr, flush=True)
        yield step


def _with_bar(steps: Iterator[Progress], unit: str) -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as Bar

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
    with Bar(*columns, console=Console(stderr=True), redirect_stdout=False) as bar:
        task = bar.add_task("")
        for step in steps:
            bar.update(task, total=step.total, completed=step.worked + step.earlier, description=_speed(step, unit))
            yield step


def _speed(step: Progress, unit: str) -> str:
    """The speed of all workers, of the slowest and the fastest one, and the time left."""
    if not step.frames:
        return ""
    rates = sorted(step.worker_rates.values())
    each = f" ({len(rates)} workers, {rates[0]:.1f} to {rates[-1]:.1f} each)" if len(rates) > 1 else ""
    left = "" if step.seconds_left is None else f", {timedelta(seconds=round(step.seconds_left))} left"
    return f", {step.frames_per_second:.1f} {unit}/s{each}{left}"
