"""Run lengths, boxes, grids and crops as Meta's ``sam2.utils.amg`` offers them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from masklet.everything.grid import make_crops, make_grid
from masklet.everything.options import EverythingOptions
from masklet.masks import clean_masks, encode_rle, profile_boxes, stability_scores

UncompressedRle = dict[str, Any]
"""``size`` [height, width] and ``counts``, a list of run lengths, column by column, background first."""


def mask_to_rle_pytorch(tensor: Tensor) -> list[UncompressedRle]:
    """(masks, height, width) bool to run lengths."""
    return [mask_to_rle(mask) for mask in tensor.cpu().numpy()]


def mask_to_rle(mask: np.ndarray) -> UncompressedRle:
    """(height, width) bool to run lengths."""
    flat = np.asarray(mask, bool).ravel(order="F")
    edges = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *edges, flat.size]).tolist()
    starts_inside = bool(flat.size and flat[0])
    return {"size": [int(side) for side in mask.shape], "counts": [0, *counts] if starts_inside else counts}


def rle_to_mask(rle: UncompressedRle) -> np.ndarray:
    """Run lengths to (height, width) bool."""
    height, width = rle["size"]
    inside = np.arange(len(rle["counts"])) % 2 == 1
    return np.repeat(inside, rle["counts"]).reshape(width, height).T


def area_from_rle(rle: UncompressedRle) -> int:
    """Pixels of a mask."""
    return sum(rle["counts"][1::2])


def coco_encode_rle(uncompressed_rle: UncompressedRle) -> dict[str, Any]:
    """Run lengths as COCO compresses them, with ``counts`` as text."""
    (rle,) = encode_rle(rle_to_mask(uncompressed_rle)[None])
    return dict(rle)


def calculate_stability_score(masks: Tensor, mask_threshold: float, threshold_offset: float) -> Tensor:
    """(..., height, width) logits to (...): the IoU of the masks at two cut-offs around the threshold."""
    return stability_scores(masks, threshold=mask_threshold, offset=threshold_offset)


def batched_mask_to_box(masks: Tensor) -> Tensor:
    """(..., height, width) bool to (..., 4) int: x0, y0, x1, y1 of the first and last pixels; zeros if empty."""
    flat = masks.flatten(0, -3) if masks.ndim > 2 else masks[None]
    boxes = torch.from_numpy(profile_boxes(flat.any(1).cpu().numpy(), flat.any(2).cpu().numpy())).long()
    inclusive = (boxes - torch.tensor([0, 0, 1, 1], device=boxes.device)).clamp(min=0)
    return inclusive.reshape(*masks.shape[:-2], 4).to(masks.device)


def box_xyxy_to_xywh(box_xyxy: Tensor) -> Tensor:
    """(..., 4) corners to corner and size."""
    return torch.cat([box_xyxy[..., :2], box_xyxy[..., 2:] - box_xyxy[..., :2]], dim=-1)


def build_point_grid(n_per_side: int) -> np.ndarray:
    """(n * n, 2) x and y, 0 to 1: the centres of equal cells."""
    return make_grid(n_per_side).astype(np.float64)


def build_all_layer_point_grids(n_per_side: int, n_layers: int, scale_per_layer: int) -> list[np.ndarray]:
    """The grid of the image, and those of each layer of crops, which have fewer points."""
    return [build_point_grid(n_per_side // scale_per_layer**layer) for layer in range(n_layers + 1)]


def generate_crop_boxes(
    im_size: tuple[int, ...], n_layers: int, overlap_ratio: float
) -> tuple[list[list[int]], list[int]]:
    """The crops of an image (height, width, ...): [x0, y0, x1, y1] of each, and its layer."""
    options = EverythingOptions(points_per_side=2**n_layers, crops=n_layers, crop_overlap=overlap_ratio)
    crops = make_crops((im_size[0], im_size[1]), options)
    return [[crop.x0, crop.y0, crop.x1, crop.y1] for crop in crops], [crop.layer for crop in crops]


def batch_iterator(batch_size: int, *args: Any) -> Iterator[list[Any]]:
    """Batches of sequences of one length."""
    if len({len(arg) for arg in args}) != 1:
        raise ValueError(
            f"sequences of {[len(arg) for arg in args]} items: expected one length, and at least one of them"
        )
    for start in range(0, len(args[0]), batch_size):
        yield [arg[start : start + batch_size] for arg in args]


def remove_small_regions(
    mask: np.ndarray, area_thresh: float, mode: Literal["holes", "islands"]
) -> tuple[np.ndarray, bool]:
    """Fills the holes, or removes the islands, of fewer than ``area_thresh`` pixels.

    Returns:
        (height, width) bool, and whether anything changed.
    """
    if mode not in ("holes", "islands"):
        raise ValueError(f"mode is {mode!r}: expected holes or islands")
    least = math.ceil(area_thresh)
    mask = np.asarray(mask, bool)
    holes, islands = (least, 0) if mode == "holes" else (0, least)
    (cleaned,) = clean_masks(mask[None], fill_holes=holes, remove_islands=islands, hole_connectivity=8)
    return cleaned, not np.array_equal(cleaned, mask)
