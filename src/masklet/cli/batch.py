"""masklet batch."""

from __future__ import annotations

import json
import sys
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from masklet.cli.cluster import ClusterOptions
from masklet.cli.groups import grouped
from masklet.cli.options import POLICY_HELP, GridOptions, ModelOptions, PixelOptions, complete_policy, given
from masklet.cli.tables import show_table

if TYPE_CHECKING:
    from masklet.batch.runs import Progress

VIDEO_TASKS = "Videos"


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
            help="A folder, a pattern, a list of addresses (.txt, .parquet), or an address such as s3://bucket/images.",
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
        bool, typer.Option("--json", help="Print a line of JSON with the progress after each file.")
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
    (progress,) = deque(_shown(run(cluster.execute()), print_json), maxlen=1)
    if not print_json:
        show_totals(progress)
    if progress.failed:
        print(f"masklet: {progress.failed} inputs failed: see failures.parquet in {out}", file=sys.stderr)
        raise typer.Exit(1)


def show_totals(progress: Progress) -> None:
    """Prints what a run has done."""
    names = ("processed", "failed", "finished before", "frames", "masks", "seconds")
    counts = (progress.done, progress.failed, progress.skipped, progress.frames, progress.masks)
    show_table(names, [(*counts, f"{progress.seconds:.1f}")])


def _shown(steps: Iterator[Progress], print_json: bool) -> Iterator[Progress]:
    """Shows the progress as a bar, or as lines of JSON."""
    if print_json or not sys.stderr.isatty():
        for step in steps:
            if print_json:
                print(json.dumps(step.to_json()), flush=True)
            yield step
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    rate = TextColumn("{task.fields[rate]}")
    with Bar(BarColumn(), MofNCompleteColumn(), rate, TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=None, rate="")
        for step in steps:
            speed = step.frames / step.seconds if step.seconds else 0
            bar.update(
                task,
                total=step.total,
                completed=step.done + step.failed,
                rate=f"{speed:.1f} frames/s, {len(step.workers)} workers",
            )
            yield step
