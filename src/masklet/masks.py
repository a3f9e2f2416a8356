"""Logits to masks, and what one computes of masks.

Masks are numpy, (masks, height, width) bool; logits are tensors and stay on their device.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

import cc3d
import numpy as np
import pycocotools.mask as coco
import torch
import torch.nn.functional as F
from torch import Tensor


class Rle(TypedDict):
    """A mask as COCO's compressed run lengths, ready for JSON."""

    size: list[int]
    """[height, width]."""
    counts: str


@dataclass(frozen=True, eq=False)
class Polygon:
    """The outline of one connected piece of a mask, along the edges of its pixels.

    Points are (points, 2) float32, x then y, in pixels of the mask: the first pixel spans 0 to 1. Rings are not closed
    by a repeated point. With y down, the piece is always to the right of the way from point to point: the exterior
    runs clockwise on the screen, holes the other way.
    """

    exterior: np.ndarray
    holes: tuple[np.ndarray, ...] = ()


def upscale_logits(logits: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """Low-resolution logits at the size of the picture, where ``> 0`` makes them masks.

    Args:
        logits: (..., h, w), any float type.
        size_hw: Height and width of the result.

    Returns:
        (..., height, width) float32. Bilinear between pixel centres, without antialiasing.

    Source: SAM 2 reference, post-processing of the image predictor.
    """
    h, w = logits.shape[-2:]
    upscaled = F.interpolate(logits.float().reshape(-1, 1, h, w), size_hw, mode="bilinear", align_corners=False)
    return upscaled.reshape(*logits.shape[:-2], *size_hw)


def stability_scores(logits: Tensor, *, threshold: float = 0.0, offset: float = 1.0) -> Tensor:
    """How little each mask changes when its cut-off moves by ``offset`` either way.

    Args:
        logits: (..., height, width), before the sigmoid.
        threshold: Logit above which a pixel is inside.
        offset: Distance from ``threshold`` to the strict and to the loose cut-off, in logits.

    Returns:
        (...) float32 in [0, 1]. A mask that is empty at both cut-offs scores 1.

    Raises:
        ValueError: ``offset`` is negative.

    Source: SAM (arXiv 2304.02643), appendix B, filtering of automatic masks.
    """
    if offset < 0:
        raise ValueError(f"offset must be >= 0 logits, got {offset}")
    # The strict mask lies inside the loose one, so their IoU is a ratio of areas. Counted as integers: float32 would
    # lose single pixels beyond 2^24 of them.
    strict = (logits > threshold + offset).sum((-2, -1))
    loose = (logits > threshold - offset).sum((-2, -1))
    return torch.where(loose > 0, strict / loose.clamp(min=1), 1.0).float()


def clean_masks(masks: np.ndarray, *, fill_holes: int = 0, remove_islands: int = 0) -> np.ndarray:
    """Fill small holes, then remove small islands.

    A hole is a piece of background, connected through pixel edges (4 neighbours), also where the border of the
    picture closes it; an island is a piece of the mask, connected through edges and corners (8 neighbours).

    Args:
        masks: (masks, height, width) bool.
        fill_holes: Holes of fewer pixels than this are filled. An empty mask stays empty.
        remove_islands: Islands of fewer pixels than this are removed, but for the largest of each mask (all of the
            largest, where several are equal): no mask becomes empty.

    Returns:
        A new (masks, height, width) bool. Cleaning it again changes nothing.
    """
    check_masks(masks)
    cleaned = masks.copy()
    # One at a time: a mask's labels stay in the cache, where those of a batch take 8 bytes for each of its pixels.
    for mask in cleaned:
        if fill_holes > 0 and mask.any():
            mask |= small_pieces(~mask, fill_holes, connectivity=4)
        if remove_islands > 0:
            mask &= ~small_pieces(mask, remove_islands, connectivity=8, keep_largest=True)
    return cleaned


def small_pieces(
    mask: np.ndarray, min_area: int, connectivity: Literal[4, 8], keep_largest: bool = False
) -> np.ndarray:
    """(height, width) bool: the pieces of ``mask`` with fewer pixels than ``min_area``, but for the largest if kept."""
    pieces = label_pieces(mask, connectivity)
    areas = cc3d.statistics(pieces, no_slice_conversion=True)["voxel_counts"]
    is_small = areas < min_area
    is_small[0] = False  # what is not of the mask
    if keep_largest and len(areas) > 1:
        is_small &= areas < areas[1:].max()
    return is_small[pieces]


def label_pieces(mask: np.ndarray, connectivity: Literal[4, 8]) -> np.ndarray:
    """(height, width) int: the connected pieces of ``mask`` numbered from 1, and 0 outside."""
    # As numbers, since for bools cc3d 4.1.1 takes a way that, with 8 neighbours and an odd side, labels wrong pixels.
    return cc3d.connected_components(mask.astype(np.uint8), connectivity=connectivity)


def mask_boxes(masks: np.ndarray) -> np.ndarray:
    """The smallest box around each mask.

    Returns:
        (masks, 4) float32: x0, y0, x1, y1 in pixels of the mask. Edges, not pixels: x1 is the last column + 1, so that
        width is x1 - x0. An empty mask gives zeros.
    """
    check_masks(masks)
    _, height, width = masks.shape
    columns = np.logical_or.reduce(masks, axis=1)  # (masks, width)
    rows = np.logical_or.reduce(masks, axis=2)  # (masks, height)
    x0, x1 = columns.argmax(1), width - columns[:, ::-1].argmax(1)
    y0, y1 = rows.argmax(1), height - rows[:, ::-1].argmax(1)
    return np.where(np.any(rows, axis=1, keepdims=True), np.stack([x0, y0, x1, y1], axis=1), 0).astype(np.float32)


def mask_areas(masks: np.ndarray) -> np.ndarray:
    """(masks,) int64: how many pixels each mask has."""
    check_masks(masks)
    return np.count_nonzero(masks, axis=(1, 2)).astype(np.int64)


def mask_ious(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """How well each mask of ``first`` covers each of ``second``: intersection over union.

    Returns:
        (first masks, second masks) float32 in [0, 1]. Two empty masks agree: 1.
    """
    check_masks(first)
    check_masks(second)
    if first.shape[1:] != second.shape[1:]:
        raise ValueError(f"masks of {first.shape[1:]} and of {second.shape[1:]} pixels cannot be compared")
    if not len(first) or not len(second):
        return np.zeros((len(first), len(second)), np.float32)
    # Through run lengths: exact at any size, and far less to read than the pixels.
    ious = coco.iou(encode_rle(first), encode_rle(second), [0] * len(second))
    both_empty = (mask_areas(first) == 0)[:, None] & (mask_areas(second) == 0)
    return np.where(both_empty, 1.0, ious).astype(np.float32)


def encode_rle(masks: np.ndarray) -> list[Rle]:
    """Masks as COCO's compressed run lengths, one dict each, which ``json`` can write and pycocotools read."""
    check_masks(masks)
    if not len(masks):
        return []
    runs = coco.encode(np.asfortranarray(masks.transpose(1, 2, 0), dtype=np.uint8))
    return [text_rle(run) for run in runs]


def text_rle(run: dict[str, Any]) -> Rle:
    """Run lengths as pycocotools returns them, in a form that ``json`` writes."""
    return {"size": list(run["size"]), "counts": run["counts"].decode("ascii")}


def decode_rle(runs: Sequence[Rle]) -> np.ndarray:
    """The masks that ``encode_rle`` was given.

    Returns:
        (masks, height, width) bool; (0, 0, 0) for none, since their size is not known.

    Raises:
        ValueError: Sizes differ, or the counts do not fit the size.
    """
    if not runs:
        return np.zeros((0, 0, 0), bool)
    if len(sizes := {tuple(run["size"]) for run in runs}) > 1:
        raise ValueError(f"run lengths of one size were expected, got {sorted(sizes)}: decode each size alone")
    height, width = runs[0]["size"]
    with warnings.catch_warnings():  # pycocotools 2.0.11 still converts arrays as numpy 1 did
        warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)
        masks = coco.decode(list(runs)).transpose(2, 0, 1).astype(bool, order="C")
        # Behind counts that end early pycocotools leaves memory as it finds it, but it refuses counts that run past
        # the size. So they fill a size when they run past one pixel less.
        if any(fits(run, height * width - 1) for run in runs):
            raise ValueError(f"run lengths end before their size of {width}×{height} pixels is filled")
    return masks


def fits(run: Rle, pixels: int) -> bool:
    """Whether the counts make no more than so many pixels."""
    try:
        coco.decode({"size": [1, pixels], "counts": run["counts"]})
    except ValueError:
        return False
    return True


def mask_polygons(mask: np.ndarray) -> list[Polygon]:
    """The exact outlines of a mask: filling them (even-odd, or by winding) gives the mask again.

    Args:
        mask: (height, width) bool.

    Returns:
        A polygon for each piece connected through edges or corners, from top to bottom. Only points where the outline
        turns are kept. Where two pixels meet at a corner alone, rings touch themselves in that point.
    """
    if mask.ndim != 2 or mask.dtype != np.bool_:
        raise ValueError(f"expected one bool mask (height, width), got {mask.dtype} of shape {mask.shape}")
    corners_xy, rings = trace_rings(mask)
    pieces = label_pieces(np.pad(mask, 1), connectivity=8)
    exteriors: dict[int, np.ndarray] = {}
    holes: dict[int, list[np.ndarray]] = {}
    for ring in rings:
        x, y = corners_xy[ring[0]]  # the ring's topmost, then leftmost point; its first edge runs to the right
        points_xy = corners_xy[ring].astype(np.float32)
        if piece := int(pieces[y + 1, x + 1]):  # the pixel below that edge; ``pieces`` is padded by one
            exteriors[piece] = points_xy
        else:  # a hole lies below, so what surrounds it lies above
            holes.setdefault(int(pieces[y, x + 1]), []).append(points_xy[::-1])
    return [Polygon(exterior, tuple(holes.get(piece, ()))) for piece, exterior in exteriors.items()]


def trace_rings(mask: np.ndarray) -> tuple[np.ndarray, list[list[int]]]:
    """Where the outline turns, as (corners, 2) int xy, and the closed ways along it, as lists of corners.

    In a row of corners, from left to right, each odd one starts a horizontal edge that the next one ends, since inside
    and outside alternate; the same holds for columns. So sorting links all edges at once.
    """
    padded = np.pad(mask, 1)
    above_left, above_right = padded[:-1, :-1], padded[:-1, 1:]
    below_left, below_right = padded[1:, :-1], padded[1:, 1:]
    turns = above_left ^ above_right ^ below_left ^ below_right  # one pixel of the four, or all but one
    crossings = (above_left == below_right) & (above_right == below_left) & (above_left != above_right)
    # Where two pixels touch in a point there are two corners: the first ends the edge from the left, the second starts
    # the edge to the right. Pixels that touch are one piece, so each corner goes around a pixel of the background:
    # when that lies above on the right, the second corner owns the edge from above and comes first in its column.
    places = np.flatnonzero(turns | crossings)
    y, x = np.divmod(places.repeat(1 + crossings.ravel()[places]), turns.shape[1])
    crosses, falls = crossings[y, x], above_left[y, x]
    is_second = np.zeros(len(x), bool)
    is_second[1:] = (x[1:] == x[:-1]) & (y[1:] == y[:-1])
    by_column = np.lexsort((is_second ^ (crosses & falls), y, x))
    along_column = np.empty(len(x), np.intp)
    along_column[by_column] = by_column.reshape(-1, 2)[:, ::-1].ravel()

    vertical = along_column.tolist()  # a walk of single steps is faster through a list
    is_free = [True] * len(vertical)
    rings = []
    for start in range(0, len(vertical), 2):
        ring: list[int] = []
        corner = start
        while is_free[corner]:
            is_free[corner] = is_free[corner ^ 1] = False
            ring += (corner, corner ^ 1)
            corner = vertical[corner ^ 1]
        if ring:
            rings.append(ring)
    return np.stack([x, y], axis=1), rings


def check_masks(masks: np.ndarray) -> None:
    """Refuse what is not (masks, height, width) bool with at least one pixel each."""
    if masks.ndim != 3 or masks.dtype != np.bool_ or 0 in masks.shape[1:]:
        raise ValueError(
            f"expected bool masks (masks, height, width), got {masks.dtype} of shape {masks.shape}. "
            "Pass one mask as mask[None], logits as logits > 0."
        )
