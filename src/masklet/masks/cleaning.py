"""Cleaning of masks: smooth outlines, fill small holes, remove small islands."""

import math
from functools import partial
from typing import Literal, TypeVar

import cc3d
import numpy as np
from PIL import Image, ImageFilter

from masklet.config import SizeHW
from masklet.masks.patches import Patch, encode_patch, patches, widened
from masklet.masks.run_lengths import PackedMasks, check_masks
from masklet.numbers import real_number, whole_number

Connectivity = Literal[4, 8]
"""4: pixels connect through edges. 8: through edges and corners."""
MAX_SMOOTH_PX = 10_000
"""Pillow counts in 32 bits."""
Stack = TypeVar("Stack", np.ndarray, PackedMasks)


def clean_masks(
    masks: Stack,
    *,
    smooth_px: float = 0,
    fill_holes: int = 0,
    remove_islands: int = 0,
    keep_largest: bool = False,
    hole_connectivity: Connectivity = 4,
) -> Stack:
    """Smooth outlines, fill small holes, then remove small islands or all but the largest. No mask becomes empty.

    A hole is a connected component of the background, even at the border of the image. An island is a connected
    component of the mask, through edges and corners (8 neighbours).

    Args:
        masks: (masks, height, width) bool.
        smooth_px: Roundness of the outline: the mask is blurred with a Gaussian of this standard deviation, in pixels,
            and cut at one half. A mask that would vanish is not smoothed.
        fill_holes: Holes of fewer pixels than this are filled. An empty mask stays empty.
        remove_islands: Islands of fewer pixels than this are removed, except the largest of each mask (all of the
            largest if several are equal).
        keep_largest: Only the largest island of each mask stays; of equal islands the first by rows.
        hole_connectivity: 4 counts holes that touch in a corner as two. 8 counts them as one, as SAM's automatic mask
            generator does.

    Returns:
        A new (masks, height, width) bool, packed if ``masks`` are. Without smoothing, cleaning again changes nothing.

    Raises:
        ValueError: ``masks`` are not masks; ``smooth_px``, ``fill_holes`` or ``remove_islands`` is no number, negative
            or, for ``smooth_px``, above 10,000.
    """
    check_masks(masks)
    smooth_px = real_number("smooth_px", smooth_px, ValueError, least=0, most=MAX_SMOOTH_PX)
    fill_holes = whole_number("fill_holes", fill_holes, ValueError, least=0)
    remove_islands = whole_number("remove_islands", remove_islands, ValueError, least=0)
    size_hw = (masks.shape[1], masks.shape[2])

    clean = partial(
        clean_patch,
        size_hw=size_hw,
        smooth_px=smooth_px,
        fill_holes=fill_holes,
        remove_islands=remove_islands,
        keep_largest=keep_largest,
        hole_connectivity=hole_connectivity,
    )
    if isinstance(masks, PackedMasks):
        return PackedMasks([encode_patch(clean(patch), size_hw) for patch in patches(masks)], size_hw)
    cleaned = np.zeros(masks.shape, bool)
    for mask, patch in zip(cleaned, map(clean, patches(masks)), strict=True):
        mask[patch.place] = patch.inside
    return cleaned


def clean_patch(
    patch: Patch,
    *,
    size_hw: SizeHW,
    smooth_px: float,
    fill_holes: int,
    remove_islands: int,
    keep_largest: bool,
    hole_connectivity: Connectivity,
) -> Patch:
    """As ``clean_masks``, for one mask of an image: in its box, with the margin around it that can matter."""
    if not patch.inside.size:
        return patch
    wide = widened(patch, margin_px(smooth_px), size_hw, least_beyond=fill_holes)
    mask = wide.inside
    if smooth_px > 0 and (smoothed := smooth(mask, smooth_px)).any():
        mask = smoothed
    if fill_holes > 0:
        mask = mask | small_holes(wide._replace(inside=mask), fill_holes, size_hw, hole_connectivity)
    if remove_islands > 0:
        mask = mask & ~small_islands(mask, remove_islands)
    return wide._replace(inside=largest_component(mask) if keep_largest else mask)


def margin_px(smooth_px: float) -> int:
    """How far around a mask cleaning reaches."""
    # Pillow blurs in three passes of a box, each of which reaches this far. One pixel more makes the background around
    # the mask one component.
    return 1 + (3 * (math.ceil(smooth_px) + 1) if smooth_px else 0)


def smooth(mask: np.ndarray, radius_px: float) -> np.ndarray:
    """(height, width) bool: the mask blurred and cut at one half; pixels at the border extend beyond it."""
    grey = Image.fromarray(mask.astype(np.uint8) * np.uint8(255))
    return np.asarray(grey.filter(ImageFilter.GaussianBlur(radius_px))) > 127


def largest_component(mask: np.ndarray) -> np.ndarray:
    """(height, width) bool: the component with the most pixels (8 neighbours), of equal ones the first by rows."""
    components = label_components(mask, connectivity=8)
    areas = component_areas(components)
    areas[0] = 0  # the background
    return mask & (components == areas.argmax())


def small_islands(mask: np.ndarray, min_area: int) -> np.ndarray:
    """(height, width) bool: components of fewer pixels than ``min_area`` (8 neighbours), but none of the largest."""
    components = label_components(mask, connectivity=8)
    areas = component_areas(components)
    is_small = areas < min(min_area, areas[1:].max(initial=0))
    is_small[0] = False  # the background
    return is_small[components]


def small_holes(patch: Patch, min_area: int, size_hw: SizeHW, connectivity: Connectivity) -> np.ndarray:
    """(rows, columns) bool: background components of fewer pixels than ``min_area`` in the whole image.

    Args:
        patch: Has at least one pixel of background around the mask, except where the image ends.
        min_area: In pixels. The background beyond a side of the patch is empty or has at least as many.
        size_hw: Size of the image.
        connectivity: Connectivity of the components.
    """
    rows, columns = patch.place
    components = label_components(~patch.inside, connectivity)
    areas = component_areas(components)
    # The background beyond a side belongs to the one component along that side.
    height = rows.stop - rows.start
    for corner, beyond in (
        (components[0, 0], rows.start * size_hw[1] + columns.start * height),
        (components[-1, 0], (size_hw[0] - rows.stop) * size_hw[1]),
        (components[0, -1], (size_hw[1] - columns.stop) * height),
    ):
        areas[corner] += beyond
    is_small = areas < min_area
    is_small[0] = False  # the mask
    return is_small[components]


def label_components(mask: np.ndarray, connectivity: Connectivity) -> np.ndarray:
    """(height, width) int: connected components of ``mask``, numbered from 1; 0 outside."""
    # As uint8: given bools with 8 neighbours and an odd side, cc3d 4.1.1 labels pixels outside the mask.
    return cc3d.connected_components(mask.astype(np.uint8), connectivity=connectivity)


def component_areas(components: np.ndarray) -> np.ndarray:
    """(components + 1,) int: the number of pixels with each label of ``label_components``, from 0."""
    return cc3d.statistics(components, no_slice_conversion=True)["voxel_counts"].astype(np.int64)
