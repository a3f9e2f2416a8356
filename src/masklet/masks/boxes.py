"""Boxes and areas of masks, and how much masks and boxes overlap."""

import numpy as np

from masklet.masks.run_lengths import MaskStack, PackedMasks, check_masks, encode_rle, rle_areas, rle_boxes, rle_ious


def mask_boxes(masks: MaskStack) -> np.ndarray:
    """The smallest box around each mask.

    Returns:
        (masks, 4) float32: x0, y0, x1, y1 in pixels of the mask. These are edges: x1 is the last column + 1, so the
        width is x1 - x0. An empty mask gives zeros.
    """
    check_masks(masks)
    if isinstance(masks, PackedMasks):
        return rle_boxes(masks.runs)
    return profile_boxes(np.logical_or.reduce(masks, axis=1), np.logical_or.reduce(masks, axis=2))


def profile_boxes(columns: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """As ``mask_boxes``, from (masks, width) and (masks, height) bool: columns and rows in which a mask has pixels."""
    height, width = rows.shape[1], columns.shape[1]
    x0, x1 = columns.argmax(1), width - columns[:, ::-1].argmax(1)
    y0, y1 = rows.argmax(1), height - rows[:, ::-1].argmax(1)
    return np.where(np.any(rows, axis=1, keepdims=True), np.stack([x0, y0, x1, y1], axis=1), 0).astype(np.float32)


def mask_areas(masks: MaskStack) -> np.ndarray:
    """(masks,) int64: the number of pixels of each mask."""
    check_masks(masks)
    if isinstance(masks, PackedMasks):
        return rle_areas(masks.runs)
    return np.count_nonzero(masks, axis=(1, 2)).astype(np.int64)


def mask_ious(first: MaskStack, second: MaskStack) -> np.ndarray:
    """Intersection over union of each mask of ``first`` with each mask of ``second``.

    Returns:
        (first masks, second masks) float32 in [0, 1]. The IoU of two empty masks is 1.
    """
    check_masks(first)
    check_masks(second)
    if first.shape[1:] != second.shape[1:]:
        raise ValueError(f"masks of {first.shape[1:]} and of {second.shape[1:]} pixels cannot be compared")
    if not len(first) or not len(second):
        return np.zeros((len(first), len(second)), np.float32)
    # Through RLE: exact at any size, and far less to read than the pixels.
    ious = rle_ious(encode_rle(first), encode_rle(second))
    both_empty = (mask_areas(first) == 0)[:, None] & (mask_areas(second) == 0)
    return np.where(both_empty, np.float32(1), ious)


def box_nms(boxes: np.ndarray, scores: np.ndarray, iou_threshold: float) -> np.ndarray:
    """Non-maximum suppression: of boxes that overlap strongly, keep the one with the highest score.

    Args:
        boxes: (boxes, 4), x0 y0 x1 y1.
        scores: (boxes,). Of equal scores, the earlier box counts as higher.
        iou_threshold: A box is removed if its IoU with a kept one is above this; at 1 or more, all boxes are kept.

    Returns:
        (kept,) int: indices of the kept boxes, from high to low scores. A box without an area overlaps nothing.
    """
    if iou_threshold >= 1:
        return np.argsort(-scores, kind="stable")
    sizes = boxes[:, 2:] - boxes[:, :2]
    areas = sizes[:, 0] * sizes[:, 1]
    kept, left = [], np.argsort(-scores, kind="stable")
    while len(left):
        best, left = left[0], left[1:]
        kept.append(best)
        inner = np.minimum(boxes[best, 2:], boxes[left, 2:]) - np.maximum(boxes[best, :2], boxes[left, :2])
        shared = np.prod(inner.clip(min=0), axis=1)
        # Multiplied out: a quotient would be 0 / 0 for two boxes without an area.
        left = left[shared <= iou_threshold * (areas[best] + areas[left] - shared)]
    return np.array(kept, np.intp)
