"""Bilinear resizing of arrays, as torch does it, for code that runs without torch."""

from __future__ import annotations

import numpy as np
from PIL import Image

from masklet.config import SizeHW


def upscaled(values: np.ndarray, size_hw: SizeHW) -> np.ndarray:
    """(h, w) float32 to (height, width), between pixel centres, without antialiasing; see ``upscale_logits``."""
    for axis, size in enumerate(size_hw):
        scale = np.float32(values.shape[axis] / size)
        centres = (np.arange(size, dtype=np.float32) + np.float32(0.5)) * scale - np.float32(0.5)
        values = interpolated(values, centres, axis)
    return values


def interpolated(values: np.ndarray, positions: np.ndarray, axis: int) -> np.ndarray:
    """Linear interpolation of (h, w) float32 along one axis.

    Args:
        values: One value at each whole position.
        positions: (size,), where to interpolate; beyond the first and the last value, these are continued.
        axis: 0 for rows, 1 for columns.
    """
    last = values.shape[axis] - 1
    positions = positions.clip(0, last)
    low = positions.astype(np.intp)
    weight = (positions - low).astype(np.float32)
    first, second = values.take(low, axis), values.take(np.minimum(low + 1, last), axis)
    second -= first
    second *= weight[:, None] if axis == 0 else weight
    second += first
    return second


def reduced(values: np.ndarray, size_hw: SizeHW) -> np.ndarray:
    """(height, width) float32 to (h, w) of any size, bilinear with antialiasing. Pillow's filter is torch's."""
    image = Image.fromarray(np.ascontiguousarray(values, np.float32))
    return np.asarray(image.resize((size_hw[1], size_hw[0]), Image.Resampling.BILINEAR))
