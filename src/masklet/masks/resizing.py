"""Bilinear resizing of arrays, as torch does it, for code that runs without torch."""

from __future__ import annotations

import numpy as np
from PIL import Image

from masklet.config import SizeHW


def upscaled(values: np.ndarray, size_hw: SizeHW) -> np.ndarray:
    """(h, w) float32 to (height, width), between pixel centres, without antialiasing; see ``upscale_logits``."""
    for axis, size in enumerate(size_hw):
        low, high, weight = _taps(values.shape[axis], size)
        weight = weight[:, None] if axis == 0 else weight
        first, second = values.take(low, axis), values.take(high, axis)
        second -= first
        second *= weight
        second += first
        values = second
    return values


def reduced(values: np.ndarray, size_hw: SizeHW) -> np.ndarray:
    """(height, width) float32 to (h, w) of any size, bilinear with antialiasing. Pillow's filter is torch's."""
    image = Image.fromarray(np.ascontiguousarray(values, np.float32))
    return np.asarray(image.resize((size_hw[1], size_hw[0]), Image.Resampling.BILINEAR))


def _taps(length: int, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each of ``size`` positions: the two neighbours among ``length`` values, and the weight of the second."""
    scale = np.float32(length / size)
    centre = np.maximum((np.arange(size, dtype=np.float32) + np.float32(0.5)) * scale - np.float32(0.5), 0)
    low = centre.astype(np.intp)
    return low, np.minimum(low + 1, length - 1), centre - low.astype(np.float32)
