"""Outlines with fewer points: Douglas and Peucker's method, made safe for all rings of a mask together.

Their method alone lets rings cross and swallows small neighbours. Here a chain of points that became one line is
divided again wherever that line turns a ring over, crosses another line, or passes over another ring.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

GRID = 32
"""Coordinates are whole numbers of 1/32 pixel, so that "does it cross?" has an exact answer."""
SMALLEST_TOLERANCE = 0.4
"""In pixels. No line between corners of pixels leaves one out that is nearer: the smallest step is √5/5 = 0.447."""
PAIRS_AT_ONCE = 2**20
"""Bounds the memory for pairs of lines that may cross."""


def simplify_rings(rings: Sequence[np.ndarray], tolerance: float) -> list[np.ndarray]:
    """Leaves out points of the exact rings of one mask.

    Args:
        rings: Each (points, 2), whole pixels, alternating horizontal and vertical edges; rings may touch in corners.
        tolerance: In pixels: no point of an outline is farther than this from its simplified outline, and vice versa.

    Returns:
        As many rings, each (points, 2) float32 with at least three points. They are simple, do not touch, and run and
        lie within each other as before. Where rings touched, they move apart by 1/32 of a pixel in x and y.
    """
    if tolerance < SMALLEST_TOLERANCE or not rings:
        return list(rings)
    outlines = Outlines.of(rings)
    keep = np.zeros(len(outlines.exact), bool)
    keep[outlines.first] = keep[outlines.last] = True
    while (divided := places_to_divide(outlines, keep, tolerance * GRID)).size:
        keep[divided] = True
    keep[outlines.last] = False
    return [
        (outlines.apart[first:last][keep[first:last]] / GRID).astype(np.float32)
        for first, last in zip(outlines.first, outlines.last, strict=True)
    ]


def check_tolerance(tolerance: float) -> None:
    """Raise a ValueError unless a tolerance is a finite number of pixels from 0."""
    if not 0 <= tolerance < math.inf:
        raise ValueError(f"tolerance must be a finite number of pixels, 0 or more, got {tolerance}")


@dataclass(frozen=True)
class Outlines:
    """All rings of a mask, one after the other, each with its first point again at its end; in units of the grid."""

    exact: np.ndarray
    """(points, 2) int64 xy: corners of pixels."""
    apart: np.ndarray
    """(points, 2) int64 xy: the same, moved by one unit where rings touch, so that none does."""
    first: np.ndarray
    """(rings,) int: the index of each ring's first point."""
    last: np.ndarray
    """(rings,) int: the index of its repetition."""
    is_last: np.ndarray
    """(points,) bool: whether a point is such a repetition."""

    @classmethod
    def of(cls, rings: Sequence[np.ndarray]) -> "Outlines":
        """From rings whose first point is not repeated."""
        closed = [np.concatenate([ring, ring[:1]]).astype(np.int64) * GRID for ring in rings]
        exact = np.concatenate(closed)
        last = np.cumsum([len(ring) for ring in closed]) - 1
        first = np.append(0, last[:-1] + 1)
        # At a corner where rings touch, each moves into the corner between its own two edges.
        into_corner = [np.sign(np.roll(ring, -1, 0) - ring) + np.sign(np.roll(ring, 1, 0) - ring) for ring in rings]
        steps = np.concatenate([np.concatenate([step, step[:1]]) for step in into_corner]).astype(np.int64)
        is_last = np.zeros(len(exact), bool)
        is_last[last] = True
        _, inverse, counts = np.unique(exact[~is_last] @ (1, 2**31), return_inverse=True, return_counts=True)
        touches = np.zeros(len(exact), bool)
        touches[~is_last] = counts[inverse.ravel()] > 1
        touches[last] = touches[first]
        return cls(exact, exact + steps * touches[:, None], first, last, is_last)


@dataclass(frozen=True)
class Chains:
    """The simplified rings: each line replaces a chain of points of an outline."""

    start: np.ndarray
    """(lines,) int: the index of the first point."""
    end: np.ndarray
    """(lines,) int: the index of the last point."""
    ring: np.ndarray
    """(lines,) int."""
    farthest: np.ndarray
    """(lines,) int: the index of the point that is left out and farthest from the line."""
    distance: np.ndarray
    """(lines,) float: of that point, in units of the grid; -1 if no point is left out."""

    @classmethod
    def of(cls, outlines: Outlines, keep: np.ndarray) -> "Chains":
        """The lines between points that are kept."""
        kept, is_last = np.flatnonzero(keep), outlines.is_last
        begins = ~is_last[kept[:-1]]
        start, end = kept[:-1][begins], kept[1:][begins]
        chain = np.arange(len(start)).repeat(end - start)  # of each point but the last ones
        origin, along = outlines.apart[start][chain], (outlines.apart[end] - outlines.apart[start])[chain]
        offset = outlines.exact[~is_last] - origin
        share = np.clip((offset * along).sum(1) / np.maximum((along**2).sum(1), 1), 0, 1)
        distances = np.hypot(*(offset - share[:, None] * along).T)
        distances[keep[~is_last]] = -1
        bounds = np.append(0, np.cumsum(end - start)[:-1])
        distance = np.maximum.reduceat(distances, bounds)
        places = np.flatnonzero(distances == distance[chain])
        _, firsts = np.unique(chain[places], return_index=True)
        farthest = np.flatnonzero(~is_last)[places[firsts]]
        return cls(start, end, np.searchsorted(outlines.last, start), farthest, distance)


def places_to_divide(outlines: Outlines, keep: np.ndarray, tolerance: float) -> np.ndarray:
    """Indices of points to keep as well: those too far from their line, or else those that fix the first fault found.

    Each check relies on those before it.
    """
    chains = Chains.of(outlines, keep)
    wrong = chains.distance > tolerance
    for check in (turned_over, crossing, passing_over):
        if wrong.any():
            break
        wrong = check(outlines, chains) & (chains.distance >= 0)
    return chains.farthest[wrong]


def turned_over(outlines: Outlines, chains: Chains) -> np.ndarray:
    """(lines,) bool: the line with the farthest point of each ring that has no area or runs the other way round."""
    areas = np.bincount(chains.ring, cross(outlines.apart[chains.start], outlines.apart[chains.end]))
    steps = cross(outlines.exact[:-1], outlines.exact[1:])
    steps[outlines.last[:-1]] = 0  # from one ring to the next
    is_wrong = areas * np.sign(np.add.reduceat(steps, outlines.first)) <= 0
    by_distance = np.lexsort((chains.distance, chains.ring))
    farthest = by_distance[np.searchsorted(chains.ring[by_distance], np.arange(len(areas)), "right") - 1]
    found = np.zeros(len(chains.start), bool)
    found[farthest[is_wrong]] = True
    return found


def crossing(outlines: Outlines, chains: Chains) -> np.ndarray:
    """(lines,) bool: of any two lines that cross, touch or fold back, the one with the farther point."""
    a, b = outlines.apart[chains.start], outlines.apart[chains.end]
    low, high = np.minimum(a, b), np.maximum(a, b)
    ring_end = outlines.last[chains.ring] == chains.end
    next_start = np.where(ring_end, outlines.first[chains.ring], chains.end)
    found = np.zeros(len(a), bool)
    for i, j in pairs_within(low[:, 0], high[:, 0], low[:, 0]):
        near = (i != j) & (low[i, 1] <= high[j, 1]) & (low[j, 1] <= high[i, 1])
        i, j = i[near], j[near]
        follows, precedes = next_start[i] == chains.start[j], next_start[j] == chains.start[i]
        meets = is_opposite(a[i], b[i], a[j], b[j]) & is_opposite(a[j], b[j], a[i], b[i])
        meets &= ~follows & ~precedes
        meets |= follows & folds(a[i], b[i], b[j])
        meets |= precedes & folds(a[j], b[j], b[i])
        i, j = i[meets], j[meets]
        found[np.where(chains.distance[i] >= chains.distance[j], i, j)] = True
    return found


def passing_over(outlines: Outlines, chains: Chains) -> np.ndarray:
    """(lines,) bool: those that changed sides with another ring, which now lies outside instead of inside."""
    bounds = np.append(0, np.cumsum(chains.end - chains.start)[:-1])
    points = outlines.apart[~outlines.is_last]
    low = np.minimum(np.minimum.reduceat(points, bounds), outlines.apart[chains.end])
    high = np.maximum(np.maximum.reduceat(points, bounds), outlines.apart[chains.end])
    tops = outlines.apart[outlines.first]  # one point of each ring, which all lines keep
    found = np.zeros(len(chains.start), bool)
    for line, ring in pairs_within(low[:, 0], high[:, 0], tops[:, 0]):
        near = (chains.ring[line] != ring) & (chains.distance[line] >= 0)
        near &= (low[line, 1] <= tops[ring, 1]) & (tops[ring, 1] <= high[line, 1])
        for one, other in zip(line[near].tolist(), ring[near].tolist(), strict=True):
            if not found[one]:
                found[one] = is_inside(tops[other], outlines.apart[chains.start[one] : chains.end[one] + 1])
    return found


def pairs_within(low: np.ndarray, high: np.ndarray, values: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """All pairs (i, j) with low[i] <= values[j] <= high[i], as two arrays, in parts that fit in memory."""
    order = np.argsort(values, kind="stable")
    begin = np.searchsorted(values[order], low, "left")
    counts = np.searchsorted(values[order], high, "right") - begin
    part = counts.cumsum() // PAIRS_AT_ONCE
    for number in np.unique(part):
        i = np.flatnonzero(part == number)
        count = counts[i]
        step = np.arange(count.sum()) - (count.cumsum() - count).repeat(count)
        yield i.repeat(count), order[begin[i].repeat(count) + step]


def cross(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(pairs,) int64: the cross products of (pairs, 2) vectors."""
    return first[:, 0] * second[:, 1] - first[:, 1] * second[:, 0]


def is_opposite(a: np.ndarray, b: np.ndarray, c: np.ndarray, d: np.ndarray) -> np.ndarray:
    """(pairs,) bool: whether the points c and d are on different sides of the line through a and b, or on it."""
    return np.sign(cross(b - a, c - a)) * np.sign(cross(b - a, d - a)) <= 0


def folds(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """(pairs,) bool: whether the way from a to b returns along itself to c."""
    return (cross(b - a, c - b) == 0) & (((b - a) * (c - b)).sum(1) < 0)


def is_inside(point: np.ndarray, ring: np.ndarray) -> bool:
    """Whether a point is inside a ring by the even-odd rule; exact for whole numbers."""
    start, end = ring - point, np.roll(ring, -1, axis=0) - point
    spans = (start[:, 1] <= 0) != (end[:, 1] <= 0)
    is_right = (cross(start, end) > 0) == (end[:, 1] > start[:, 1])
    return bool((spans & is_right).sum() % 2)
