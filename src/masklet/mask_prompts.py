"""Reads masks as prompts: binary and soft masks of the image, and logits of earlier results."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from masklet.config import STRIDES, SizeHW
from masklet.errors import PromptError
from masklet.images.reading import ImageSource, pixels_of
from masklet.tensors import is_tensor

if TYPE_CHECKING:
    from torch import Tensor

MASK_PROMPT_LOGIT = 10.0
"""The logit of pixels inside a binary mask: between typical logits of earlier results and saturation."""
SOFT_THRESHOLD = 0.5
"""Pixels of a soft mask with at least this value are inside."""
EXPECTED_INSIDE = "expected at least one pixel of the object (one half or more in a soft mask)"
EXPECTED_MASK = (
    "a binary mask of 0 and 1 (or 255), a soft mask (floats from 0 to 1, or grey values in uint8), or logits"
)
SELECT_ONE = "If the values are numbers of masks, select one: mask == 1"
MAX_NUMBERED = 64
"""Consecutive grey values 1, 2, 3 … up to this are numbers of masks; a soft mask has other values."""


@dataclass(frozen=True)
class CheckedMasks:
    """Mask prompts, before they are resized."""

    values: np.ndarray
    """(objects, height / 4, width / 4) float32 logits of the network's input; or, of the image's size, how much of each
    pixel is inside, see ``mask_shares``."""
    boxes: list[list[float]] | None
    """(objects, 4), x0 y0 x1 y1, around the pixels inside; None for logits."""

    def __len__(self) -> int:
        return len(self.values)


def check_masks(mask: Any, *, size_hw: SizeHW, input_hw: SizeHW) -> CheckedMasks:
    """Checks mask prompts, and finds the boxes of masks.

    Args:
        mask: (h, w) or (objects, h, w). Floats of the network's mask size are logits. A mask of the image's size is
            binary or soft, see ``mask_shares``.
        size_hw: Size of the original image.
        input_hw: Size of the network's input.

    Raises:
        PromptError: They are neither masks nor logits, or have another size.
    """
    values = mask_array(mask)
    values = values[None] if values.ndim == 2 else values
    logits_hw = (input_hw[0] // STRIDES[0], input_hw[1] // STRIDES[0])
    shape_hw = values.shape[-2:]
    may_be_logits = values.dtype.kind == "f" and shape_hw == logits_hw
    if may_be_logits and values.any() and values.min() >= 0 and values.max() <= 1:
        # Logits are negative outside of the object. These are probabilities, or a binary mask.
        if shape_hw != size_hw:
            raise PromptError(
                f"mask of {logits_hw} holds values from {values.min():g} to {values.max():g}: expected logits of an "
                f"earlier prediction, which are negative outside the object, or a mask of the image's size {size_hw}"
            )
        may_be_logits = False
    if values.ndim != 3 or not (shape_hw == size_hw or may_be_logits):
        raise PromptError(
            f"mask has shape {values.shape} of {values.dtype}: expected the image's size {size_hw} (rows, columns) "
            f"for a binary or soft mask, or {logits_hw} of floats for logits of an earlier prediction, with one more "
            "axis in front for several objects"
        )
    if may_be_logits:
        return CheckedMasks(values.astype(np.float32), None)
    if not len(values):
        return CheckedMasks(values.astype(bool), [])
    if (shares := mask_shares(values)) is None:
        raise PromptError(
            f"mask of the image's size holds values from {values.min():g} to {values.max():g}: expected "
            f"{EXPECTED_MASK} of size {logits_hw}. {SELECT_ONE}"
        )
    insides = shares >= SOFT_THRESHOLD
    if empty := [index for index, inside in enumerate(insides) if not inside.any()]:
        raise PromptError(f"mask {empty[0]} is empty: {EXPECTED_INSIDE}")
    return CheckedMasks(shares, [_box_around(inside) for inside in insides])


def check_frame_mask(mask: Any, size_hw: SizeHW) -> np.ndarray:
    """(height, width) bool: the mask of one object in a frame of this size.

    Raises:
        PromptError: It is no mask, is empty, or has another size.
    """
    values = mask_array(mask)
    values = values[0] if values.ndim == 3 and len(values) == 1 else values
    if values.shape != size_hw:
        raise PromptError(f"mask has shape {values.shape}: expected {size_hw}, the video's (height, width)")
    shares = mask_shares(values)
    if shares is None and not _may_be_logits(values):
        raise PromptError(
            f"mask holds values from {values.min():g} to {values.max():g}: expected {EXPECTED_MASK}. {SELECT_ONE}"
        )
    inside = values > 0 if shares is None else shares >= SOFT_THRESHOLD
    if not inside.any():
        raise PromptError(f"mask is empty: {EXPECTED_INSIDE}")
    return inside


def _may_be_logits(values: np.ndarray) -> bool:
    """Whether values that are no mask are logits, and not numbers of masks, which are whole and not negative."""
    return values.dtype.kind == "f" and bool(values.min() < 0 or (values % 1).any())


def mask_logits(masks: CheckedMasks, input_hw: SizeHW) -> Tensor:
    """(objects, height / 4, width / 4) logits of mask prompts."""
    import torch

    logits_hw = (input_hw[0] // STRIDES[0], input_hw[1] // STRIDES[0])
    if masks.boxes is None:
        return torch.from_numpy(masks.values)
    if not len(masks):
        return torch.zeros(0, *logits_hw, dtype=torch.float32, device="cpu")
    return plain_mask_logits(torch.from_numpy(masks.values), logits_hw)


def mask_shares(values: np.ndarray) -> np.ndarray | None:
    """How much of each pixel is inside the object: bool for a binary mask, float32 from 0 to 1 for a soft one.

    A binary mask holds 0 and one larger value, of any type. A soft mask holds floats from 0 to 1, or grey values in
    uint8, of which 255 is 1. Grey values that count up from 1 are numbers of masks instead. None for these and anything
    else.
    """
    if ((values == 0) | (values == values.max())).all():
        return values > 0
    if values.dtype.kind == "f" and values.min() >= 0 and values.max() <= 1:
        return values.astype(np.float32)
    if values.dtype == np.uint8:
        (greys,) = np.bincount(values.ravel(), minlength=256)[1:255].nonzero()
        are_numbers = len(greys) <= MAX_NUMBERED and np.array_equal(greys, np.arange(len(greys)))
        return None if are_numbers else values.astype(np.float32) / np.float32(255)
    return None


def plain_mask_logits(shares: Tensor, size_hw: SizeHW) -> Tensor:
    """Converts masks to logits of another size, on the CPU: (masks, height, width) to (masks, h, w) float32.

    Logits are proportional to how much of a pixel is inside: -10 for nothing, 10 for all of it. So a soft mask and a
    binary mask, whose edge runs through pixels of the smaller size, have the same logits at the edge.

    Args:
        shares: As from ``mask_shares``.
        size_hw: Size of the logits.
    """
    import torch.nn.functional as F

    share = F.interpolate(shares[:, None].float(), size=size_hw, mode="bilinear", antialias=True)[:, 0]
    return MASK_PROMPT_LOGIT * (2 * share - 1)


def mask_array(mask: Any) -> np.ndarray:
    """Converts numbers of any type and nesting to an array.

    Raises:
        PromptError: These are not numbers, or a number is not finite in float32.
    """
    if is_tensor(mask):
        mask = mask.detach().cpu()
        mask = mask.float() if mask.is_floating_point() else mask  # numpy has no bfloat16
    try:
        values = np.asarray(mask)
    except ValueError:  # lists of different lengths, or an object of the caller's that looks like a list
        values = np.empty(0, dtype=object)
    if values.dtype.kind not in "buif":
        raise PromptError(
            f"mask is a {type(mask).__name__} and holds no plain numbers: expected an array (height, width), or the "
            "logits of an earlier result, mask=result.logits"
        )
    if values.dtype.kind == "f":
        with np.errstate(over="ignore"):
            is_finite = np.isfinite(values.astype(np.float32, copy=False)).all()
        if not is_finite:
            raise PromptError("mask holds NaN or infinite values: expected finite logits, or a mask")
    return values


def _box_around(inside: np.ndarray) -> list[float]:
    rows, columns = (np.flatnonzero(inside.any(axis)) for axis in (1, 0))
    return [float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)]


def read_mask_file(source: ImageSource) -> np.ndarray:
    """Reads a mask image, (height, width), as a mask prompt.

    Args:
        source: A path, or a binary file.

    Returns:
        The values of a greyscale image, as they are stored. Otherwise bool: pixels that are neither black nor
        transparent are inside.

    Raises:
        PromptError: It has a few colours, as images have that number several objects.
    """
    pixels = pixels_of(source)  # as stored: 1 of 65535 is inside, and 8 bits would lose it
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    colours, alpha = pixels[..., :3], pixels[..., 3:]
    if (colours == colours[..., :1]).all() and (alpha == 255).all():
        return pixels[..., 0]
    inside = np.asarray(colours.any(axis=2) & alpha.all(axis=2))
    count = len(np.unique(colours[inside], axis=0))
    if 1 < count <= MAX_NUMBERED:
        raise PromptError(
            f"the mask {source} has {count} colours, like an image that numbers several objects: expected a mask of "
            "one object, black outside"
        )
    return inside
