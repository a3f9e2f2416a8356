"""The progress of a run as an SVG plot: mean IoU of training and validation over its steps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

WIDTH, HEIGHT = 640, 300
LEFT, TOP, RIGHT, BOTTOM = 40, 14, 12, 34
"""Margins around the plot, in pixels, with room for labels."""
MAX_POINTS = 80
"""Maximum number of points of a line; each is the mean of consecutive steps."""
TICKS = 5
FIRST_PROMPT, LAST_ROUND, VALIDATION = "#9ab8e8", "#2b63c4", "#d2691e"
"""Colours of the lines."""
LEGEND = {FIRST_PROMPT: "IoU of first prompts", LAST_ROUND: "corrected or tracked", VALIDATION: "validation score"}


def curve_svg(lines: Sequence[Mapping[str, Any]]) -> str:
    """Plots the log of a run.

    Args:
        lines: The lines of ``log.jsonl``: steps, with the ``ious`` of their rounds, and validations, with their
            ``score``.

    Returns:
        An SVG file. Its lines are mean IoUs, 0 to 1: of first prompts; after the last correction or, on clips, in the
        tracked frames; and validation scores.
    """
    steps = [line for line in lines if "ious" in line]
    scores = [(line["step"], line["score"]) for line in lines if "score" in line]
    last = max(1, *(line["step"] for line in lines))

    def place(step: float, iou: float) -> str:
        x = LEFT + (WIDTH - LEFT - RIGHT) * step / last
        return f"{x:.1f},{TOP + (HEIGHT - TOP - BOTTOM) * (1 - iou):.1f}"

    elements = []
    for row in range(TICKS + 1):
        x, y = place(0, row / TICKS).split(",")
        elements.append(f'<path d="M{x},{y}H{WIDTH - RIGHT}" stroke="#ccc"/>')
        elements.append(f'<text x="{LEFT - 6}" y="{float(y) + 4:.1f}" text-anchor="end">{row / TICKS:.1f}</text>')
    for step in sorted({round(last * column / TICKS) for column in range(TICKS + 1)}):
        x, y = place(step, 0).split(",")
        elements.append(f'<text x="{x}" y="{float(y) + 16:.1f}" text-anchor="middle">{step:,}</text>')
    for round_, colour in ((0, FIRST_PROMPT), (-1, LAST_ROUND)):
        means = _means([(line["step"], line["ious"][round_]) for line in steps])
        elements.append(_line([place(*point) for point in means], colour))
    elements.append(_line([place(*point) for point in scores], VALIDATION))
    for x, y in (place(*point).split(",") for point in scores):
        elements.append(f'<circle cx="{x}" cy="{y}" r="3.5" fill="{VALIDATION}"/>')
    elements += [_legend(column, *entry) for column, entry in enumerate(LEGEND.items())]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="11" fill="#444">\n<rect width="100%" height="100%" fill="#fff"/>\n'
        + "\n".join(elements)
        + "\n</svg>\n"
    )


def _means(points: Sequence[tuple[int, float]]) -> list[tuple[float, float]]:
    """Means of consecutive points, so that at most ``MAX_POINTS`` remain."""
    if not points:
        return []
    groups = np.array_split(np.array(points, float), min(MAX_POINTS, len(points)))
    return [(float(step), float(iou)) for step, iou in (group.mean(0) for group in groups) if math.isfinite(iou)]


def _line(places: Sequence[str], colour: str) -> str:
    return f'<polyline points="{" ".join(places)}" fill="none" stroke="{colour}" stroke-width="2"/>'


def _legend(column: int, colour: str, name: str) -> str:
    x, y = LEFT + 12 + 160 * column, HEIGHT - 8
    return f'<path d="M{x},{y}h20" stroke="{colour}" stroke-width="2"/><text x="{x + 26}" y="{y + 4}">{name}</text>'
