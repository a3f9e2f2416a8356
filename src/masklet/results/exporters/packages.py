"""Classes of other packages."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from masklet.results.exports import MaskExports


def detections(masks: MaskExports, class_ids: Sequence[int], labels: Sequence[str] | None) -> Any:
    """``supervision.Detections``, see ``Masks.to_supervision``."""
    return optional_package("supervision", "to_supervision()").Detections(
        xyxy=masks.boxes,
        mask=np.asarray(masks.masks),
        confidence=masks.iou_scores,
        class_id=np.array(class_ids, int),
        tracker_id=masks.object_ids,
        data={} if labels is None else {"class_name": np.array(labels, str)},
    )


def data_frame(masks: MaskExports, labels: Sequence[str] | None) -> Any:
    """A ``pandas.DataFrame``, see ``Masks.to_pandas``."""
    columns: dict[str, Any] = {"object_id": masks.object_ids, "score": masks.iou_scores, "area": masks.areas}
    columns |= dict(zip(("x0", "y0", "x1", "y1"), masks.boxes.T, strict=True))
    columns |= {} if labels is None else {"class": labels}
    return optional_package("pandas", "to_pandas()").DataFrame({**columns, "segmentation": masks.to_rle()})


def optional_package(name: str, caller: str) -> Any:
    """Imports a package that only ``caller`` needs; the error says how to install it."""
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{caller} needs the package {name}: pip install {name}", name=name) from error
