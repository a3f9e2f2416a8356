"""Rich tables and progress bars on a terminal; tab-separated text without a progress bar in a pipe."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")


def show_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, title: str | None = None) -> None:
    """Prints a table. In a pipe it has no title and one line per row, for cut and awk."""
    if not sys.stdout.isatty():
        for row in (columns, *rows):
            print("\t".join(map(str, row)))
        return
    from rich.console import Console  # on a terminal only: importing it takes long
    from rich.table import Table

    table = Table(*columns, title=title, title_justify="left")
    for row in rows:
        table.add_row(*map(str, row))
    Console().print(table)


def show_progress(items: Iterable[T], total: int | None, *, unit: str) -> Iterator[T]:
    """Yields the items and shows a progress bar with the count, the rate and the time left."""
    if total == 1 or not sys.stderr.isatty():
        yield from items
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    rate = TextColumn("{task.fields[rate]:.1f} " + unit + "/s")
    columns = (BarColumn(), MofNCompleteColumn(), rate, TimeRemainingColumn())
    # Rich would send what is printed to stdout meanwhile, which may be results, to the terminal.
    with Progress(*columns, console=Console(stderr=True), redirect_stdout=False) as progress:
        task = progress.add_task("", total=total, rate=0.0)
        for item in items:
            yield item
            progress.advance(task)
            progress.update(task, rate=progress.tasks[0].speed or 0.0)
