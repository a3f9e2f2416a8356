"""Logits to masks, and what one computes of masks.

Masks are numpy, (masks, height, width) bool, or, very many of a large image, ``PackedMasks``; logits are tensors and
stay on their device.
"""

import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias, TypedDict, TypeVar

import cc3d
import numpy as np
import pycocotools.mask as coco
import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter
from torch import Tensor


class Rle(TypedDict):
    """A mask as COCO's compressed run lengths, ready for JSON."""

    size: list[int]
    """[height, width]."""
    counts: str


@dataclass(frozen=True, eq=False)
class PackedMasks:
    """Masks as run lengths: ten thousand of a large image in a few megabytes.

    It is read as the array (masks, height, width) bool it stands for: with ``shape`` and ``len``; the index of one mask
    gives (height, width) bool, any other index the chosen ones, packed; ``numpy.asarray`` unpacks all.
    """

    runs: Sequence[Rle]
    """One a mask, each of the image's size."""
    size_hw: tuple[int, int]
    """Of the image."""

    ndim = 3
    dtype = np.dtype(bool)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(masks, height, width)."""
        return len(self.runs), *self.size_hw

    def __len__(self) -> int:
        return len(self.runs)

    def __getitem__(self, index: Any) -> Any:
        chosen = np.arange(len(self))[index]
        if chosen.ndim:
            return PackedMasks([self.runs[number] for number in chosen], self.size_hw)
        mask = np.zeros(self.size_hw, bool)
        for patch in patches(self, chosen[None]):
            mask[patch.place] = patch.inside
        return mask

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[number] for number in range(len(self)))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        unpacked = np.zeros(self.shape, bool)
        for mask, patch in zip(unpacked, patches(self), strict=True):
            mask[patch.place] = patch.inside
        return unpacked if dtype is None else unpacked.astype(dtype)


MaskStack: TypeAlias = np.ndarray | PackedMasks
"""(masks, height, width) bool."""
Stack = TypeVar("Stack", np.ndarray, PackedMasks)


class Patch(NamedTuple):
    """A mask as far as its box goes."""

    place: tuple[slice, slice]
    """Rows and columns of the box in the image."""
    inside: np.ndarray
    """(rows, columns) bool; (0, 0) of an empty mask."""

    @property
    def corner_xy(self) -> tuple[int, int]:
        """The box's first pixel."""
        rows, columns = self.place
        return columns.start, rows.start


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
    """Low-resolution logits at the size of the image, where ``> 0`` makes them masks.

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
    # lose single pixels beyond 2^24 of them. By rows first, which a CPU does several times faster in 32 bits.
    strict, loose = (
        (logits > cut_off).sum(-1, dtype=torch.int32).sum(-1) for cut_off in (threshold + offset, threshold - offset)
    )
    return torch.where(loose > 0, strict / loose.clamp(min=1), 1.0).float()


def clean_masks(
    masks: Stack,
    *,
    smooth_px: float = 0,
    fill_holes: int = 0,
    remove_islands: int = 0,
    keep_largest: bool = False,
    hole_connectivity: Literal[4, 8] = 4,
) -> Stack:
    """Smooth outlines, fill small holes, then remove small islands or all but the largest. No mask becomes empty.

    A hole is a piece of background, also where the border of the image closes it; an island is a piece of the mask,
    connected through edges and corners (8 neighbours).

    Args:
        masks: (masks, height, width) bool.
        smooth_px: Roundness of the outline: the mask is blurred with a Gaussian of this standard deviation, in pixels,
            and cut at one half. A mask too thin to outlast that stays as it was.
        fill_holes: Holes of fewer pixels than this are filled. An empty mask stays empty.
        remove_islands: Islands of fewer pixels than this are removed, but for the largest of each mask (all of the
            largest, where several are equal).
        keep_largest: Of each mask only the largest island stays, the first of equals, by rows.
        hole_connectivity: 4 for holes connected through edges, so that what holds a mask together, a corner, also
            closes a hole. 8 for corners, too, as SAM's generator counts: through a corner a hole leaks out.

    Returns:
        A new (masks, height, width) bool, packed if ``masks`` are. Cleaning it again changes nothing, unless it is
        smoothed again.

    Raises:
        ValueError: These are no masks, or ``smooth_px`` is negative.
    """
    check_masks(masks)
    if not smooth_px >= 0:
        raise ValueError(f"smooth_px must be >= 0 pixels, got {smooth_px:g}")
    size_hw = (masks.shape[1], masks.shape[2])
    # Blurring is three passes of a box, which each reach this far. One pixel more, so that what is around a mask is
    # one piece.
    margin_px = 1 + (3 * (math.ceil(smooth_px) + 1) if smooth_px else 0)

    def clean(patch: Patch) -> Patch:
        """In the mask's box alone, and what is around it as far as it matters."""
        if not patch.inside.size:
            return patch
        wide = widened(patch, margin_px, size_hw, least_beyond=fill_holes)
        mask = wide.inside
        if smooth_px > 0 and (smoothed := smooth(mask, smooth_px)).any():
            mask = smoothed
        if fill_holes > 0:
            mask = mask | small_holes(wide._replace(inside=mask), fill_holes, size_hw, hole_connectivity)
        if remove_islands > 0:
            mask = mask & ~small_islands(mask, remove_islands)
        return wide._replace(inside=largest_piece(mask) if keep_largest else mask)

    if isinstance(masks, PackedMasks):
        return PackedMasks([encode_patch(clean(patch), size_hw) for patch in patches(masks)], size_hw)
    cleaned = np.zeros(masks.shape, bool)
    for mask, patch in zip(cleaned, map(clean, patches(masks)), strict=True):
        mask[patch.place] = patch.inside
    return cleaned


def widened(patch: Patch, by_px: int, size_hw: tuple[int, int], *, least_beyond: int = 0) -> Patch:
    """A patch of an image of this size with so many pixels more on each side.

    A side ends at the image's border if less than ``least_beyond`` pixels would be left beyond it.
    """

    def reach(side: slice, length: int, across: int) -> slice:
        least_px = max(1, math.ceil(least_beyond / across))
        start, stop = side.start - by_px, side.stop + by_px
        return slice(start if start >= least_px else 0, stop if length - stop >= least_px else length)

    height, width = size_hw
    rows = reach(patch.place[0], height, width)
    columns = reach(patch.place[1], width, rows.stop - rows.start)
    margins = [
        (old.start - new.start, new.stop - old.stop) for old, new in zip(patch.place, (rows, columns), strict=True)
    ]
    return Patch((rows, columns), np.pad(patch.inside, margins))


def smooth(mask: np.ndarray, radius_px: float) -> np.ndarray:
    """(height, width) bool: the mask blurred and cut at one half; beyond the border it goes on as it is there."""
    grey = Image.fromarray(mask.astype(np.uint8) * np.uint8(255))
    return np.asarray(grey.filter(ImageFilter.GaussianBlur(radius_px))) > 127


def largest_piece(mask: np.ndarray) -> np.ndarray:
    """(height, width) bool: the piece with the most pixels (8 neighbours), the first of equals, by rows."""
    pieces = label_pieces(mask, connectivity=8)
    areas = piece_areas(pieces)
    areas[0] = 0  # what is not of the mask
    return mask & (pieces == areas.argmax())


def small_islands(mask: np.ndarray, min_area: int) -> np.ndarray:
    """(height, width) bool: pieces of fewer pixels than ``min_area`` (8 neighbours), but none of the largest."""
    pieces = label_pieces(mask, connectivity=8)
    areas = piece_areas(pieces)
    is_small = areas < min(min_area, areas[1:].max(initial=0))
    is_small[0] = False  # what is not of the mask
    return is_small[pieces]


def small_holes(patch: Patch, min_area: int, size_hw: tuple[int, int], connectivity: Literal[4, 8]) -> np.ndarray:
    """(rows, columns) bool: pieces around a mask of fewer pixels than ``min_area``, in all of the image.

    Args:
        patch: With a pixel around the mask, unless the image ends there.
        min_area: Also of what lies beyond the patch on any side, if that is not empty.
        size_hw: Of the image.
        connectivity: Of the pieces.
    """
    rows, columns = patch.place
    pieces = label_pieces(~patch.inside, connectivity)
    areas = piece_areas(pieces)
    # What lies beyond a side goes on in the one piece along that side.
    height = rows.stop - rows.start
    for corner, beyond in (
        (pieces[0, 0], rows.start * size_hw[1] + columns.start * height),
        (pieces[-1, 0], (size_hw[0] - rows.stop) * size_hw[1]),
        (pieces[0, -1], (size_hw[1] - columns.stop) * height),
    ):
        areas[corner] += beyond
    is_small = areas < min_area
    is_small[0] = False  # the mask
    return is_small[pieces]


def label_pieces(mask: np.ndarray, connectivity: Literal[4, 8]) -> np.ndarray:
    """(height, width) int: the connected pieces of ``mask`` numbered from 1, and 0 outside."""
    # As numbers, since for bools cc3d 4.1.1 takes a way that, with 8 neighbours and an odd side, labels wrong pixels.
    return cc3d.connected_components(mask.astype(np.uint8), connectivity=connectivity)


def piece_areas(pieces: np.ndarray) -> np.ndarray:
    """(pieces + 1,) int: how many pixels each number of ``label_pieces`` has, 0 among them."""
    return cc3d.statistics(pieces, no_slice_conversion=True)["voxel_counts"].astype(np.int64)


def without_overlap(masks: np.ndarray, logits: Tensor) -> np.ndarray:
    """Each pixel for one mask at most: of those that have it, the one of the highest logit, the first of equals.

    Args:
        masks: (masks, height, width) bool.
        logits: (masks, h, w), of any size: they are upscaled to the masks'.

    Returns:
        A new (masks, height, width) bool. A mask that nowhere has the highest logit becomes empty.
    """
    check_masks(masks)
    size_hw = (masks.shape[1], masks.shape[2])
    highest, owner = np.full(size_hw, -np.inf, np.float32), np.full(size_hw, -1)
    # One at a time: the logits of hundreds of masks at the image's size would not fit in memory.
    for i, (mask, low_res) in enumerate(zip(masks, logits, strict=True)):
        values = upscale_logits(low_res, size_hw).cpu().numpy()
        wins = mask & (values > highest)
        highest[wins], owner[wins] = values[wins], i
    return owner == np.arange(len(masks))[:, None, None]


def mask_boxes(masks: MaskStack) -> np.ndarray:
    """The smallest box around each mask.

    Returns:
        (masks, 4) float32: x0, y0, x1, y1 in pixels of the mask. Edges, not pixels: x1 is the last column + 1, so that
        width is x1 - x0. An empty mask gives zeros.
    """
    check_masks(masks)
    if isinstance(masks, PackedMasks):
        boxes = coco.toBbox(list(masks.runs)).reshape(-1, 4) if len(masks) else np.zeros((0, 4))
        boxes[:, 2:] += boxes[:, :2]
        return boxes.astype(np.float32)
    return profile_boxes(np.logical_or.reduce(masks, axis=1), np.logical_or.reduce(masks, axis=2))


def profile_boxes(columns: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """As ``mask_boxes``, from (masks, width) and (masks, height) bool: where each mask has any pixel."""
    height, width = rows.shape[1], columns.shape[1]
    x0, x1 = columns.argmax(1), width - columns[:, ::-1].argmax(1)
    y0, y1 = rows.argmax(1), height - rows[:, ::-1].argmax(1)
    return np.where(np.any(rows, axis=1, keepdims=True), np.stack([x0, y0, x1, y1], axis=1), 0).astype(np.float32)


def mask_areas(masks: MaskStack) -> np.ndarray:
    """(masks,) int64: how many pixels each mask has."""
    check_masks(masks)
    if isinstance(masks, PackedMasks):
        # Not by pycocotools 2.0.11, whose area fails from 256 masks on.
        return np.array([rle_counts(run)[1::2].sum() for run in masks.runs], np.int64)
    return np.count_nonzero(masks, axis=(1, 2)).astype(np.int64)


def mask_ious(first: MaskStack, second: MaskStack) -> np.ndarray:
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
    ious = rle_ious(encode_rle(first), encode_rle(second))
    both_empty = (mask_areas(first) == 0)[:, None] & (mask_areas(second) == 0)
    return np.where(both_empty, np.float32(1), ious)


def rle_ious(first: Sequence[Rle], second: Sequence[Rle]) -> np.ndarray:
    """(first, second) float32: as ``mask_ious``, of run lengths of one size, and 0 for two that are empty."""
    if not len(first) or not len(second):
        return np.zeros((len(first), len(second)), np.float32)
    return coco.iou(list(first), list(second), [0] * len(second)).astype(np.float32)


def patches(masks: MaskStack, order: Sequence[int] | np.ndarray | None = None) -> Iterator[Patch]:
    """Masks as far as their boxes go, in the order of these numbers, or all of them; one at a time in memory."""
    boxes = mask_boxes(masks).astype(int).tolist()
    for number in range(len(masks)) if order is None else order:
        x0, y0, x1, y1 = boxes[number]
        place = slice(y0, y1), slice(x0, x1)
        if isinstance(masks, PackedMasks):
            yield Patch(place, inside_box(masks.runs[number], boxes[number]))
        else:
            yield Patch(place, masks[(number, *place)])


def union(masks: MaskStack) -> np.ndarray:
    """(height, width) bool: what lies in any of the masks."""
    together = np.zeros(masks.shape[1:], bool)
    for patch in patches(masks):
        together[patch.place] |= patch.inside
    return together


def box_nms(boxes: np.ndarray, scores: np.ndarray, iou_threshold: float) -> np.ndarray:
    """Non-maximum suppression: of boxes that overlap much, the one of the highest score.

    Args:
        boxes: (boxes, 4), x0 y0 x1 y1.
        scores: (boxes,). Of equal ones, the earlier box counts as higher.
        iou_threshold: A box goes if its IoU with one that stays is above; from 1 on, all stay.

    Returns:
        (kept,) int: the boxes that stay, from high to low scores. A box without an area overlaps nothing.
    """
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


def encode_rle(masks: MaskStack) -> list[Rle]:
    """Masks as COCO's compressed run lengths, one dict each, which ``json`` can write and pycocotools read."""
    check_masks(masks)
    if isinstance(masks, PackedMasks):
        return list(masks.runs)
    if not len(masks):
        return []
    runs = coco.encode(np.asfortranarray(masks.transpose(1, 2, 0), dtype=np.uint8))
    return [text_rle(run) for run in runs]


def text_rle(run: dict[str, Any]) -> Rle:
    """Run lengths as pycocotools returns them, in a form that ``json`` writes."""
    return {"size": list(run["size"]), "counts": run["counts"].decode("ascii")}


def encode_patch(patch: Patch, size_hw: tuple[int, int]) -> Rle:
    """A mask of an image of this size as run lengths of the image, of which no more than the patch is made."""
    (x0, y0), height = patch.corner_xy, size_hw[0]
    by_column = np.pad(patch.inside.T, ((0, 0), (1, 1)))
    columns, rows = np.nonzero(by_column[:, 1:] != by_column[:, :-1])
    return edges_rle((x0 + columns) * height + y0 + rows, size_hw)


def edges_rle(edges: np.ndarray, size_hw: tuple[int, int]) -> Rle:
    """Run lengths of a mask that begins and ends at these pixels in turn, counted column after column."""
    # Where a mask ends at the bottom of a column and begins at the top of the next, it goes on.
    pixels, times = np.unique(edges, return_counts=True)
    counts = np.diff(pixels[times % 2 == 1], prepend=0, append=size_hw[0] * size_hw[1])
    counts = counts[:-1] if counts[-1] == 0 else counts  # as pycocotools has them
    return text_rle(coco.frPyObjects({"size": list(size_hw), "counts": counts}, *size_hw))


def without_empty_runs(run: Rle) -> Rle:
    """Run lengths as ``encode_rle`` makes them: some encoders write runs of no pixels, which pycocotools trips over."""
    counts = rle_counts(run)
    if counts[1:].all():
        return run
    height, width = run["size"]
    return edges_rle(counts.cumsum(), (height, width))


def join_rle(runs: Sequence[Rle]) -> Rle:
    """What lies in any of these masks of one image."""
    return text_rle(coco.merge(list(runs)))


def decode_rle(runs: Sequence[Rle]) -> np.ndarray:
    """The masks that ``encode_rle`` was given.

    Returns:
        (masks, height, width) bool; (0, 0, 0) for none, since their size is not known.

    Raises:
        ValueError: Sizes differ, or the counts do not fit the size.
    """
    if not runs:
        return np.zeros((0, 0, 0), bool)
    check_rle(runs)
    with warnings.catch_warnings():  # pycocotools 2.0.11 still converts arrays as numpy 1 did
        warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)
        return coco.decode(list(runs)).transpose(2, 0, 1).astype(bool, order="C")


def check_rle(runs: Sequence[Rle]) -> None:
    """Refuse run lengths of several sizes, and counts that do not add up: what pycocotools makes of them is chance."""
    if len(sizes := {tuple(run["size"]) for run in runs}) > 1:
        raise ValueError(f"run lengths of one size were expected, got {sorted(sizes)}: decode each size alone")
    for run in runs:
        (height, width), counts = run["size"], rle_counts(run)
        if counts.sum() != height * width or counts.min(initial=0) < 0:
            raise ValueError(f"run lengths of {counts.sum()} pixels do not fill their size of {width}×{height} pixels")


def rle_counts(run: Rle) -> np.ndarray:
    """(counts,) int64: how many pixels lie outside and inside in turn, column after column.

    pycocotools keeps them to itself, and unpacks nothing less than the image.
    """
    digits = np.frombuffer(run["counts"].encode(), np.uint8) - 48  # 5 bits of a number, low ones first, and a sign
    ends = np.flatnonzero(digits & 32 == 0)  # that no more follow
    if not len(ends) or ends[-1] < len(digits) - 1:
        return np.zeros(0, np.int64)
    starts = np.append(0, ends[:-1] + 1)
    shifts = 5 * (np.arange(len(digits)) - starts.repeat(np.diff(starts, append=len(digits))))
    counts = np.add.reduceat((digits & 31).astype(np.int64) << shifts, starts)
    counts -= (digits[ends] & 16 > 0).astype(np.int64) << (shifts[ends] + 5)
    for place in (1, 2):  # after the third, each is told by its difference to the last but one
        counts[place::2] = counts[place::2].cumsum()
    return counts


def inside_box(run: Rle, box: Sequence[int]) -> np.ndarray:
    """(y1 - y0, x1 - x0) bool: a mask as far as its box x0 y0 x1 y1 goes, and no pixel beyond it is unpacked."""
    x0, y0, x1, y1 = box
    height, edges = run["size"][0], rle_counts(run).cumsum()
    ends = edges[1::2]
    starts = edges[0::2][: len(ends)]
    starts, ends = starts[ends > starts], ends[ends > starts]
    # A run may go on through columns: it is cut into one for each.
    first, last = starts // height, (ends - 1) // height
    spans = last - first + 1
    run_of = np.arange(len(starts)).repeat(spans)
    columns = first[run_of] + np.arange(len(run_of)) - (spans.cumsum() - spans)[run_of]
    tops = np.where(columns == first[run_of], starts[run_of] % height, 0)
    bottoms = np.where(columns == last[run_of], (ends[run_of] - 1) % height + 1, height)
    steps = np.zeros((x1 - x0, y1 - y0 + 1), np.int8)
    np.add.at(steps, (columns - x0, tops - y0), 1)
    np.add.at(steps, (columns - x0, bottoms - y0), -1)
    return np.ascontiguousarray(steps.cumsum(1, dtype=np.int8)[:, :-1].T > 0)


def mask_polygons(mask: np.ndarray, connectivity: Literal[4, 8] = 8) -> list[Polygon]:
    """The exact outlines of a mask: filling them (even-odd, or by winding) gives the mask again.

    Args:
        mask: (height, width) bool.
        connectivity: 8 for pieces connected through edges or corners: where two pixels meet at a corner alone, rings
            touch themselves in that point. 4 for pieces, and holes, connected through edges: no ring touches itself,
            which makes polygons valid as geographic software (OGC simple features) understands it.

    Returns:
        A polygon for each piece, from top to bottom. Only points where the outline turns are kept.
    """
    if mask.ndim != 2 or mask.dtype != np.bool_:
        raise ValueError(f"expected one bool mask (height, width), got {mask.dtype} of shape {mask.shape}")
    corners_xy, rings = trace_rings(mask, connectivity)
    pieces = label_pieces(np.pad(mask, 1), connectivity)
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


def patch_polygons(patch: Patch, connectivity: Literal[4, 8] = 8) -> list[Polygon]:
    """As ``mask_polygons``, in pixels of the image."""
    corner = np.array(patch.corner_xy, np.float32)
    return [
        Polygon(polygon.exterior + corner, tuple(hole + corner for hole in polygon.holes))
        for polygon in mask_polygons(patch.inside, connectivity)
    ]


def trace_rings(mask: np.ndarray, connectivity: Literal[4, 8]) -> tuple[np.ndarray, list[list[int]]]:
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
    # the edge to the right. Where pixels that touch are one piece, each corner goes around a pixel of the background,
    # and otherwise around one of the mask: when that lies above on the right, the second corner owns the edge from
    # above and comes first in its column.
    places = np.flatnonzero(turns | crossings)
    place = places.repeat(1 + crossings.ravel()[places])
    y, x = np.divmod(place, turns.shape[1])
    crosses, falls = crossings[y, x], above_left[y, x]
    is_second = np.zeros(len(x), bool)
    is_second[1:] = (x[1:] == x[:-1]) & (y[1:] == y[:-1])
    by_column = np.lexsort((is_second ^ (crosses & (falls if connectivity == 8 else ~falls)), y, x))
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
    if connectivity == 4 and crosses.any():
        place_of = place.tolist()
        rings = sorted(loop for ring in rings for loop in split_ring(ring, place_of))
    return np.stack([x, y], axis=1), rings


def split_ring(ring: list[int], place_of: list[int]) -> Iterator[list[int]]:
    """A way that touches itself, as ways that do not; each begins as ``trace_rings`` does, at the top to the right."""
    way: list[int] = []
    at: dict[int, int] = {}  # where on the way a place is
    for corner in [*ring, ring[0]]:
        place = place_of[corner]
        if place in at:
            loop = way[at[place] :]
            del way[at[place] :]
            for passed in loop:
                del at[place_of[passed]]
            first = loop.index(min(loop))
            loop = loop[first:] + loop[:first]
            goes_right = place_of[loop[1]] < place_of[loop[-1]]  # of its neighbours the other is a row below
            yield loop if goes_right else [loop[0], *loop[:0:-1]]
        at[place] = len(way)
        way.append(corner)


def check_masks(masks: MaskStack) -> None:
    """Refuse what is not (masks, height, width) bool with at least one pixel each."""
    if masks.ndim != 3 or masks.dtype != np.bool_ or 0 in masks.shape[1:]:
        raise ValueError(
            f"expected bool masks (masks, height, width), got {masks.dtype} of shape {masks.shape}. "
            "Pass one mask as mask[None], logits as logits > 0."
        )
