"""Masks: from logits to masks, cleaning, run lengths, polygons, boxes.

Masks are numpy arrays, (masks, height, width) bool, or ``PackedMasks`` for very many masks of a large image. Logits are
tensors and stay on their device.
"""

from masklet.masks.boxes import box_nms, mask_areas, mask_boxes, mask_ious, profile_boxes
from masklet.masks.cleaning import clean_masks
from masklet.masks.logits import (
    join_chunks,
    masks_per_chunk,
    stability_scores,
    upscale_logits,
    upscaled_chunks,
    upscaled_masks,
    without_overlap,
)
from masklet.masks.patches import Patch, encode_masks, encode_patch, patches, union, widened
from masklet.masks.polygons import Polygon, mask_polygons, patch_polygons
from masklet.masks.rings import joined_ring
from masklet.masks.run_lengths import (
    MaskStack,
    PackedMasks,
    Rle,
    check_masks,
    check_rle,
    decode_rle,
    encode_edges,
    encode_rle,
    join_rle,
    rle_ious,
    text_rle,
    without_empty_runs,
)

__all__ = [
    "MaskStack",
    "PackedMasks",
    "Patch",
    "Polygon",
    "Rle",
    "box_nms",
    "check_masks",
    "check_rle",
    "clean_masks",
    "decode_rle",
    "encode_masks",
    "encode_edges",
    "encode_patch",
    "encode_rle",
    "join_chunks",
    "join_rle",
    "joined_ring",
    "mask_areas",
    "mask_boxes",
    "mask_ious",
    "mask_polygons",
    "masks_per_chunk",
    "patch_polygons",
    "patches",
    "profile_boxes",
    "rle_ious",
    "stability_scores",
    "text_rle",
    "union",
    "upscale_logits",
    "upscaled_chunks",
    "upscaled_masks",
    "widened",
    "without_empty_runs",
    "without_overlap",
]
