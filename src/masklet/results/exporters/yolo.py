"""YOLO: a text file of outlines beside an image."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from masklet.masks import joined_ring, patch_polygons, patches

if TYPE_CHECKING:
    from masklet.results.exports import MaskExports


def yolo_text(masks: MaskExports, class_ids: Sequence[int], tolerance: float) -> str:
    """Lines of a YOLO label file, see ``Masks.to_yolo``."""
    height, width = masks.size_hw
    lines = []
    for patch, class_id in zip(patches(masks.masks), class_ids, strict=True):
        if polygons := patch_polygons(patch, tolerance=tolerance):
            ring = joined_ring(list(chain.from_iterable(polygon.rings for polygon in polygons)))
            shares = (ring / np.array((width, height))).ravel()
            lines.append(" ".join([str(class_id), *(f"{share:.7g}" for share in shares)]) + "\n")
    return "".join(lines)
