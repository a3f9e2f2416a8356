"""The course of a run as an image: mean IoU over its steps, of what it learns from and of what is kept from it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

WIDTH, HEIGHT = 640, 300
LEFT, TOP, RIGHT, BOTTOM = 40, 14, 12, 34
"""Of the image, in pixels: room for numbers around the plot."""
POINTS = 80
"""A line has so many at most, each the mean of the steps since the last."""
TICKS = 5
SHOWN, FOLLOWED, MEASURED = "#9ab8e8", "#2b63c4", "#d2691e"


def curve_svg(lines: Sequence[Mapping[str, Any]]) -> str:
    """Draw a run's log.

    Args:
        lines: Of ``log.jsonl``: steps, with the ``ious`` of their rounds, and measurements, with their ``score``.

    Returns:
        An SVG file: mean IoU, 0 to 1, when objects were shown; after their last correction or, in clips, in the other
        frames; and measured scores.
    """
    steps = [line for line in lines if "ious" in line]
    scores = [(line["step"], line["score"]) for line in lines if "score" in line]
    last = max(1, *(line["step"] for line in lines))

    def place(step: float, iou: float) -> str:
        x = LEFT + (WIDTH - LEFT - RIGHT) * step / last
        return f"{x:.1f},{TOP + (HEIGHT - TOP - BOTTOM) * (1 - iou):.1f}"

    drawn = []
    for row in range(TICKS + 1):
        x, y = place(0, row / TICKS).split(",")
        drawn.append(f'<path d="M{x},{y}H{WIDTH - RIGHT}" stroke="#ccc"/>')
        drawn.append(f'<text x="{LEFT - 6}" y="{float(y) + 4:.1f}" text-anchor="end">{row / TICKS:.1f}</text>')
    for step in sorted({round(last * column / TICKS) for column in range(TICKS + 1)}):
        x, y = place(step, 0).split(",")
        drawn.append(f'<text x="{x}" y="{float(y) + 16:.1f}" text-anchor="middle">{step:,}</text>')
    for round_, colour in ((0, SHOWN), (-1, FOLLOWED)):
        means = _means([(line["step"], line["ious"][round_]) for line in steps])
        drawn.append(_line([place(*point) for point in means], colour))
    drawn.append(_line([place(*point) for point in scores], MEASURED))
    for x, y in (place(*point).split(",") for point in scores):
        drawn.append(f'<circle cx="{x}" cy="{y}" r="3.5" fill="{MEASURED}"/>')
    names = {SHOWN: "IoU when shown", FOLLOWED: "corrected or followed", MEASURED: "measured on what was kept from it"}
    drawn += [_legend(column, *entry) for column, entry in enumerate(names.items())]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="11" fill="#444">\n<rect width="100%" height="100%" fill="#fff"/>\n'
        + "\n".join(drawn)
        + "\n</svg>\n"
    )


def _means(points: Sequence[tuple[int, float]]) -> list[tuple[float, float]]:
    """The means of as many neighbours as leave ``POINTS``."""
    if not points:
        return []
    groups = np.array_split(np.array(points, float), min(POINTS, len(points)))
    return [(float(step), float(iou)) for step, iou in (group.mean(0) for group in groups) if math.isfinite(iou)]


def _line(places: Sequence[str], colour: str) -> str:
    return f'<polyline points="{" ".join(places)}" fill="none" stroke="{colour}" stroke-width="2"/>'


def _legend(column: int, colour: str, name: str) -> str:
    x, y = LEFT + 12 + 160 * column, HEIGHT - 8
    return f'<path d="M{x},{y}h20" stroke="{colour}" stroke-width="2"/><text x="{x + 26}" y="{y + 4}">{name}</text>'
