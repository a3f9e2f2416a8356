"""Resizes frames on the device to the same pixels that Pillow makes of them: bicubic, in 8 bits.

Pillow resizes one axis after the other, in whole numbers: weights have 22 bits after the point, and the first axis is
rounded to 8 bits before the second. So all devices give the same pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from masklet.config import SizeHW

WEIGHT_BITS = 22
"""Bits of a weight after the point."""
REACH = 2.0
"""Pixels on either side that the bicubic filter reads."""
SHARPNESS = -0.5
"""Slope of the bicubic filter where it ends its first lobe, as in Pillow."""


@dataclass(frozen=True, eq=False)
class AxisWeights:
    """Which pixels of an axis each pixel of the resized axis is a weighted sum of."""

    sources: Tensor  # (taps, size) int64
    weights: Tensor  # (taps, size) int32, in units of 2 ** -WEIGHT_BITS

    @classmethod
    def make(cls, length: int, size: int, device: torch.device) -> AxisWeights:
        """Weights that resize an axis of ``length`` pixels to ``size``."""
        scale = length / size
        stretch = max(scale, 1.0)  # of the filter, which covers more pixels when there are fewer to make
        centres = (np.arange(size) + 0.5) * scale
        first = np.maximum((centres - REACH * stretch + 0.5).astype(np.int64), 0)
        last = np.minimum((centres + REACH * stretch + 0.5).astype(np.int64), length)  # excluded
        taps = 2 * math.ceil(REACH * stretch) + 1
        sources = first + np.arange(taps)[:, None]
        weights = np.where(sources < last, _bicubic((sources - centres + 0.5) * (1.0 / stretch)), 0.0)
        total = np.zeros(size)
        for tap in weights:  # in Pillow's order, since sums of floats depend on it
            total += tap
        whole = np.trunc(weights / total * 2**WEIGHT_BITS + np.copysign(0.5, weights))
        # Taps beyond the last pixel have no weight.
        return cls(
            torch.tensor(np.minimum(sources, length - 1), dtype=torch.int64, device=device),
            torch.tensor(whole, dtype=torch.int32, device=device),
        )

    def resize(self, pixels: Tensor, axis: int) -> Tensor:
        """Resize one axis of uint8 pixels."""
        shape = [1] * pixels.ndim
        shape[axis] = -1
        total: Tensor | None = None
        for sources, weights in zip(self.sources, self.weights, strict=True):
            part = pixels.index_select(axis, sources) * weights.view(shape)  # int32
            total = part.add_(1 << (WEIGHT_BITS - 1)) if total is None else total.add_(part)
        assert total is not None
        return total.bitwise_right_shift_(WEIGHT_BITS).clamp_(0, 255).to(torch.uint8)


@dataclass(frozen=True, eq=False)
class FrameResizer:
    """Resizes frames of one size to another."""

    across: AxisWeights | None
    """None where the size stays."""
    down: AxisWeights | None

    @classmethod
    def make(cls, frame_hw: SizeHW, input_hw: SizeHW, device: torch.device) -> FrameResizer:
        """From the size of frames to that of the network's input."""
        down, across = (
            None if length == size else AxisWeights.make(length, size, device)
            for length, size in zip(frame_hw, input_hw, strict=True)
        )
        return cls(across, down)

    def __call__(
        self, frame: Tensor, resize: Callable[[AxisWeights, Tensor, int], Tensor] = AxisWeights.resize
    ) -> Tensor:
        """(height, width, 3) uint8 to the other size.

        Args:
            frame: On the device of the weights.
            resize: Resizes one axis.
        """
        if self.across is not None:
            frame = resize(self.across, frame, 1)
        return frame if self.down is None else resize(self.down, frame, 0)


def resize_frame(frame: Tensor, input_hw: SizeHW) -> Tensor:
    """Resize a frame (height, width, 3) uint8, on its device."""
    return FrameResizer.make((frame.shape[0], frame.shape[1]), input_hw, frame.device)(frame)


def _bicubic(x: np.ndarray) -> np.ndarray:
    """The cubic convolution filter (Keys, 1981)."""
    a, x = SHARPNESS, np.abs(x)
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))
