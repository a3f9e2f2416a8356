"""Converts images to the network's input without torch: see ``masklet.processing.ImageProcessor``."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from masklet.config import SizeHW
from masklet.export.manifest import Manifest
from masklet.masks.resizing import reduced


@dataclass(frozen=True)
class ArrayProcessor:
    """Prepares images as ``ImageProcessor`` does, to rounding."""

    manifest: Manifest

    @property
    def input_hw(self) -> SizeHW:
        """(height, width) of the network's input."""
        return self.manifest.input_hw

    def pixel_values(self, image: np.ndarray) -> np.ndarray:
        """(height, width, 3) uint8 to (1, 3, *input_hw) float32: bilinear with antialias, in float32."""
        channels = [reduced(image[..., channel].astype(np.float32), self.input_hw) for channel in range(3)]
        return self._normalised(np.stack(channels))

    def frame_values(self, image: np.ndarray) -> np.ndarray:
        """As ``pixel_values`` for a frame of a video: bicubic, in 8 bits."""
        height, width = self.input_hw
        resized = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))
        return self._normalised(resized.transpose(2, 0, 1).astype(np.float32))

    def _normalised(self, pixels: np.ndarray) -> np.ndarray:
        mean, std = (
            np.array(values, np.float32)[:, None, None]
            for values in (self.manifest.image_mean, self.manifest.image_std)
        )
        values = (pixels / np.float32(1 / self.manifest.rescale_factor) - mean) / std
        return np.ascontiguousarray(values[None], np.float32)
