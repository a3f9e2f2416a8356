"""Crops, filters and removal of duplicates for transformers' pipeline ``mask-generation``."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from masklet.compat.sam2.utils.amg import batched_mask_to_box, mask_to_rle, rle_to_mask
from masklet.compat.transformers.images import to_channels_first
from masklet.config import SizeHW
from masklet.errors import ConfigError
from masklet.everything.filters import is_cut
from masklet.everything.grid import Crop, make_crops, make_grid
from masklet.everything.options import EverythingOptions
from masklet.masks import box_nms, stability_scores


def generate_crop_boxes(
    image: Any,
    target_hw: SizeHW,
    *,
    crop_n_layers: int,
    overlap_ratio: float,
    points_per_crop: int,
    crop_n_points_downscale_factor: int,
) -> tuple[Tensor, Tensor, list[Tensor], Tensor]:
    """Crops of an image and a grid of points for each; see ``Sam2ImageProcessor.generate_crop_boxes``."""
    pixels = to_channels_first(image)
    size_hw = (pixels.shape[-2], pixels.shape[-1])
    options = EverythingOptions(
        points_per_side=points_per_crop,
        crops=crop_n_layers,
        crop_overlap=overlap_ratio,
        crop_points_divisor=crop_n_points_downscale_factor,
    )
    if crop_n_layers and crop_n_points_downscale_factor != 1:
        raise ConfigError(
            f"crop_n_points_downscale_factor is {crop_n_points_downscale_factor}: expected 1, since the crops of one "
            "call share a tensor of points; masklet.load(…).everything(…, crop_points_divisor=…) takes others"
        )
    crops = make_crops(size_hw, options)
    target_xy = torch.tensor(target_hw[::-1], device="cpu")  # every crop is stretched to the same input
    grid = torch.from_numpy(make_grid(points_per_crop)) * target_xy
    points = grid[None, :, None].repeat(1, 1, len(crops), 1)
    boxes = torch.tensor([[c.x0, c.y0, c.x1, c.y1] for c in crops], dtype=torch.float32, device="cpu")
    cropped = [pixels[:, crop.place[0], crop.place[1]] for crop in crops]
    return boxes, points, cropped, torch.ones(points.shape[:3], dtype=torch.long, device="cpu")


def filter_masks(
    masks: Tensor,
    iou_scores: Tensor,
    original_size: Any,
    cropped_box_image: Any,
    *,
    pred_iou_thresh: float,
    stability_score_thresh: float,
    mask_threshold: float,
    stability_score_offset: float,
) -> tuple[list[dict[str, Any]], Tensor, Tensor]:
    """Confident and stable masks of a crop; see ``Sam2ImageProcessor.filter_masks``."""
    height, width = (int(side) for side in original_size)
    x0, y0, x1, y1 = (int(edge) for edge in cropped_box_image)
    logits, scores = masks.flatten(0, -3), iou_scores.flatten()
    if len(logits) != len(scores):
        raise ConfigError(f"{len(logits)} masks came with {len(scores)} iou_scores: expected one for each")
    keep = scores > pred_iou_thresh if pred_iou_thresh > 0 else torch.ones_like(scores, dtype=torch.bool)
    if stability_score_thresh > 0:
        stability = stability_scores(logits, threshold=mask_threshold, offset=stability_score_offset)
        is_somewhere = (logits > mask_threshold - stability_score_offset).flatten(1).any(1)
        keep &= is_somewhere & (stability > stability_score_thresh)
    inside, scores = logits[keep] > mask_threshold, scores[keep]
    boxes = batched_mask_to_box(inside)
    edges = boxes.cpu().numpy().astype(np.float32)
    is_whole = ~is_cut(edges + np.array([x0, y0, x0, y0], np.float32), Crop(0, x0, y0, x1, y1), (height, width))
    left = torch.from_numpy(np.flatnonzero(is_whole)).to(inside.device)
    rles = []
    for mask in inside[left].cpu().numpy():
        whole = np.zeros((height, width), bool)
        whole[y0 : y0 + mask.shape[0], x0 : x0 + mask.shape[1]] = mask
        rles.append(mask_to_rle(whole))
    return rles, scores[left], boxes[left] + torch.tensor([x0, y0, x0, y0], device=boxes.device)


def without_duplicates(
    rles: list[dict[str, Any]], scores: Tensor, boxes: Tensor, threshold: float
) -> tuple[list[np.ndarray], Tensor, list[dict[str, Any]], Tensor]:
    """Masks that are left after non-maximum suppression of their boxes, from high to low scores."""
    keep = box_nms(boxes.float().cpu().numpy(), scores.float().cpu().numpy(), threshold)
    kept = [rles[index] for index in keep]
    index = torch.from_numpy(keep).to(scores.device)
    return [rle_to_mask(rle) for rle in kept], scores[index], kept, boxes[index]
