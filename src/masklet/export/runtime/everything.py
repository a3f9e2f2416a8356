"""Automatic masks without torch: see ``masklet.everything.generator``.

Source: SAM (arXiv 2304.02643), appendix B.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from masklet.config import FOREGROUND, SizeHW
from masklet.everything.filters import (
    Candidates,
    distinct_after_cleaning,
    distinct_between_crops,
    distinct_in_crop,
    is_cut,
    without_small_regions,
)
from masklet.everything.grid import Crop, make_crops
from masklet.everything.options import EverythingOptions
from masklet.export.runtime.network import ImageFeatures, OnnxNetwork
from masklet.export.runtime.processing import ArrayProcessor
from masklet.mask_prompts import MASK_PROMPT_LOGIT
from masklet.masks import join_chunks, mask_boxes, profile_boxes
from masklet.masks.resizing import upscaled
from masklet.results import Masks

POINT_BATCH = 64
"""Points decoded in one batch."""
REFINE_LOGIT = 32.0
"""Logits are clamped to this before they are prompted again."""


def everything(network: OnnxNetwork, image: np.ndarray, options: EverythingOptions, *, packed: bool) -> Masks:
    """Finds all masks of an image: see ``masklet.everything.generator.everything``."""
    size_hw = (image.shape[0], image.shape[1])
    crops = make_crops(size_hw, options)
    processor, parts = ArrayProcessor(network.manifest), []
    for index, crop in enumerate(crops):
        features = network.encode(processor.pixel_values(image[crop.place]))
        parts.append(_find_in_crop(network, features, crop, index, size_hw, options))
    found = Candidates.concatenate(parts)
    if len(crops) > 1:
        found = distinct_between_crops(found, crops, options)
    found = found[np.argsort(-found.iou_scores, kind="stable")]
    is_unchanged = np.ones(len(found), bool)
    stack: Any = join_chunks(
        _full_size(found, crops, size_hw, options, is_unchanged), len(found), size_hw, packed=packed
    )
    logits = np.zeros((len(found), 0, 0), np.float32) if packed else _image_logits(found, crops, size_hw)
    masks = Masks(stack, logits, found.iou_scores, np.arange(len(found)), image)
    if is_unchanged.all():
        return masks
    kept = distinct_after_cleaning(mask_boxes(stack), is_unchanged, options)
    return replace(masks[kept], object_ids=np.arange(len(kept)))


def _find_in_crop(
    network: OnnxNetwork, features: ImageFeatures, crop: Crop, index: int, size_hw: SizeHW, options: EverythingOptions
) -> Candidates:
    """The masks of one crop that are confident, stable, not cut by the crop, and distinct."""
    per_side = options.points_in_layer(crop.layer)
    centres = (np.arange(per_side, dtype=np.float32) + np.float32(0.5)) / np.float32(per_side)
    grid = np.stack(np.meshgrid(centres, centres), axis=-1).reshape(-1, 2)
    grid_xy = grid * np.array(crop.size_hw[::-1], np.float32)
    input_hw = network.manifest.input_hw
    scale = np.array([input_hw[1] / crop.size_hw[1], input_hw[0] / crop.size_hw[0]], np.float32)
    parts = [_candidates(features.stride4[0, :0], np.zeros(0, np.float32), np.zeros((0, 2), np.float32), crop, index)]
    for start in range(0, len(grid), POINT_BATCH):
        batch = grid_xy[start : start + POINT_BATCH]
        logits, scores, objects = _decode_points(network, features, batch * scale, options)
        candidates = _candidates(logits, scores, np.float32(crop.offset_xyxy[:2]) + batch[objects], crop, index)
        stable = _measured(candidates, crop, options)
        parts.append(stable[np.flatnonzero(~is_cut(stable.boxes, crop, size_hw))])
    return distinct_in_crop(Candidates.concatenate(parts), options)


def _candidates(logits: np.ndarray, scores: np.ndarray, points: np.ndarray, crop: Crop, index: int) -> Candidates:
    """Masks whose boxes and stability are not known yet."""
    count = len(logits)
    return Candidates(
        logits, scores, np.zeros((count, 4), np.float32), np.full(count, index), np.zeros(count, np.float32), points
    )


def _decode_points(
    network: OnnxNetwork, features: ImageFeatures, points: np.ndarray, options: EverythingOptions
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits, predicted IoU and indices of points, of the candidates whose predicted IoU is high."""
    labels = np.full((1, len(points), 1), FOREGROUND, np.int64)
    rough = network.decode(features, points[None, :, None], labels, multimask=True)
    logits, scores = rough.logits[0], rough.iou_scores[0]
    if options.refine:
        logits, scores = _refined(network, features, points, logits)
    objects, candidates = (scores > options.iou_threshold).nonzero()
    return logits[objects, candidates], scores[objects, candidates], objects


def _refined(
    network: OnnxNetwork, features: ImageFeatures, points: np.ndarray, logits: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Prompts each candidate again with its own logits."""
    refined, scores = np.empty_like(logits), np.empty(logits.shape[:2], np.float32)
    label = np.full((1, 1, 1), FOREGROUND, np.int64)
    for i, candidates in enumerate(logits):
        for k, candidate in enumerate(candidates):
            decoded = network.decode(
                features,
                points[None, i : i + 1, None],
                label,
                multimask=False,
                mask_input=candidate.clip(-REFINE_LOGIT, REFINE_LOGIT),
            )
            refined[i, k], scores[i, k] = decoded.logits[0, 0, 0], decoded.iou_scores[0, 0, 0]
    return refined, scores


def _measured(candidates: Candidates, crop: Crop, options: EverythingOptions) -> Candidates:
    """The candidates that are stable at the crop's size and not empty, with their boxes and stability scores."""
    offset = options.stability_offset
    for i, logits in enumerate(candidates.logits):
        full = upscaled(logits, crop.size_hw)
        strict, loose = np.count_nonzero(full > offset), np.count_nonzero(full > -offset)
        candidates.stability_scores[i] = np.float32(strict) / np.float32(loose) if loose else 1
        inside = full > 0
        candidates.boxes[i] = profile_boxes(*(np.atleast_2d(inside.any(axis)) for axis in (0, 1)))[0]
    is_kept = (candidates.stability_scores >= options.stability_threshold) & (candidates.boxes[:, 2] > 0)
    kept = candidates[np.flatnonzero(is_kept)]
    return replace(kept, boxes=kept.boxes + crop.offset_xyxy)


def _full_size(
    candidates: Candidates, crops: list[Crop], size_hw: SizeHW, options: EverythingOptions, is_unchanged: np.ndarray
) -> Iterator[np.ndarray]:
    """Masks at the image's size, one after the other, without small regions; notes which these have changed."""
    for i, (logits, index) in enumerate(zip(candidates.logits, candidates.crops, strict=True)):
        crop, mask = crops[index], np.zeros(size_hw, bool)
        mask[crop.place] = upscaled(logits, crop.size_hw) > 0
        if options.min_area:
            cleaned = without_small_regions(mask, options)
            is_unchanged[i], mask = np.array_equal(cleaned, mask), cleaned
        yield mask[None]


def _image_logits(candidates: Candidates, crops: list[Crop], size_hw: SizeHW) -> np.ndarray:
    """(masks, h, w) float32: logits over the whole image, certainly outside beyond each mask's crop."""
    placed = np.empty_like(candidates.logits)
    for i, (logits, index) in enumerate(zip(candidates.logits, candidates.crops, strict=True)):
        crop = crops[index]
        if crop.layer:
            canvas = np.full(size_hw, -MASK_PROMPT_LOGIT, np.float32)
            canvas[crop.place] = upscaled(logits, crop.size_hw)
            placed[i] = upscaled(canvas, (logits.shape[0], logits.shape[1]))
        else:
            placed[i] = logits
    return placed
