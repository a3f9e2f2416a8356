"""Functions for ``cvat-cli``: automatic annotation of a task, and agents that answer clicks and track shapes in CVAT.

::

    cvat-cli task auto-annotate 137 --function-module masklet.integrations.cvat -p function=str:detection
    cvat-cli function create-native masklet --function-module masklet.integrations.cvat -p function=str:interaction
    cvat-cli function run-agent 12 --function-module masklet.integrations.cvat -p function=str:interaction
"""

from __future__ import annotations

from typing import Any

from masklet.errors import ConfigError
from masklet.integrations.cvat.shapes import SHAPE_TYPES, ShapeType

__all__ = ["FUNCTIONS", "SHAPE_TYPES", "ShapeType", "create"]

FUNCTIONS = ("detection", "interaction", "tracking")


def create(function: str = "detection", **parameters: Any) -> Any:
    """The function that ``cvat-cli`` asks this module for.

    Args:
        function: "detection" finds all objects of an image, "interaction" segments what is clicked, "tracking" tracks
            shapes through frames.
        parameters: Arguments of ``Detection``, ``Interaction`` or ``Tracking``.

    Returns:
        An object with CVAT's interface.

    Raises:
        ConfigError: There is no such function, or it has no such parameter.
    """
    if function not in FUNCTIONS:
        raise ConfigError(
            f"function {function!r}: expected one of {', '.join(FUNCTIONS)}, as in -p function=str:tracking"
        )
    # Each needs cvat-sdk, which the server, whose shapes are in this package too, does not.
    from masklet.integrations.cvat import functions

    kinds = {"detection": functions.Detection, "interaction": functions.Interaction, "tracking": functions.Tracking}
    try:
        return kinds[function](**parameters)
    except TypeError as error:
        raise ConfigError(f"{error}: see the parameters of masklet.integrations.cvat.functions") from error
