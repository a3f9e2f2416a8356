"""What a user drew on an image in Label Studio, as prompts of objects.

Coordinates of regions are percent of the image's width and height.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from masklet.config import SizeHW
from masklet.errors import PromptError
from masklet.numbers import real_number
from masklet.serve.tools.objects import Box, ObjectPrompt, Point, objects_of

POINTS = ("keypoint", "keypointlabels", "point")
BOXES = ("rectangle", "rectanglelabels", "box")
FULL = 100.0
"""Percent."""


def read_prompts(regions: Iterable[Mapping[str, Any]], size_hw: SizeHW) -> list[tuple[str | None, ObjectPrompt]]:
    """The objects that regions prompt, label by label, each with its label. See ``objects_of``.

    Regions that are neither points nor boxes are results of earlier calls, and ignored.

    Args:
        regions: ``context.result``.
        size_hw: Size of the image.

    Raises:
        PromptError: A region lacks its numbers; a label has only background points.
    """
    by_label: dict[str | None, tuple[list[Point], list[Box]]] = {}
    for region in regions:
        kind = region.get("type")
        if kind not in (*POINTS, *BOXES):
            continue
        points, boxes = by_label.setdefault(region_label(region), ([], []))
        if kind in BOXES:
            boxes.append(box_xyxy(region, size_hw))
        else:
            points.append((*point_xy(region, size_hw), int(is_positive(region))))
    return [(label, prompt) for label, drawn in by_label.items() for prompt in objects_of(*drawn)]


def region_label(region: Mapping[str, Any]) -> str | None:
    """The first label of a region."""
    labels = value_of(region).get(str(region.get("type")))
    return str(labels[0]) if isinstance(labels, list) and labels else None


def is_positive(region: Mapping[str, Any]) -> bool:
    """Whether a point is on the object: stated beside the value by old pages, in it by new ones."""
    value = value_of(region)
    return region.get("is_positive", value.get("positive", value.get("is_positive", True))) not in (False, 0, "false")


def point_xy(region: Mapping[str, Any], size_hw: SizeHW) -> tuple[float, float]:
    """A point in pixels."""
    x, y = (percent(region, key) for key in ("x", "y"))
    return x / FULL * size_hw[1], y / FULL * size_hw[0]


def box_xyxy(region: Mapping[str, Any], size_hw: SizeHW) -> Box:
    """A box in pixels."""
    x0, y0 = point_xy(region, size_hw)
    width, height = (percent(region, key) for key in ("width", "height"))
    return x0, y0, x0 + width / FULL * size_hw[1], y0 + height / FULL * size_hw[0]


def percent(region: Mapping[str, Any], key: str) -> float:
    """A number of a region's value. Raises a PromptError if it is missing or not a number."""
    return real_number(f"{region.get('type')}.{key}", value_of(region).get(key), PromptError, least=-1e4, most=1e4)


def value_of(region: Mapping[str, Any]) -> Mapping[str, Any]:
    """The value of a region, or the region itself where its keys are not nested."""
    value = region.get("value", region)
    return value if isinstance(value, Mapping) else {}
