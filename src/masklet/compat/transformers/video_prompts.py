"""Prompts for the objects of one frame, as ``add_inputs_to_inference_session`` takes them, to tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from masklet.compat.transformers.feature import as_tensor
from masklet.compat.transformers.nesting import counts_of, pad, pad_labels, read_nested, scale
from masklet.compat.transformers.processing import BOX_LEVELS, LABEL_LEVELS, POINT_LEVELS
from masklet.config import SizeHW
from masklet.errors import PromptError
from masklet.model.prompt_encoder import BOX_BOTTOM_RIGHT, BOX_TOP_LEFT, PADDING
from masklet.numbers import shown


def read_points(
    points: Any, labels: Any, boxes: Any, obj_ids: Sequence[Any], *, size_hw: SizeHW, target_hw: SizeHW, padding: int
) -> list[dict[str, Tensor]]:
    """Points and boxes of each object, in pixels of the network's input.

    Objects with fewer points than others are padded. The corners of a box come first, labelled 2 and 3.

    Args:
        points: [1][object][point] (x, y) in pixels of the video; None with boxes alone.
        labels: [1][object][point]: 1 on the object, 0 beside it; with the points.
        boxes: [1][object] (x0, y0, x1, y1), or None.
        obj_ids: The objects.
        size_hw: Size of the video.
        target_hw: Size of the network's input.
        padding: Coordinate and label of padded points.

    Returns:
        For each object ``point_coords`` (1, 1, points, 2) float32 and ``point_labels`` (1, 1, points) int64.

    Raises:
        PromptError: Levels or numbers do not fit.
    """
    if (points is None) != (labels is None):
        raise PromptError("points and labels must be provided together, one label for each point")
    coordinates = torch.zeros(len(obj_ids), 0, 2, dtype=torch.float32, device="cpu")
    of_points = torch.zeros(len(obj_ids), 0, dtype=torch.long, device="cpu")
    if points is not None:
        points = _of_frame(points, "input_points", POINT_LEVELS, obj_ids)
        labels = _of_frame(labels, "input_labels", LABEL_LEVELS, obj_ids)
        if (wanted := [[len(row) for row in points[0]]]) != counts_of(labels):
            raise PromptError(
                f"input_points hold {wanted} points, input_labels {counts_of(labels)} labels for each object: expected "
                "one label for each point"
            )
        of_points = pad_labels(labels, padding)[0]
        _check_labels(of_points, padding)
        is_padding = (of_points == padding)[..., None]
        coordinates = torch.where(
            is_padding, float(padding), scale(pad(points, padding, last=2), [size_hw], target_hw)[0]
        )
    if boxes is not None:
        boxes = pad(_of_frame(boxes, "input_boxes", BOX_LEVELS, obj_ids), padding, last=4).reshape(1, -1, 2, 2)
        coordinates = torch.cat([scale(boxes, [size_hw], target_hw)[0], coordinates], dim=1)
        corners = torch.tensor([BOX_TOP_LEFT, BOX_BOTTOM_RIGHT], device="cpu").expand(len(obj_ids), 2)
        of_points = torch.cat([corners, of_points], dim=1)
    return [
        {"point_coords": xy[None, None], "point_labels": one[None, None]}
        for xy, one in zip(coordinates, of_points, strict=True)
    ]


def read_masks(masks: Any, obj_ids: Sequence[Any], target_hw: SizeHW) -> list[Tensor]:
    """The mask of each object, (1, 1, *target_hw) float32 of ones and zeros.

    Args:
        masks: One mask for one object, or a list: arrays or tensors (height, width), with up to two leading axes of 1.
            They are resized with antialias, and pixels that are covered by half or more belong to the object.
        obj_ids: The objects.
        target_hw: Size of the network's input.

    Raises:
        PromptError: There is another number of masks, or one has another shape.
    """
    several = list(masks) if isinstance(masks, list | tuple) else [masks]
    _check_count(several, "masks", obj_ids)
    return [_mask(one, target_hw) for one in several]


def _mask(mask: Any, target_hw: SizeHW) -> Tensor:
    if not isinstance(mask, Tensor):
        array = np.asarray(mask)
        if array.dtype.kind not in "biuf":
            raise PromptError(f"a mask is {shown(mask)}: expected numbers, (height, width)")
        mask = as_tensor(array.astype(np.float32))
    values = mask.detach().float().cpu()
    if values.ndim not in (2, 3, 4) or values.shape[:-2].numel() != 1 or not values.numel():
        raise PromptError(
            f"a mask has an unsupported number of dimensions: shape {tuple(values.shape)}, expected (height, width), "
            "(1, height, width) or (1, 1, height, width) for each object"
        )
    values = values.reshape(1, 1, *values.shape[-2:])
    if tuple(values.shape[-2:]) != target_hw:
        values = F.interpolate(values, size=target_hw, mode="bilinear", antialias=True)
    return (values >= 0.5).float()


def _of_frame(values: Any, name: str, levels: tuple[str, ...], obj_ids: Sequence[Any]) -> list[Any]:
    """Nested lists for one image, with an entry for each object.

    Raises:
        PromptError: They are nested in another way, or for another number of images or objects.
    """
    nested = read_nested(values, name, levels=levels)
    if len(nested) != 1:
        raise PromptError(f"{name} are for {len(nested)} images: expected one, the frame")
    _check_count(nested[0], name.removeprefix("input_"), obj_ids)
    return nested


def _check_labels(labels: Tensor, padding: int) -> None:
    known = (PADDING, padding, -1, 0, 1, BOX_TOP_LEFT, BOX_BOTTOM_RIGHT)
    if unknown := set(labels.flatten().tolist()).difference(known):
        raise PromptError(
            f"input_labels hold {min(unknown)}: expected 1 on the object, 0 beside it, 2 and 3 for the corners of a box"
        )


def _check_count(values: Sequence[Any], name: str, obj_ids: Sequence[Any]) -> None:
    if len(values) != len(obj_ids):
        raise PromptError(f"Number of object ids ({len(obj_ids)}) does not match number of {name} ({len(values)})")
