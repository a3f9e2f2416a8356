"""The functions that CVAT finds, as Nuclio describes them."""

from __future__ import annotations

import json
from typing import Any

INTERACTOR, TRACKER, DETECTOR = "masklet-interactor", "masklet-tracker", "masklet-detector"
LABEL = "object"
"""The only label of the detector: the network knows no classes."""
HELP = "Click on the object with the left button, beside it with the right one, or draw a box around it."

# CVAT reads switches as Python's bool(): only what is absent is off.
ANNOTATIONS: dict[str, dict[str, Any]] = {
    INTERACTOR: {
        "name": "masklet",
        "type": "interactor",
        "spec": "[]",
        "version": "2",
        "min_pos_points": "0",
        "min_neg_points": "0",
        "startswith_box_optional": "true",
        "help_message": HELP,
    },
    TRACKER: {
        "name": "masklet",
        "type": "tracker",
        "spec": "[]",
        "supported_shape_types": "rectangle,polygon,mask",
        "help_message": "Tracks the shapes of the current frame through the next ones.",
    },
    DETECTOR: {
        "name": "masklet (all objects)",
        "type": "detector",
        "spec": json.dumps([{"id": 0, "name": LABEL, "type": "mask", "attributes": []}]),
        "help_message": "Finds all objects.",
    },
}
DESCRIPTIONS = {
    INTERACTOR: "Segments the object that is clicked or boxed (SAM 2)",
    TRACKER: "Tracks shapes through a video (SAM 2)",
    DETECTOR: "Finds all objects of an image (SAM 2)",
}


def describe(function: str) -> dict[str, Any]:
    """A function, as Nuclio's dashboard shows it."""
    return {
        "metadata": {"name": function, "namespace": "nuclio", "annotations": ANNOTATIONS[function]},
        "spec": {"description": DESCRIPTIONS[function]},
        "status": {"state": "ready", "httpPort": 0},
    }
