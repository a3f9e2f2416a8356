"""Rich tables on a terminal, tab-separated text in a pipe."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence


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
