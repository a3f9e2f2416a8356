"""Meta's ``sam2`` package: builders, predictors and the automatic mask generator, with its names and signatures.

``install()`` lets other code import ``sam2``::

    import masklet.compat.sam2
    masklet.compat.sam2.install()
    from sam2.build_sam import build_sam2
"""

from __future__ import annotations

import sys
from importlib import import_module

from masklet.compat.sam2.build_sam import (
    build_sam2,
    build_sam2_camera_predictor,
    build_sam2_hf,
    build_sam2_video_predictor,
    build_sam2_video_predictor_hf,
)

__all__ = [
    "build_sam2",
    "build_sam2_camera_predictor",
    "build_sam2_hf",
    "build_sam2_video_predictor",
    "build_sam2_video_predictor_hf",
    "install",
]

_MODULES = {
    "automatic_mask_generator": "automatic_mask_generator",
    "build_sam": "build_sam",
    "modeling": "network",
    "modeling.sam2_base": "network",
    "sam2_camera_predictor": "sam2_camera_predictor",
    "sam2_image_predictor": "sam2_image_predictor",
    "sam2_video_predictor": "sam2_video_predictor",
    "utils": "utils",
    "utils.amg": "utils.amg",
    "utils.misc": "utils.misc",
    "utils.transforms": "utils.transforms",
}
"""Modules of Meta's package, and ours in their place."""


def install() -> None:
    """Makes ``import sam2`` and imports of its modules find the ones here, in this process. May be called again.

    Raises:
        ImportError: Another ``sam2`` was imported already.
    """
    here = sys.modules[__name__]
    if sys.modules.get("sam2", here) is not here:
        raise ImportError("another sam2 package was imported already: call install() before the first import of sam2")
    sys.modules["sam2"] = here
    for theirs, ours in _MODULES.items():
        sys.modules[f"sam2.{theirs}"] = import_module(f"{__name__}.{ours}")
