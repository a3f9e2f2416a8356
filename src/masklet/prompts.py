"""Reads points and boxes from users: checks them and converts them to pixels of the network's input.

Coordinates are (x, y), x right and y down, in pixels of the original image. Sizes are (height, width). The image is
stretched to the network's input, so each axis has its own scale.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from masklet.config import BACKGROUND, BOX_BOTTOM_RIGHT, BOX_TOP_LEFT, FOREGROUND, PADDING, SizeHW
from masklet.errors import PromptError
from masklet.mask_prompts import CheckedMasks, check_masks, mask_logits
from masklet.numbers import MAX_COORDINATE, shown
from masklet.tensors import is_tensor

if TYPE_CHECKING:
    from torch import Tensor

    from masklet.model.prompt_encoder import Prompts

_Point: TypeAlias = tuple[float, float, int]
"""x, y and label."""


def to_model_pixels(points_xy: Tensor, *, size_hw: SizeHW, input_hw: SizeHW) -> Tensor:
    """Converts (..., 2) from pixels of the original image to pixels of the network's input."""
    return points_xy * _scale_xy(size_hw, input_hw, points_xy)


def from_model_pixels(points_xy: Tensor, *, size_hw: SizeHW, input_hw: SizeHW) -> Tensor:
    """Converts (..., 2) from pixels of the network's input to pixels of the original image."""
    return points_xy / _scale_xy(size_hw, input_hw, points_xy)


def _scale_xy(size_hw: SizeHW, input_hw: SizeHW, like: Tensor) -> Tensor:
    import torch

    scale = [input_hw[1] / size_hw[1], input_hw[0] / size_hw[0]]
    return torch.tensor(scale, dtype=like.dtype, device=like.device)


@dataclass(frozen=True)
class CheckedPrompts:
    """The prompts of an image as arrays, with points in pixels of the network's input."""

    points: np.ndarray
    """(objects, points, 2) float32, x then y; box corners first."""
    labels: np.ndarray
    """(objects, points) int64: 1, 0, 2 and 3 for box corners, -10 for padding."""
    masks: CheckedMasks | None
    has_padding: bool

    def __len__(self) -> int:
        return len(self.labels)


def read_prompts(
    points: Any = None,
    labels: Any = None,
    boxes: Any = None,
    mask: Any = None,
    *,
    size_hw: SizeHW,
    input_hw: SizeHW,
) -> Prompts:
    """Checks the prompts of an image and converts them to pixels of the network's input.

    Args:
        points: (points, 2) on one object, or one such list for each object; a third number is the point's label.
        labels: Nested as the points: 1 foreground, 0 background. All foreground if None.
        boxes: (objects, 4), x0 y0 x1 y1. An empty list stands for no objects, as do points of shape (0, points, 2) and
            a mask of shape (0, height, width).
        mask: A mask for each object, see ``mask_prompts.check_masks``.
        size_hw: Size of the original image.
        input_hw: Size of the network's input.

    Raises:
        PromptError: The prompts are invalid or do not fit together.
    """
    import torch

    from masklet.model.prompt_encoder import Prompts

    checked = check_prompts(points, labels, boxes, mask, size_hw=size_hw, input_hw=input_hw)
    if not len(checked):
        return Prompts(boxes=torch.zeros(1, 0, 4, dtype=torch.float32, device="cpu"))
    masks = None if checked.masks is None else mask_logits(checked.masks, input_hw)[None]
    if not checked.labels.shape[1]:
        return Prompts(masks=masks)
    points, labels = (torch.from_numpy(values)[None] for values in (checked.points, checked.labels))
    return Prompts(points, labels, masks=masks, has_padding=checked.has_padding)


def check_prompts(
    points: Any = None,
    labels: Any = None,
    boxes: Any = None,
    mask: Any = None,
    *,
    size_hw: SizeHW,
    input_hw: SizeHW,
) -> CheckedPrompts:
    """As ``read_prompts``, for code without torch."""
    if labels is not None and points is None:
        raise PromptError("labels came without points: expected one label for each point")
    if points is None and boxes is None and mask is None:
        raise PromptError("nothing to segment: expected points, a box or a mask")
    corners = None if boxes is None else _read_boxes(boxes)
    clicks = None if points is None else _read_clicks(points, labels, of_no_objects=corners == [])
    masks = None if mask is None else check_masks(mask, size_hw=size_hw, input_hw=input_hw)
    objects = _count_of_objects(points=clicks, boxes=corners, mask=masks)
    # A binary mask alone is not enough for the network, which was trained to refine its own logits.
    corners = masks.boxes if corners is None and masks is not None else corners
    rows: list[list[_Point]] = [[] for _ in range(objects)]
    for index, row in enumerate(rows):
        if corners is not None:
            check_box(corners[index], size_hw, index)
            x0, y0, x1, y1 = corners[index]
            row += [(x0, y0, BOX_TOP_LEFT), (x1, y1, BOX_BOTTOM_RIGHT)]
        for point in clicks[index] if clicks is not None else []:
            check_point(point[:2], size_hw)
            row.append(point)
    return _checked(rows, masks, size_hw=size_hw, input_hw=input_hw)


def _count_of_objects(**given: Sequence[Any] | CheckedMasks | None) -> int:
    """The number of objects that the prompts are for. Raises a PromptError if it differs between them."""
    counts = {name: len(values) for name, values in given.items() if values is not None}
    if len(set(counts.values())) > 1:
        came = ", ".join(f"{name} for {count}" for name, count in counts.items())
        raise PromptError(f"prompts are for different numbers of objects: {came}. Expected the same number in each")
    return next(iter(counts.values()))


def _checked(
    rows: list[list[_Point]], masks: CheckedMasks | None, *, size_hw: SizeHW, input_hw: SizeHW
) -> CheckedPrompts:
    """Points of each object, in pixels of the original image, and masks, as arrays."""
    longest = max(map(len, rows), default=0)
    padded = [row + [(PADDING, PADDING, PADDING)] * (longest - len(row)) for row in rows]
    filled = np.array(padded, np.float32).reshape(len(rows), longest, 3)
    scale_xy = np.array([input_hw[1] / size_hw[1], input_hw[0] / size_hw[0]], np.float32)
    has_padding = any(len(row) < longest for row in rows)
    return CheckedPrompts(filled[..., :2] * scale_xy, filled[..., 2].astype(np.int64), masks, has_padding)


def check_point(point_xy: Sequence[float], size_hw: SizeHW) -> None:
    """Raise a PromptError unless the point is on the image or on its edge."""
    x, y = point_xy
    height, width = size_hw
    if not (math.isfinite(x) and math.isfinite(y)):
        raise PromptError(f"point ({x:g}, {y:g}) is not a position: expected two finite numbers, x and y in pixels")
    if not (0 <= x <= width and 0 <= y <= height):
        raise PromptError(
            f"point ({x:g}, {y:g}) is outside the image: x runs from 0 to {width}, y from 0 to {height}. "
            "Points are (x, y) in pixels of the original image, not (row, column) and not 0 to 1"
        )


def check_box(box_xyxy: Sequence[float], size_hw: SizeHW, index: int) -> None:
    """Raise a PromptError unless the box has an area and overlaps the image, in float32, which the network reads."""
    height, width = size_hw
    found = f"box {index} is ({', '.join(f'{value:g}' for value in box_xyxy)})"
    if not all(map(math.isfinite, box_xyxy)):
        raise PromptError(f"{found}: expected four finite numbers, x0 y0 x1 y1 in pixels")
    if max(map(abs, box_xyxy)) > MAX_COORDINATE:
        raise PromptError(f"{found}: expected x0 y0 x1 y1 in pixels of the {width}×{height} image")
    x0, y0, x1, y1 = np.array(box_xyxy, np.float32)
    if x1 <= x0 or y1 <= y0:
        raise PromptError(
            f"{found}: expected x0 < x1 and y0 < y1 (pixels of the {width}×{height} image; corners, not a width and "
            "a height)"
        )
    if x1 <= 0 or y1 <= 0 or x0 >= width or y0 >= height:
        raise PromptError(f"{found}: it lies outside the image, which is {width} pixels wide and {height} high")


def one_box(box: Any) -> list[Any]:
    """Converts a single box to ``boxes``. It may be nested once more: [[x0, y0, x1, y1]], as in Meta's examples.

    Raises:
        PromptError: There are several boxes, or none.
    """
    nested = as_lists(box)
    if not isinstance(nested, list) or (nested and not isinstance(nested[0], list)):
        return [nested]
    if len(nested) != 1:
        raise PromptError(
            f"box holds {len(nested)} boxes: expected (x0, y0, x1, y1) around one object. Images take any number of "
            "boxes as boxes=; in a video, prompt each object with its own box"
        )
    return nested


def one_or_more_boxes(box: Any, boxes: Any) -> Any:
    """``boxes``, of which ``box`` is a single one.

    Raises:
        PromptError: Both were given.
    """
    if box is not None and boxes is not None:
        raise PromptError("box and boxes were both given: expected box for one object, or boxes for several")
    return boxes if box is None else one_box(box)


def _read_clicks(points: Any, labels: Any, *, of_no_objects: bool) -> list[list[_Point]]:
    """Points and labels of each object; an empty list of points may stand for no objects."""
    nested, label_lists = as_lists(points), None if labels is None else as_lists(labels)
    if nested == [] and (of_no_objects or len(getattr(points, "shape", ())) == 3):
        if label_lists:
            raise PromptError(f"labels for {len(label_lists)} objects were given with points for no objects")
        return []
    if nested == []:
        raise PromptError(
            "points are empty: expected at least one (x, y) on the object. If there are no objects, give boxes of "
            "shape (0, 4) or points of shape (0, points, 2)"
        )
    if (depth := depth_of(nested, "points")) == 2:
        nested, label_lists = [nested], None if label_lists is None else [label_lists]
    elif depth != 3:
        raise PromptError(
            f"points are nested {depth} deep: expected [(x, y), …] for one object, or one such list for each object"
        )
    if label_lists is not None and (counts := _counts(label_lists)) != _counts(nested):
        raise PromptError(
            f"labels do not match the points: {counts} labels and {_counts(nested)} points for each object. Expected "
            "one label (1 foreground, 0 background) for each point, nested as the points are"
        )
    clicks = []
    for index, row in enumerate(nested):
        if not row:
            raise PromptError(f"object {index} has an empty list of points: expected at least one (x, y)")
        clicks.append(
            [_read_click(point, None if label_lists is None else label_lists[index][i]) for i, point in enumerate(row)]
        )
    return clicks


def _read_click(point: Any, label: Any) -> _Point:
    if len(point) == 3 and label is None:
        point, label = point[:2], point[2]
    if len(point) != 2:
        raise PromptError(f"point {shown(tuple(point))} has {len(point)} numbers: expected (x, y), or (x, y, label)")
    label = FOREGROUND if label is None else label
    if label not in (BACKGROUND, FOREGROUND):
        raise PromptError(f"label {shown(label)}: expected 1 (on the object) or 0 (not on it)")
    return _as_float(point[0]), _as_float(point[1]), int(label)


def _as_float(number: float) -> float:
    """Converts to a float; whole numbers that are too large become infinite."""
    try:
        return float(number)
    except OverflowError:
        return math.inf if number > 0 else -math.inf


def _read_boxes(boxes: Any) -> list[list[float]]:
    nested = as_lists(boxes)
    if nested == [] and (len(shape := getattr(boxes, "shape", (0,))) == 1 or shape[1:] == (4,)):
        return []  # a detector that found nothing
    if depth_of(nested, "boxes") != 2 or any(len(box) != 4 for box in nested):
        raise PromptError(f"boxes are {shown(boxes)}: expected a list of (x0, y0, x1, y1), or box= for a single one")
    return [[_as_float(value) for value in box] for box in nested]


def as_lists(values: Any) -> Any:
    """Converts arrays and tensors at any depth to lists."""
    if is_tensor(values) or isinstance(values, np.ndarray | np.generic):
        return values.tolist()
    if isinstance(values, list | tuple):
        return [as_lists(value) for value in values]
    return values


def depth_of(nested: Any, name: str) -> int:
    """The number of levels of lists above the numbers, which must be the same everywhere.

    Raises:
        PromptError: It is not, or there is something else than numbers, or an empty list.
    """
    if not isinstance(nested, list):
        if isinstance(nested, bool) or not isinstance(nested, int | float):
            raise PromptError(f"{name} hold {shown(nested)}: expected numbers in nested lists")
        return 0
    if not nested:
        raise PromptError(f"{name} hold an empty list: expected at least one value in every list")
    depths = {depth_of(value, name) for value in nested}
    if len(depths) > 1:
        raise PromptError(f"{name} are nested {min(depths) + 1} deep in one place and {max(depths) + 1} in another")
    return depths.pop() + 1


def _counts(rows: Any) -> list[int]:
    """The length of each list; 0 for anything that is not a list."""
    return [len(row) if isinstance(row, list) else 0 for row in rows] if isinstance(rows, list) else []
