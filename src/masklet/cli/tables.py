"""Rich tables and progress bars on a terminal; in a pipe tab-separated text, and nothing beside it."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")


def show_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, title: str | None = None) -> None:
    """Print a table; in a pipe the title is left out and every row is one line, so that cut and awk can read it."""
    if not sys.stdout.isatty():
        for row in (columns, *rows):
            print("\t".join(map(str, row)))
        return
    from rich.console import Console  # on a terminal alone: it takes longer to import than a pipe should wait
    from rich.table import Table

    table = Table(*columns, title=title, title_justify="left")
    for row in rows:
        table.add_row(*map(str, row))
    Console().print(table)


def show_progress(items: Iterable[T], total: int | None, *, unit: str) -> Iterator[T]:
    """The same items, with a progress bar: how many there were, how many a second, the time left."""
    if total == 1 or not sys.stderr.isatty():
        yield from items
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    rate = TextColumn("{task.fields[rate]:.1f} " + unit + "/s")
    columns = (BarColumn(), MofNCompleteColumn(), rate, TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("", total=total, rate=0.0)
        for item in items:
            yield item
            progress.advance(task)
            progress.update(task, rate=progress.tasks[0].speed or 0.0)
