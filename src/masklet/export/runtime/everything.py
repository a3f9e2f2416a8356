"""Automatic masks without torch: see ``masklet.everything.generator``.

Source: SAM (arXiv 2304.02643), appendix B.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from masklet.config import FOREGROUND, SizeHW
from masklet.everything.assembly import assemble
from masklet.everything.filters import Candidates, distinct_in_crop, is_cut, joined
from masklet.everything.grid import Crop, make_crops, points_in_layer
from masklet.everything.options import EverythingOptions
from masklet.export.runtime.network import ImageFeatures, OnnxNetwork
from masklet.export.runtime.processing import ArrayProcessor
from masklet.mask_prompts import MASK_PROMPT_LOGIT
from masklet.masks import profile_boxes
from masklet.masks.resizing import interpolated, upscaled
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
    found = joined(parts, crops, options)
    logits = None if packed else _image_logits(found, crops, size_hw)
    return assemble(found, crops, image, options, inside=lambda one, size: upscaled(one, size) > 0, logits=logits)[0]


def _find_in_crop(
    network: OnnxNetwork, features: ImageFeatures, crop: Crop, index: int, size_hw: SizeHW, options: EverythingOptions
) -> Candidates:
    """The masks of one crop that are confident, stable, not cut by the crop, and distinct."""
    grid_xy = points_in_layer(options, crop.layer) * np.array(crop.size_hw[::-1], np.float32)
    input_hw = network.manifest.input_hw
    scale = np.array([input_hw[1] / crop.size_hw[1], input_hw[0] / crop.size_hw[0]], np.float32)
    parts = [_candidates(features.stride4[0, :0], np.zeros(0, np.float32), np.zeros((0, 2), np.float32), crop, index)]
    for start in range(0, len(grid_xy), POINT_BATCH):
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
    rough = network.decode(features, points[None, :, None], labels, multimask=options.candidates)
    logits, scores = rough.logits[0], rough.iou_scores[0]
    if options.refine:
        logits, scores = _refined(network, features, points, logits)
    objects, candidates = (scores > options.iou_threshold).nonzero()
    return logits[objects, candidates] - np.float32(options.mask_threshold), scores[objects, candidates], objects


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


def _image_logits(candidates: Candidates, crops: list[Crop], size_hw: SizeHW) -> np.ndarray:
    """(masks, h, w) float32: logits on a grid over the whole image, certainly outside beyond each mask's crop."""
    placed = np.empty_like(candidates.logits)
    for i, (logits, index) in enumerate(zip(candidates.logits, candidates.crops, strict=True)):
        placed[i] = _spread(logits, crops[index], size_hw) if crops[index].layer else logits
    return placed


def _spread(logits: np.ndarray, crop: Crop, size_hw: SizeHW) -> np.ndarray:
    """(h, w) logits of a crop, resampled on a grid of the same shape over the whole image."""
    values, is_inside = logits, np.ones((1, 1), bool)
    for axis, (start, length) in enumerate(zip((crop.y0, crop.x0), crop.size_hw, strict=True)):
        cells = logits.shape[axis]
        # The image's cells in the crop: 0 is its first edge and 1 the other.
        share = ((np.arange(cells) + 0.5) / cells * size_hw[axis] - start) / length
        is_inside = is_inside & np.expand_dims((share >= 0) & (share <= 1), 1 - axis)
        values = interpolated(values, share * cells - 0.5, axis)
    return np.where(is_inside, values, np.float32(-MASK_PROMPT_LOGIT))
