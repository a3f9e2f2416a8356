"""A straightforward generator of automatic masks: one point at a time, full-size masks, loops."""

import itertools
import math

import cc3d
import numpy as np
import torch
import torch.nn.functional as F

from masklet.model.prompt_encoder import Prompts


@torch.inference_mode()
def all_masks(
    sam, image, *, iou, stability, side=None, grids=None, nms=0.7, crops=0, min_area=0, refine=False, multimask=True,
    threshold=0.0,
):  # fmt: skip
    """(masks, height, width) bool, from high to low predicted IoU."""
    whole, found = (0, 0, image.shape[1], image.shape[0]), []
    for crop in crop_boxes(image.shape[:2], crops):
        centres = [(i + 0.5) / side for i in range(side or 0)]
        points = [(x, y) for y in centres for x in centres] if grids is None else grids[crop != whole]
        in_crop = masks_of_crop(sam, image, crop, points, iou, stability, refine, multimask, threshold)
        found += distinct(sorted((f for f in in_crop if not is_cut(f[3], crop, whole)), key=lambda f: -f[0]), nms)
    if crops:
        found = distinct(sorted(found, key=lambda f: f[1], reverse=True), 0.7)
    found.sort(key=lambda f: -f[0])
    if min_area:
        cleaned = []
        for score, _, mask, _ in found:
            new = without_small_regions(mask, min_area)
            cleaned.append((score, np.array_equal(new, mask), new, box_of(new)))
        found = distinct(sorted(cleaned, key=lambda f: not f[1]), max(nms, 0.7))
    return np.array([mask for _, _, mask, _ in found]).reshape(-1, *image.shape[:2])


def crop_boxes(size_hw, layers):
    height, width = size_hw
    boxes = [(0, 0, width, height)]
    for layer in range(1, layers + 1):
        n = 2**layer
        overlap = int(512 / 1500 * min(height, width) * 2 / n)
        w, h = (math.ceil((overlap * (n - 1) + s) / n) for s in (width, height))
        for i, j in itertools.product(range(n), range(n)):
            x, y = (w - overlap) * i, (h - overlap) * j
            boxes.append((x, y, min(x + w, width), min(y + h, height)))
    return boxes


def masks_of_crop(sam, image, crop, points, iou, stability, refine, multimask, threshold):
    """Yields (score, minus the crop's area, mask, box) of confident and stable masks."""
    x0, y0, x1, y1 = crop
    encoded = sam.image(np.ascontiguousarray(image[y0:y1, x0:x1]))
    for x, y in points:
        input_h, input_w = encoded.input_hw
        point = (x * input_w, y * input_h)
        candidates = decode(sam, encoded, point, multimask=multimask)
        if refine:
            rough = [logits.clip(-32, 32) for logits, _ in candidates]
            candidates = [decode(sam, encoded, point, multimask=False, mask=mask)[0] for mask in rough]
        for low_res, score in candidates:
            logits = F.interpolate(low_res[None, None], (y1 - y0, x1 - x0), mode="bilinear")[0, 0]
            strict, loose = (logits > threshold + 1).sum().item(), (logits > threshold - 1).sum().item()
            if not score > iou or not loose or strict / loose < stability or not (logits > threshold).any():
                continue
            mask = np.zeros(image.shape[:2], bool)
            mask[y0:y1, x0:x1] = (logits > threshold).numpy()
            yield score, -(x1 - x0) * (y1 - y0), mask, box_of(mask)


def decode(sam, encoded, point, *, multimask, mask=None):
    """The (logits, predicted IoU) of each candidate for a point in pixels of the network's input."""
    masks = None if mask is None else mask[None, None]
    prompts = Prompts(torch.tensor([[[point]]]), torch.ones(1, 1, 1, dtype=torch.long), masks=masks)
    decoded = sam.engine.decode(encoded.features, prompts, multimask=multimask)
    return list(zip(decoded.logits[0, 0], decoded.iou_scores[0, 0].tolist(), strict=True))


def is_cut(box, crop, whole):
    return any(abs(a - b) <= 20 and abs(a - c) > 20 for a, b, c in zip(box, crop, whole, strict=True))


def without_small_regions(mask, min_area):
    """As SAM's generator: regions of 8 neighbours, first holes, then islands."""
    for is_hole in (True, False):
        regions = cc3d.connected_components((mask ^ is_hole).astype(np.uint8), connectivity=8)
        areas = np.bincount(regions.ravel())
        small = [i for i in range(1, len(areas)) if areas[i] < min_area]
        if is_hole:
            mask = mask | np.isin(regions, small)
        else:
            kept = [i for i in range(1, len(areas)) if i not in small] or [1 + np.argmax(areas[1:])]
            mask = np.isin(regions, kept)
    return mask


def box_of(mask):
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return columns[0], rows[0], columns[-1], rows[-1]


def iou_of(a, b):
    w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(w, 0) * max(h, 0)
    areas = [(c[2] - c[0]) * (c[3] - c[1]) for c in (a, b)]
    return shared / (sum(areas) - shared) if sum(areas) else 0


def distinct(found, threshold):
    kept = []
    for candidate in found:
        if all(iou_of(candidate[3], other[3]) <= threshold for other in kept):
            kept.append(candidate)
    return kept
