"""The filters of automatic masks: stability, crop edges, duplicates, small regions. Predicted IoU comes before them.

Source: SAM (arXiv 2304.02643), appendix B, "filtering" and "postprocessing".
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from masklet.config import SizeHW
from masklet.everything.grid import Crop
from masklet.everything.options import EverythingOptions
from masklet.masks import box_nms, clean_masks, profile_boxes, stability_scores, upscale_logits

if TYPE_CHECKING:
    from torch import Tensor

CPU_ELEMENTS, DEVICE_ELEMENTS = 2**21, 2**26
"""Logits upscaled in one chunk: as many as fit in a CPU's L2 cache, or as many as keep another device busy."""
ROUGH_MARGIN, ROUGH_CELLS = 0.1, 200
"""Upper bound of the difference between stability scores at low resolution and at the image's size, for masks of at
least ``ROUGH_CELLS`` cells. The largest difference measured on images was 0.05."""
EDGE_PX = 20
"""A mask is cut by its crop if its box is this close to the crop's edge."""


@dataclass(frozen=True, eq=False)
class Candidates:
    """Masks that have passed the filters so far, at low resolution."""

    logits: Any
    """(masks, h, w) float32, of the crop: a tensor, or an array in code without torch."""
    iou_scores: np.ndarray
    """(masks,) float32: predicted IoU."""
    boxes: np.ndarray
    """(masks, 4) float32: x0, y0, x1, y1, edges in pixels of the image."""
    crops: np.ndarray
    """(masks,) int: index of the crop of each mask."""
    stability_scores: np.ndarray
    """(masks,) float32, at the size of the crop."""
    points: np.ndarray
    """(masks, 2) float32: x, y of the point that each mask comes from, in pixels of the image."""

    def __len__(self) -> int:
        return len(self.iou_scores)

    def __getitem__(self, chosen: np.ndarray) -> Candidates:
        if isinstance(self.logits, np.ndarray):
            logits: Any = self.logits[chosen]
        else:
            import torch

            logits = self.logits[torch.from_numpy(chosen).to(self.logits.device)]
        return Candidates(logits, *(getattr(self, name)[chosen] for name in self._columns()))

    @classmethod
    def concatenate(cls, parts: list[Candidates]) -> Candidates:
        """The candidates of all parts."""
        columns = (np.concatenate([getattr(part, name) for part in parts]) for name in cls._columns())
        if isinstance(parts[0].logits, np.ndarray):
            return cls(np.concatenate([part.logits for part in parts]), *columns)
        import torch

        return cls(torch.cat([part.logits for part in parts]), *columns)

    @classmethod
    def _columns(cls) -> list[str]:
        """The names of the arrays."""
        return [field.name for field in fields(cls)][1:]


def stable_masks(logits: Tensor, size_hw: SizeHW, options: EverythingOptions) -> tuple[Tensor, np.ndarray, np.ndarray]:
    """Finds the masks that are stable and not empty.

    Stability scores and boxes of the reference count pixels of the crop, and low-resolution logits cannot replace
    them: the border of a mask of a few hundred cells is a tenth of it, which changes its score by several hundredths,
    and a box that is one pixel off changes what is a duplicate. So scores at low resolution only drop masks that are
    far from stable, which are most of them, and the other masks are upscaled.

    Args:
        logits: (masks, h, w).
        size_hw: Size of the crop.
        options: Options of the stability score.

    Returns:
        (kept,) int64 indices of masks on the CPU, their (kept, 4) float32 boxes: x0, y0, x1, y1, edges in pixels of the
        crop, and their (kept,) float32 stability scores.
    """
    import torch

    offset, threshold = options.stability_offset, options.stability_threshold
    remaining = torch.arange(len(logits), device=logits.device)
    if size_hw[0] >= logits.shape[-2] and size_hw[1] >= logits.shape[-1]:
        cells = (logits > -offset).sum(-1, dtype=torch.int32).sum(-1)
        is_unstable = stability_scores(logits, offset=offset) < threshold - ROUGH_MARGIN
        remaining = remaining[~is_unstable | (cells < ROUGH_CELLS)]
    scores, columns, rows = [], [], []
    elements = CPU_ELEMENTS if logits.device.type == "cpu" else DEVICE_ELEMENTS
    for chunk in remaining.split(max(1, elements // math.prod(size_hw))):
        upscaled = upscale_logits(logits[chunk], size_hw)
        scores.append(stability_scores(upscaled, offset=offset))
        columns.append(upscaled.amax(-2) > 0)
        rows.append(upscaled.amax(-1) > 0)
    boxes = profile_boxes(torch.cat(columns).cpu().numpy(), torch.cat(rows).cpu().numpy())
    stability = torch.cat(scores).cpu()
    is_kept = (stability >= threshold) & torch.from_numpy(boxes[:, 2] > 0)
    return remaining.cpu()[is_kept], boxes[is_kept.numpy()], stability[is_kept].numpy()


def is_cut(boxes: np.ndarray, crop: Crop, size_hw: SizeHW) -> np.ndarray:
    """(masks,) bool: whether boxes (masks, 4) are close to an edge of the crop that is not an edge of the image."""
    boxes = _inclusive(boxes)
    is_at_crop = np.abs(boxes - np.array([crop.x0, crop.y0, crop.x1, crop.y1])) <= EDGE_PX
    is_at_image = np.abs(boxes - np.array([0, 0, size_hw[1], size_hw[0]])) <= EDGE_PX
    return (is_at_crop & ~is_at_image).any(1)


def distinct_in_crop(candidates: Candidates, options: EverythingOptions) -> Candidates:
    """Removes duplicates among the masks of one crop; the mask of the higher predicted IoU is kept."""
    return candidates[box_nms(_comparable(candidates.boxes), candidates.iou_scores, options.box_nms)]


def distinct_between_crops(candidates: Candidates, crops: list[Crop], options: EverythingOptions) -> Candidates:
    """Removes duplicates among the masks of all crops; the mask of the smaller crop is kept."""
    areas = np.array([math.prod(crop.size_hw) for crop in crops])
    return candidates[box_nms(_comparable(candidates.boxes), -areas[candidates.crops], options.crop_nms)]


def joined(parts: list[Candidates], crops: list[Crop], options: EverythingOptions) -> Candidates:
    """The distinct masks of all crops, from high to low predicted IoU."""
    found = Candidates.concatenate(parts)
    if len(crops) > 1:
        found = distinct_between_crops(found, crops, options)
    return found[np.argsort(-found.iou_scores, kind="stable")]


def without_small_regions(mask: np.ndarray, options: EverythingOptions) -> np.ndarray:
    """(height, width) bool: the mask without holes and islands of fewer than ``options.min_area`` pixels."""
    least = options.min_area
    (cleaned,) = clean_masks(mask[None], fill_holes=least, remove_islands=least, hole_connectivity=8)
    return cleaned


def distinct_after_cleaning(boxes: np.ndarray, is_unchanged: np.ndarray, options: EverythingOptions) -> np.ndarray:
    """Finds the masks that are not duplicates after cleaning; a mask that cleaning left unchanged is kept.

    Args:
        boxes: (masks, 4), after cleaning.
        is_unchanged: (masks,) bool.
        options: Options of both kinds of duplicates.

    Returns:
        (kept,) int indices of masks, in their order.
    """
    kept = box_nms(_comparable(boxes), is_unchanged.astype(np.float32), max(options.box_nms, options.crop_nms))
    return np.sort(kept)


def _inclusive(boxes: np.ndarray) -> np.ndarray:
    """Boxes from their first to their last pixel, which is how the reference compares boxes."""
    return boxes - np.array([0, 0, 1, 1], np.float32)


def _comparable(boxes: np.ndarray) -> np.ndarray:
    """Inclusive boxes with an area: otherwise, lines of one pixel would overlap nothing, and duplicates would stay."""
    inclusive = _inclusive(boxes)
    inclusive[:, 2:] = np.maximum(inclusive[:, 2:], boxes[:, :2] + 1)
    return inclusive
