"""Prompts as tensors, from anything that holds numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from masklet.errors import PromptError
from masklet.model.prompt_encoder import BOX_BOTTOM_RIGHT, NOT_A_POINT
from masklet.numbers import shown


def read_numbers(name: str, values: Any, dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """Numbers as a tensor.

    Raises:
        PromptError: They are not numbers, lists differ in length, or a number is not finite.
    """
    try:
        numbers = torch.as_tensor(values, dtype=dtype, device=device)
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise PromptError(
            f"{name}: expected numbers, as an array or in nested lists of equal lengths, got {shown(values)}"
        ) from error
    if not numbers.isfinite().all():
        raise PromptError(f"{name}: expected finite numbers, got {shown(values)}")
    return numbers


def read_points(name: str, values: Any, device: torch.device | str) -> Tensor:
    """Points (points, 2) or (objects, points, 2), x and y.

    Raises:
        PromptError: They have another shape, or see ``read_numbers``.
    """
    points = read_numbers(name, values, torch.float32, device)
    if points.ndim not in (2, 3) or points.shape[-1] != 2:
        raise PromptError(f"{name} of shape {tuple(points.shape)}: expected (points, 2) or (objects, points, 2)")
    return points


def read_labels(name: str, values: Any, points: Tensor) -> Tensor:
    """One label for each point.

    Raises:
        PromptError: There is another number of them, or see ``read_numbers``.
    """
    labels = read_numbers(name, values, torch.int32, points.device)
    if labels.shape != points.shape[:-1]:
        raise PromptError(
            f"{name} of shape {tuple(labels.shape)} came with points of shape {tuple(points.shape)}: expected one "
            "label for each point"
        )
    check_labels(name, labels)
    return labels


def check_labels(name: str, labels: Tensor) -> None:
    """Raises a PromptError unless all labels are known to the network."""
    if (unknown := (labels < NOT_A_POINT) | (labels > BOX_BOTTOM_RIGHT)).any():
        raise PromptError(
            f"{name} hold {labels[unknown][0].item()}: expected 1 (on the object), 0 (beside it), 2 and 3 (corners of "
            "a box) or -1 (no point)"
        )


def read_corners(name: str, values: Any, device: torch.device | str) -> Tensor:
    """Boxes (4,) or (objects, 4), x0 y0 x1 y1, as (objects, 2, 2).

    Raises:
        PromptError: They have another shape, or see ``read_numbers``.
    """
    boxes = read_numbers(name, values, torch.float32, device)
    if boxes.shape[-1:] != (4,) and boxes.shape[-2:] != (2, 2):
        raise PromptError(f"{name} of shape {tuple(boxes.shape)}: expected (4,) or (objects, 4), x0 y0 x1 y1")
    return boxes.reshape(-1, 2, 2)
