"""Reads points, boxes and masks from users: checks them and converts them to pixels of the network's input.

Coordinates are (x, y), x right and y down, in pixels of the original image. Sizes are (height, width). The image is
stretched to the network's input, so each axis has its own scale.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from masklet.config import STRIDES, SizeHW
from masklet.errors import PromptError
from masklet.model.prompt_encoder import (
    BACKGROUND,
    BOX_BOTTOM_RIGHT,
    BOX_TOP_LEFT,
    FOREGROUND,
    NOT_A_POINT,
    PADDING,
    Prompts,
)

MASK_PROMPT_LOGIT = 10.0
"""The logit of pixels inside a binary mask: between that of fed-back logits and saturation."""


def to_model_pixels(points_xy: Tensor, *, size_hw: SizeHW, input_hw: SizeHW) -> Tensor:
    """Converts (..., 2) from pixels of the original image to pixels of the network's input."""
    return points_xy * _scale_xy(size_hw, input_hw, points_xy)


def from_model_pixels(points_xy: Tensor, *, size_hw: SizeHW, input_hw: SizeHW) -> Tensor:
    """Converts (..., 2) from pixels of the network's input to pixels of the original image."""
    return points_xy / _scale_xy(size_hw, input_hw, points_xy)


def _scale_xy(size_hw: SizeHW, input_hw: SizeHW, like: Tensor) -> Tensor:
    scale = [input_hw[1] / size_hw[1], input_hw[0] / size_hw[0]]
    return torch.tensor(scale, dtype=like.dtype, device=like.device)


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
        points: (points, 2) of one object or one such list for each object; a third number is the point's label.
        labels: Nested as the points: 1 foreground, 0 background. All foreground if None.
        boxes: (objects, 4), x0 y0 x1 y1.
        mask: A mask for each object: logits of an earlier prediction, or a binary mask of the image's size.
        size_hw: Of the original image.
        input_hw: Of the network's input.

    Raises:
        PromptError: The prompts are invalid or do not fit together.
    """
    if labels is not None and points is None:
        raise PromptError("labels came without points: expected one label for each point")
    if points is None and boxes is None and mask is None:
        raise PromptError("nothing to segment: expected points, a box or a mask")
    clicks: list[list[tuple[float, float, int]]] | None = None
    if points is not None:
        clicks = _read_clicks(points, labels)
    corners = None if boxes is None else _read_boxes(boxes)
    masks, mask_boxes = (None, None) if mask is None else read_masks(mask, size_hw=size_hw, input_hw=input_hw)

    counts = {
        name: len(values)
        for name, values in (("points", clicks), ("boxes", corners), ("mask", masks))
        if values is not None
    }
    if len(set(counts.values())) > 1:
        came = ", ".join(f"{name} for {count}" for name, count in counts.items())
        raise PromptError(f"prompts are for different numbers of objects: {came}. Expected the same number in each")
    if corners is None and mask_boxes is not None:
        # A binary mask alone is not enough for the network, which was trained to refine its own logits.
        corners = mask_boxes
    objects = next(iter(counts.values()))
    rows: list[list[tuple[float, float, int]]] = []
    for index in range(objects):
        row: list[tuple[float, float, int]] = []
        if corners is not None:
            x0, y0, x1, y1 = corners[index]
            check_box(corners[index], size_hw, index)
            row += [(x0, y0, BOX_TOP_LEFT), (x1, y1, BOX_BOTTOM_RIGHT)]
        for x, y, label in clicks[index] if clicks is not None else []:
            check_point((x, y), size_hw)
            row.append((x, y, label))
        rows.append(row)
    if not any(rows):
        return Prompts(masks=masks if masks is None else masks[None])
    longest = max(map(len, rows))
    filled = torch.tensor([row + [(PADDING, PADDING, PADDING)] * (longest - len(row)) for row in rows])
    labels_out = filled[..., 2].long()
    points_out = to_model_pixels(filled[..., :2], size_hw=size_hw, input_hw=input_hw)
    return Prompts(
        points_out[None],
        labels_out[None],
        masks=None if masks is None else masks[None],
        has_padding=any(len(row) < longest for row in rows),
    )


def check_point(point_xy: Sequence[float], size_hw: SizeHW) -> None:
    """Raise a PromptError unless the point is on the image or on its edge."""
    x, y = point_xy
    height, width = size_hw
    if not (math.isfinite(x) and math.isfinite(y)):
        raise PromptError(f"point ({x:g}, {y:g}) is not a place: expected two finite numbers, x and y in pixels")
    if not (0 <= x <= width and 0 <= y <= height):
        raise PromptError(
            f"point ({x:g}, {y:g}) is outside the image: x runs from 0 to {width}, y from 0 to {height}. "
            "Points are (x, y) in pixels of the original image, not (row, column) and not 0 to 1"
        )


def check_box(box_xyxy: Sequence[float], size_hw: SizeHW, index: int) -> None:
    """Raise a PromptError unless the box has an area and overlaps the image."""
    x0, y0, x1, y1 = box_xyxy
    height, width = size_hw
    found = f"box {index} is ({', '.join(f'{value:g}' for value in box_xyxy)})"
    if not all(map(math.isfinite, box_xyxy)):
        raise PromptError(f"{found}: expected four finite numbers, x0 y0 x1 y1 in pixels")
    if x1 <= x0 or y1 <= y0:
        raise PromptError(
            f"{found}: expected x0 < x1 and y0 < y1 (pixels of the {width}×{height} image; corners, not a width and "
            "a height)"
        )
    if x1 <= 0 or y1 <= 0 or x0 >= width or y0 >= height:
        raise PromptError(f"{found}: it lies outside the image, which is {width} pixels wide and {height} high")


def _read_clicks(points: Any, labels: Any) -> list[list[tuple[float, float, int]]]:
    nested, label_lists = _as_lists(points), None if labels is None else _as_lists(labels)
    if (depth := _depth(nested, "points")) == 2:
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


def _read_click(point: Any, label: Any) -> tuple[float, float, int]:
    if len(point) == 3 and label is None:
        point, label = point[:2], point[2]
    if len(point) != 2:
        raise PromptError(f"point {tuple(point)} has {len(point)} numbers: expected (x, y), or (x, y, label)")
    label = FOREGROUND if label is None else label
    if label not in (BACKGROUND, FOREGROUND):
        raise PromptError(f"label {label!r}: expected 1 (on the object) or 0 (not on it)")
    return float(point[0]), float(point[1]), int(label)


def _read_boxes(boxes: Any) -> list[list[float]]:
    nested = _as_lists(boxes)
    if _depth(nested, "boxes") != 2 or any(len(box) != 4 for box in nested):
        raise PromptError(f"boxes are {boxes!r}: expected a list of (x0, y0, x1, y1), or box= for a single one")
    return [[float(value) for value in box] for box in nested]


def read_masks(mask: Any, *, size_hw: SizeHW, input_hw: SizeHW) -> tuple[Tensor, list[list[float]] | None]:
    """Converts mask prompts to logits of a quarter of the input's size, and finds the boxes of binary masks.

    Args:
        mask: (h, w) or (objects, h, w). Floats of the network's mask size are logits. Booleans, 0 and 1, or 0 and 255
            of the image's size are a binary mask.
        size_hw: Of the original image.
        input_hw: Of the network's input.

    Returns:
        (objects, height / 4, width / 4) logits; and for binary masks (objects, 4) boxes, x0 y0 x1 y1.
    """
    values = _mask_array(mask)
    values = values[None] if values.ndim == 2 else values
    logits_hw = (input_hw[0] // STRIDES[0], input_hw[1] // STRIDES[0])
    shape_hw, is_float = values.shape[-2:], values.dtype.kind == "f"
    may_be_logits = is_float and shape_hw == logits_hw
    if values.ndim != 3 or len(values) == 0 or not (shape_hw == size_hw or may_be_logits):
        raise PromptError(
            f"mask has shape {values.shape} of {values.dtype}: expected the image's size {size_hw} (rows, columns) "
            f"for a plain mask, or {logits_hw} of floats for logits of an earlier prediction, with one more axis in "
            "front for several objects"
        )
    if is_float and not np.isfinite(values).all():
        raise PromptError("mask holds NaN or infinite values: expected finite logits, or a plain mask")
    if may_be_logits:
        return torch.from_numpy(values.astype(np.float32)), None
    if not ((values == 0) | (values == values.max())).all():
        raise PromptError(
            "mask of the image's size holds more than two values: expected a plain mask of 0 and 1 (or 255), or "
            f"logits of size {logits_hw}"
        )
    inside = torch.from_numpy(values > 0)
    if empty := [index for index, one in enumerate(inside) if not one.any()]:
        raise PromptError(f"mask {empty[0]} is empty: expected at least one pixel of the object")
    return plain_mask_logits(inside, logits_hw), [_box_around(one) for one in inside]


def plain_mask_logits(inside: Tensor, size_hw: SizeHW) -> Tensor:
    """Logits of another size for binary masks, on the CPU: (masks, height, width) bool to (masks, h, w) float32."""
    share = F.interpolate(inside[:, None].float(), size=size_hw, mode="bilinear", antialias=True)[:, 0]
    return MASK_PROMPT_LOGIT * (2 * share - 1)


def _mask_array(mask: Any) -> np.ndarray:
    """Converts numbers of any type and nesting to an array."""
    if isinstance(mask, Tensor):
        mask = mask.detach().cpu()
        mask = mask.float() if mask.is_floating_point() else mask  # numpy has no bfloat16
    try:
        values = np.asarray(mask)
    except ValueError:  # lists of different lengths, or an object of the caller's that looks like a list
        values = np.empty(0, dtype=object)
    if values.dtype.kind not in "buif":
        raise PromptError(
            f"mask is a {type(mask).__name__} and holds no plain numbers: expected an array (height, width), or the "
            "logits of an earlier result, mask=result.logits"
        )
    return values


def _box_around(inside: Tensor) -> list[float]:
    rows, columns = inside.any(1).nonzero(), inside.any(0).nonzero()
    return [float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)]


# Prompts of a batch of images, for ``Sam2Processor``


def pad_points(points: Any, labels: Any, sizes_hw: Sequence[SizeHW]) -> tuple[np.ndarray, np.ndarray]:
    """Converts nested points and labels of several images to arrays, padded with -10.

    Args:
        points: [image][object][point] (x, y), or [image][point] (x, y) for one object per image.
        labels: Nested as the points: 1 foreground, 0 background, -10 padding. All foreground if None.
        sizes_hw: Of the original images.

    Returns:
        (images, objects, points, 2) float32 in original pixels, and (images, objects, points) int64.
    """
    nested = _as_lists(points)
    depth = _depth(nested, "input_points")
    if depth not in (3, 4):
        raise PromptError(
            f"input_points are nested {depth} deep: expected 4 levels (image, object, point, xy), or 3 (image, point, "
            "xy) with one object an image"
        )
    label_lists = None if labels is None else _as_lists(labels)
    if label_lists is not None and _depth(label_lists, "input_labels") != depth - 1:
        raise PromptError(
            f"input_labels are nested {_depth(label_lists, 'input_labels')} deep and input_points {depth}: expected "
            "labels nested as the points, without the last level (xy)"
        )
    if depth == 3:
        nested = [[image] for image in nested]
        label_lists = None if label_lists is None else [[image] for image in label_lists]
    _check_images("input_points", nested, sizes_hw)
    if label_lists is None:
        label_lists = [[[FOREGROUND] * len(row) for row in image] for image in nested]
    counts = [_counts(image) for image in nested]
    if (label_counts := [_counts(image) for image in label_lists]) != counts:
        raise PromptError(
            f"input_labels hold {label_counts} labels for each image and object, input_points {counts} points: "
            "expected one label for each point"
        )
    for image, image_labels, size_hw in zip(nested, label_lists, sizes_hw, strict=True):
        for row, row_labels in zip(image, image_labels, strict=True):
            for point, label in zip(row, row_labels, strict=True):
                _check_labelled_point(point, label, size_hw)
    objects = max(len(image) for image in nested)
    longest = max(len(row) for image in nested for row in image)
    out_points = np.full((len(nested), objects, longest, 2), PADDING, dtype=np.float32)
    out_labels = np.full((len(nested), objects, longest), PADDING, dtype=np.int64)
    for p, image in enumerate(nested):
        for o, row in enumerate(image):
            out_points[p, o, : len(row)] = row
            out_labels[p, o, : len(row)] = label_lists[p][o]
    return out_points, out_labels


def _check_labelled_point(point_xy: Sequence[float], label: float, size_hw: SizeHW) -> None:
    if label not in (BACKGROUND, FOREGROUND, NOT_A_POINT, PADDING):
        raise PromptError(f"label {label:g} in input_labels: expected 1 (on the object) or 0 (not on it)")
    if len(point_xy) != 2:
        raise PromptError(f"point {tuple(point_xy)} has {len(point_xy)} numbers: expected (x, y)")
    if label not in (NOT_A_POINT, PADDING):  # these have no position
        check_point(point_xy, size_hw)


def pad_boxes(boxes: Any, sizes_hw: Sequence[SizeHW]) -> np.ndarray:
    """Converts [image][box] (x0, y0, x1, y1) to (images, boxes, 4) float32 in original pixels, padded with -10."""
    nested = _as_lists(boxes)
    if (depth := _depth(nested, "input_boxes")) != 3:
        raise PromptError(f"input_boxes are nested {depth} deep: expected 3 levels (image, box, x0 y0 x1 y1)")
    _check_images("input_boxes", nested, sizes_hw)
    out = np.full((len(nested), max(map(len, nested)), 4), PADDING, dtype=np.float32)
    for p, (image, size_hw) in enumerate(zip(nested, sizes_hw, strict=True)):
        for index, box in enumerate(image):
            if len(box) != 4:
                raise PromptError(f"box {index} has {len(box)} numbers: expected x0 y0 x1 y1")
            check_box(box, size_hw, index)
            out[p, index] = box
    return out


def _check_images(name: str, nested: list[Any], sizes_hw: Sequence[SizeHW]) -> None:
    if len(nested) != len(sizes_hw):
        raise PromptError(f"{name} are for {len(nested)} images, but {len(sizes_hw)} came")
    if any(not image for image in nested):
        raise PromptError(f"{name} hold an empty list: expected at least one for each image")


def _as_lists(values: Any) -> Any:
    """Converts arrays and tensors at any depth to lists."""
    if isinstance(values, Tensor | np.ndarray | np.generic):
        return values.tolist()
    if isinstance(values, list | tuple):
        return [_as_lists(value) for value in values]
    return values


def _depth(nested: Any, name: str) -> int:
    """The number of levels of lists above the numbers, which must be the same everywhere."""
    if not isinstance(nested, list):
        if isinstance(nested, bool) or not isinstance(nested, int | float):
            raise PromptError(f"{name} hold {nested!r}: expected numbers in nested lists")
        return 0
    if not nested:
        raise PromptError(f"{name} hold an empty list: expected at least one value in every list")
    depths = {_depth(value, name) for value in nested}
    if len(depths) > 1:
        raise PromptError(f"{name} are nested {min(depths) + 1} deep in one place and {max(depths) + 1} in another")
    return depths.pop() + 1


def _counts(rows: Any) -> list[int]:
    """The length of each list; 0 for anything that is not a list."""
    return [len(row) if isinstance(row, list) else 0 for row in rows] if isinstance(rows, list) else []
