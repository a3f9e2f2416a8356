"""Prompts of the drop-in image model: checks, defaults, and their embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from masklet.config import STRIDE, STRIDES
from masklet.errors import PromptError
from masklet.model.prompt_encoder import BOX_BOTTOM_RIGHT, NOT_A_POINT, PADDING, PromptEmbeddings, Prompts
from masklet.model.sam2 import Sam2Model as Network

MASK_SCALE = STRIDE // STRIDES[0]
"""Sides of a mask prompt, in cells of the image embedding."""


def read_prompts(
    points: Tensor | None,
    labels: Tensor | None,
    boxes: Tensor | None,
    masks: Tensor | None,
    *,
    batch: int,
    map_hw: Sequence[int],
) -> Prompts:
    """Checks the prompts of a batch of images and fills in what may be left out.

    Labels without points are accepted and have no effect, as in transformers.

    Args:
        points: (batch, objects, points, 2), x then y, pixels of the network's input.
        labels: (batch, objects, points); all foreground if None.
        boxes: (batch, objects, 4).
        masks: See ``group_masks``.
        batch: Images.
        map_hw: (h, w) of the image embedding.

    Raises:
        PromptError: Shapes do not fit together, or a label is unknown.
    """
    if points is None:
        labels = None
    _check_shapes(points, labels, boxes, batch)
    if points is not None and labels is None:
        labels = torch.ones(points.shape[:3], dtype=torch.long, device=points.device)
    objects = next((t.shape[1] for t in (points, boxes) if t is not None), None)
    grouped = None if masks is None else group_masks(masks, batch=batch, objects=objects, map_hw=map_hw)
    has_padding = any(t is not None and bool((t == PADDING).any()) for t in (labels, boxes))
    return Prompts(points, labels, boxes, grouped, has_padding)


def embed_prompts(network: Network, prompts: Prompts, image: Tensor, *, pad_attends: bool) -> PromptEmbeddings:
    """Embeds prompts for the mask decoder.

    Args:
        network: The plain network.
        prompts: Prompts of every image.
        image: (batch, dim, h, w), the image embedding.
        pad_attends: Whether padding takes part, as in transformers: padded points as zeros, padded boxes as boxes.
            Otherwise nothing attends to it, so that an object scores the same alone and in any batch.
    """
    embeddings = network.embed_prompts(prompts, image)
    return with_padding_as_zeros(embeddings, prompts) if pad_attends else embeddings


def with_padding_as_zeros(embeddings: PromptEmbeddings, prompts: Prompts) -> PromptEmbeddings:
    """Prompts whose padding takes part, as in transformers."""
    if not prompts.has_padding:
        return embeddings
    tokens = embeddings.tokens
    if prompts.labels is not None:
        clicks = tokens[:, :, : prompts.labels.shape[2]]
        clicks = clicks.masked_fill((prompts.labels == PADDING)[..., None], 0)
        tokens = torch.cat([clicks, tokens[:, :, clicks.shape[2] :]], dim=2)
    return replace(embeddings, tokens=tokens, is_padding=None)


def group_masks(masks: Tensor, *, batch: int, objects: int | None, map_hw: Sequence[int]) -> Tensor:
    """Mask prompts of any grouping to (batch, objects, 4h, 4w) logits.

    Masks of another size are resized with antialias. One mask, or one for each image, is for all of its objects.

    Args:
        masks: (..., height, width): as many as there are objects in all images, or as images, or one.
        batch: Images.
        objects: Number of objects in each image; None if masks are the only prompts.
        map_hw: (h, w) of the image embedding.

    Raises:
        PromptError: There is another number of masks.
    """
    if masks.ndim < 3:
        raise PromptError(f"input_masks has shape {tuple(masks.shape)}: expected (batch, objects, height, width)")
    size_hw = (map_hw[0] * MASK_SCALE, map_hw[1] * MASK_SCALE)
    flat = masks.flatten(0, -3) if masks.is_floating_point() else masks.flatten(0, -3).float()
    if tuple(flat.shape[-2:]) != size_hw:
        flat = F.interpolate(flat.float()[:, None], size=size_hw, mode="bilinear", antialias=True)[:, 0].to(flat.dtype)
    if objects is None:
        objects = max(1, len(flat) // batch)
    if len(flat) == batch * objects and objects > 0:
        return flat.unflatten(0, (batch, objects))
    if len(flat) in (1, batch):
        return flat[:, None].expand(batch, objects, -1, -1)
    raise PromptError(
        f"input_masks holds {len(flat)} masks: expected one for each of {objects or 'the'} objects of {batch} images, "
        "one for each image, or one"
    )


def _check_shapes(points: Tensor | None, labels: Tensor | None, boxes: Tensor | None, batch: int) -> None:
    for name, value, expected in (
        ("input_points", points, (batch, "objects", "points", 2)),
        ("input_labels", labels, (batch, "objects", "points")),
        ("input_boxes", boxes, (batch, "objects", 4)),
    ):
        if value is not None and not _fits(value.shape, expected):
            words = ", ".join(map(str, expected))
            raise PromptError(f"{name} has shape {tuple(value.shape)}: expected ({words})")
    if points is not None and labels is not None and points.shape[:3] != labels.shape:
        raise PromptError(
            f"input_labels {tuple(labels.shape)} came with input_points {tuple(points.shape)}: expected one label for "
            "each point"
        )
    if (
        labels is not None
        and (unknown := (labels > BOX_BOTTOM_RIGHT) | ((labels < NOT_A_POINT) & (labels != PADDING))).any()
    ):
        raise PromptError(
            f"label {labels[unknown][0].item()}: expected 1 (foreground), 0 (background), 2 and 3 (corners of a box), "
            f"-1 (no point) or {PADDING} (padding)"
        )
    if points is not None and boxes is not None and points.shape[1] != boxes.shape[1]:
        raise PromptError(f"input_points are of {points.shape[1]} objects, input_boxes of {boxes.shape[1]}")


def _fits(shape: torch.Size, expected: tuple[Any, ...]) -> bool:
    return len(shape) == len(expected) and all(
        isinstance(e, str) or s == e for s, e in zip(shape, expected, strict=True)
    )
