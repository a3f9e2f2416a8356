"""The models that X-AnyLabeling shows in its list: one for clicks, one for all objects, one for videos."""

from __future__ import annotations

from typing import Any

CLICKS, EVERYTHING, VIDEO = "masklet", "masklet-everything", "masklet-video"
FINENESS = 0.001
"""X-AnyLabeling's own: the tolerance of an outline as a share of its length."""


def widgets(*names: str) -> list[dict[str, Any]]:
    """Parts of X-AnyLabeling's window that a model shows."""
    return [{"name": name, "value": None} for name in names]


POINTS = ("button_add_point", "button_remove_point")
MODELS: dict[str, dict[str, Any]] = {
    CLICKS: {
        "display_name": "masklet (clicks and boxes)",
        "widgets": [
            *widgets(*POINTS, "button_add_rect", "button_clear", "button_finish_object"),
            {"name": "mask_fineness_slider", "value": FINENESS},
            *widgets("mask_fineness_value_label", "toggle_preserve_existing_annotations"),
        ],
        "params": {"epsilon_factor": FINENESS},
        "batch_processing_mode": None,
    },
    EVERYTHING: {
        "display_name": "masklet (all objects)",
        "widgets": [
            *widgets("button_run", "input_conf"),
            {"name": "edit_conf", "value": 0.0},
            {"name": "mask_fineness_slider", "value": FINENESS},
            *widgets("mask_fineness_value_label", "toggle_preserve_existing_annotations"),
        ],
        "params": {"conf_threshold": 0.0, "epsilon_factor": FINENESS},
        "batch_processing_mode": "default",
    },
    VIDEO: {
        "display_name": "masklet (video)",
        "widgets": [
            *widgets(*POINTS, "button_clear", "button_finish_object"),
            {"name": "mask_fineness_slider", "value": FINENESS},
            *widgets("mask_fineness_value_label", "toggle_preserve_existing_annotations"),
        ],
        "params": {"epsilon_factor": FINENESS},
        "batch_processing_mode": "video",
    },
}
