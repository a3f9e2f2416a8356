"""Masks as Label Studio's regions."""

from __future__ import annotations

import base64
import io
import uuid
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

from masklet.masks import Patch, patches
from masklet.results import Masks
from masklet.results.exporters.label_studio import brush_values, polygon_values
from masklet.serve.tools.labelstudio.label_config import Control

POLYGON_TOLERANCE_PX = 1.0
"""Outlines that a person corrects need few points."""


def regions_of(mask: Masks, control: Control, label: str | None) -> list[dict[str, Any]]:
    """The regions of one mask: a polygon for each connected component, or one of any other kind; none if it is empty.

    Args:
        mask: One mask.
        control: The tag that shows it.
        label: The label that the user chose.
    """
    height, width = mask.size_hw
    key, patch = control.labels_key, next(patches(mask.masks))
    chosen = control.label(label)
    labels = {} if key is None or chosen is None else {key: [chosen]}
    return [
        {
            "id": uuid.uuid4().hex[:10],
            "from_name": control.name,
            "to_name": control.to_name,
            "original_width": width,
            "original_height": height,
            "image_rotation": 0,
            "type": key or control.output,
            "origin": "prediction",
            "score": float(mask.iou_scores[0]),
            "readonly": False,
            "value": {**value, **labels},
        }
        for value in values_of(patch, control, mask)
    ]


def values_of(patch: Patch, control: Control, mask: Masks) -> Iterator[dict[str, Any]]:
    """The values of the regions of a mask."""
    if not patch.inside.size:
        return
    if control.output == "brush":
        yield from brush_values(patch, mask.size_hw)
    elif control.output == "bitmask":
        yield bitmask_value(mask.masks[0])
    elif control.output == "polygon":
        yield from polygon_values(patch, mask.size_hw, POLYGON_TOLERANCE_PX)
    else:
        yield {**percent_box(mask.boxes[0].tolist(), mask.size_hw), "rotation": 0}


def bitmask_value(mask: np.ndarray) -> dict[str, Any]:
    """A mask as a PNG in a data address: opaque inside, transparent outside."""
    pixels = np.zeros((*mask.shape, 4), np.uint8)
    pixels[mask] = 255
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    url = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    return {"imageDataURL": url, "width": mask.shape[1], "height": mask.shape[0]}


def percent_box(box_xyxy: list[float], size_hw: tuple[int, int]) -> dict[str, float]:
    """A box in percent of the image."""
    (x0, y0, x1, y1), (height, width) = box_xyxy, size_hw
    return {
        "x": 100 * x0 / width,
        "y": 100 * y0 / height,
        "width": 100 * (x1 - x0) / width,
        "height": 100 * (y1 - y0) / height,
    }
