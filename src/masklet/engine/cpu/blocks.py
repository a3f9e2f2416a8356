"""Blocks of rows, for the threads of the pool."""

from __future__ import annotations

from masklet.engine.cpu.threads import num_threads

FEWEST_ROWS = 256
"""Least number of rows in a block; with fewer, reading the weights costs too much."""


def row_blocks(rows: int, most: int) -> list[slice]:
    """Blocks of nearly equal size, at most ``most`` rows each; as many for every thread if there are enough rows."""
    threads, fewest = num_threads(), -(-rows // most)
    count = max(1, min(-(-fewest // threads) * threads, max(fewest, rows // FEWEST_ROWS)))
    edges = [rows * i // count for i in range(count + 1)]
    return [slice(*pair) for pair in zip(edges[:-1], edges[1:], strict=True)]
