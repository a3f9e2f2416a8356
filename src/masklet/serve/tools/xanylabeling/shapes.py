"""Marks as prompts, masks as X-AnyLabeling's polygons."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, Field

from masklet.errors import PromptError
from masklet.masks import Patch, joined_ring, patch_polygons, patches
from masklet.masks.polygons import simplify_polygons
from masklet.results import Masks
from masklet.serve.tools.objects import Box, ObjectPrompt, Point, objects_of
from masklet.serve.tools.xanylabeling.models import FINENESS

LABEL = "AUTOLABEL_OBJECT"
"""X-AnyLabeling asks the user for the label of shapes with this one."""


class Mark(BaseModel):
    """A point or a rectangle that the user drew, in pixels."""

    type: Literal["point", "rectangle"]
    label: int = 1
    data: list[float] = Field(min_length=2, max_length=4)


class Params(BaseModel):
    """Parameters of a request."""

    conf_threshold: float = 0.0
    epsilon_factor: float = Field(default=FINENESS, ge=0, le=1, allow_inf_nan=False)
    marks: list[Mark] = Field(default=[], max_length=1000)


def objects_of_marks(marks: list[Mark]) -> list[ObjectPrompt]:
    """The objects that marks prompt. A rectangle to remove is a background point in its middle.

    Raises:
        PromptError: A mark lacks a number; there is no mark of the object.
    """
    points: list[Point] = []
    boxes: list[Box] = []
    for mark in marks:
        if len(mark.data) != (2 if mark.type == "point" else 4):
            raise PromptError(f"a {mark.type} of {len(mark.data)} numbers: expected [x, y], or [x0, y0, x1, y1]")
        if mark.type == "point":
            points.append((mark.data[0], mark.data[1], int(bool(mark.label))))
            continue
        x0, x1 = sorted(mark.data[::2])
        y0, y1 = sorted(mark.data[1::2])
        if mark.label:
            boxes.append((x0, y0, x1, y1))
        else:
            points.append(((x0 + x1) / 2, (y0 + y1) / 2, 0))
    return objects_of(points, boxes)


def shapes_of(masks: Masks, epsilon: float, group_ids: list[int | None] | None = None) -> list[dict[str, Any]]:
    """A polygon for each connected component. Those of one object are a group.

    Args:
        masks: The masks.
        epsilon: How far polygons may be from the exact outline, as a share of its length.
        group_ids: Number of each mask's group; None: only masks of several components get one.
    """
    shapes = []
    for number, (patch, score) in enumerate(zip(patches(masks.masks), masks.iou_scores.tolist(), strict=True)):
        rings = outlines(patch, epsilon)
        group = (number + 1 if len(rings) > 1 else None) if group_ids is None else group_ids[number]
        shapes += [shape(ring.tolist(), score, group) for ring in rings]
    return shapes


def outlines(patch: Patch, epsilon: float) -> list[np.ndarray]:
    """(points, 2) x and y of each connected component, holes joined to the outline."""
    polygons = patch_polygons(patch)
    if epsilon:
        polygons = [
            part for polygon in polygons for part in simplify_polygons([polygon], epsilon * length(polygon.rings[0]))
        ]
    return [joined_ring(polygon.rings).astype(float) for polygon in polygons]


def length(ring: np.ndarray) -> float:
    """Length of a closed ring, in pixels."""
    return float(np.linalg.norm(ring - np.roll(ring, 1, axis=0), axis=1).sum())


def shape(points: list[list[float]], score: float, group_id: int | None) -> dict[str, Any]:
    """A polygon with all fields that X-AnyLabeling knows."""
    return {
        "label": LABEL,
        "shape_type": "polygon",
        "points": points,
        "score": score,
        "group_id": group_id,
        "attributes": {},
        "description": None,
        "difficult": False,
        "direction": 0,
        "flags": None,
        "kie_linking": [],
    }
