"""Joins the rings of an outline into one, for formats without holes or components."""

from collections.abc import Sequence

import numpy as np

MAX_ENDS = 4096
"""Points that lines may lead to; bounds the time to find the nearest."""


def joined_ring(rings: Sequence[np.ndarray]) -> np.ndarray:
    """One ring around several.

    Each ring is connected to one before it, where they are nearest to each other, or nearly so with many points. The
    connecting lines run both ways and enclose nothing: filled by the even-odd rule, the ring gives the same pixels.

    Args:
        rings: At least one, each (points, 2).

    Returns:
        (points, 2), of the same type.
    """
    if len(rings) == 1:
        return rings[0]
    points = np.concatenate(rings)
    bounds = np.cumsum([0, *map(len, rings)]).tolist()
    loops = [list(range(first, end)) for first, end in zip(bounds, bounds[1:], strict=False)]
    branches = connect(points, bounds)
    order: list[int] = []
    ahead = loops[0][::-1]
    while ahead:
        order.append(here := ahead.pop())
        if branches.get(here):
            ring, entry = branches[here].pop()
            start = entry - bounds[ring]
            ahead.append(here)  # after the way around the other ring
            ahead += [entry, *reversed(loops[ring][start:] + loops[ring][:start])]
    return points[order]


def connect(points: np.ndarray, bounds: Sequence[int]) -> dict[int, list[tuple[int, int]]]:
    """Finds where each ring but the first is connected to one before it.

    Args:
        points: (points, 2): all rings, one after the other.
        bounds: (rings + 1) the first point of each, and the end.

    Returns:
        For points from which lines start, the rings that these lead to, each with the point where it arrives.
    """
    step = -(-len(points) // MAX_ENDS)
    ends = np.concatenate([np.arange(first, end, step) for first, end in zip(bounds, bounds[1:], strict=False)])
    places = points[ends].astype(float)
    ring_of = np.searchsorted(bounds, ends, "right") - 1
    firsts = np.searchsorted(ring_of, np.arange(len(bounds))).tolist()
    branches: dict[int, list[tuple[int, int]]] = {}
    for ring in range(1, len(bounds) - 1):
        first, last = firsts[ring], firsts[ring + 1]
        known = slice(max(0, first - MAX_ENDS), first)
        gaps = ((places[first:last, None] - places[known]) ** 2).sum(-1)
        arrival, start = np.unravel_index(gaps.argmin(), gaps.shape)
        branches.setdefault(int(ends[known][start]), []).append((ring, int(ends[first + arrival])))
    return branches
