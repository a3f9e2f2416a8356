"""Points and boxes in napari's layers as prompts of objects. Needs nothing from napari.

napari counts (…, row, column) from the centre of the first pixel, and so does SAM: a point is not moved.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from masklet.config import SizeHW


class Key(NamedTuple):
    """An object in a frame."""

    frame: int
    object_id: int


@dataclass(frozen=True)
class LayerPrompt:
    """The prompts of one object in one frame, in pixels."""

    points: tuple[tuple[float, float, int], ...] = ()
    """(x, y, 1 on the object or 0 beside it)."""
    box: tuple[float, float, float, float] | None = None
    """x0 y0 x1 y1."""

    @property
    def can_segment(self) -> bool:
        """Whether there is more than background points."""
        return self.box is not None or any(label for _, _, label in self.points)

    @property
    def keywords(self) -> dict[str, Any]:
        """Arguments for ``EncodedImage.predict`` and ``VideoSession.prompt``."""
        return {"points": self.points or None, "box": self.box}


def read_layers(
    points: np.ndarray,
    point_features: Mapping[str, Sequence[Any]],
    boxes: Sequence[np.ndarray],
    box_features: Mapping[str, Sequence[Any]],
    size_hw: SizeHW,
) -> dict[Key, LayerPrompt]:
    """The prompts of all objects in all frames.

    Args:
        points: (points, 2 or 3): [frame,] row, column, in pixels of the image layer.
        point_features: "object", the id of each point's object, and "positive", whether it is on the object.
        boxes: Corners of each box, (corners, 2 or 3). The smallest upright box around them counts.
        box_features: "object", as for points.
        size_hw: Size of a frame. Points and boxes outside of it are moved to its edge.
    """
    height, width = size_hw
    found: dict[Key, LayerPrompt] = {}
    for position, object_id, positive in zip(points, point_features["object"], point_features["positive"], strict=True):
        key = key_of(position, object_id)
        before = found.get(key, LayerPrompt())
        x, y = float(np.clip(position[-1], 0, width)), float(np.clip(position[-2], 0, height))
        found[key] = LayerPrompt((*before.points, (x, y, int(bool(positive)))), before.box)
    for corners, object_id in zip(boxes, box_features["object"], strict=True):
        key = key_of(corners[0], object_id)
        (y0, x0), (y1, x1) = corners[:, -2:].min(0), corners[:, -2:].max(0)
        box = tuple(float(side) for side in np.clip((x0, y0, x1, y1), 0, (width, height, width, height)))
        if box[0] < box[2] and box[1] < box[3]:
            found[key] = LayerPrompt(found.get(key, LayerPrompt()).points, (box[0], box[1], box[2], box[3]))
    return {key: prompt for key, prompt in found.items() if prompt.can_segment}


def key_of(position: Sequence[float] | np.ndarray, object_id: Any) -> Key:
    """The frame and the object of a point."""
    return Key(round(float(position[0])) if len(position) > 2 else 0, int(object_id))


def paint(labels: np.ndarray, masks: Mapping[int, np.ndarray]) -> None:
    """Replace objects in one frame of a Labels layer, in place. Later objects cover earlier ones, and those not named.

    Args:
        labels: (height, width) of whole numbers.
        masks: Mask of each object id, (height, width) bool.
    """
    labels[np.isin(labels, list(masks))] = 0
    for object_id, mask in masks.items():
        labels[mask] = object_id
