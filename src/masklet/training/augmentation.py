"""Random changes to images and clips, with their masks. Each change is drawn once and applied to all frames alike."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageFilter

from masklet.datasets.scenes import Mask, Pixels
from masklet.training.data_config import Augmentations

WINDOW_AREA = (0.25, 1.0)
"""Smallest and largest area of a window, as a share of the image."""
WINDOW_ASPECT = 4 / 3
"""Largest change of the aspect ratio."""
TONE = 0.4
"""Largest relative change of brightness, contrast and saturation."""
HUE = 0.06
"""Largest change of the hue, as a share of the circle."""
MAX_BLUR = 0.01
"""Largest radius, as a share of the image's longer side."""
JPEG_QUALITY = (20, 80)

Array = TypeVar("Array", Pixels, Mask)


@dataclass(frozen=True)
class Change:
    """What happens to one example."""

    window: tuple[float, float, float, float] | None = None
    """Left, top, width and height, as shares of the image; None for all of it."""
    flips: tuple[bool, bool] = (False, False)
    """Whether left and right, and top and bottom, are exchanged."""
    tone: tuple[float, float, float, float] | None = None
    """Factors of brightness, contrast and saturation, and the turn of the hue."""
    is_grey: bool = False
    blur: float = 0.0
    """Radius, as a share of the longer side."""
    jpeg_quality: int | None = None

    def cut(self, array: Array) -> Array:
        """The window of an image (height, width, 3) or a mask (height, width), before it is scaled."""
        if self.window is None:
            return array
        height, width = array.shape[:2]
        left, top, share_x, share_y = self.window
        x0, y0 = int(left * width), int(top * height)
        return array[y0 : y0 + max(1, round(share_y * height)), x0 : x0 + max(1, round(share_x * width))]

    def flip(self, array: Array) -> Array:
        """An image or a mask, mirrored."""
        across, down = self.flips
        return np.ascontiguousarray(array[:: -1 if down else 1, :: -1 if across else 1])

    def recolour(self, pixels: Pixels) -> Pixels:
        """The image with all changes that leave masks as they are."""
        if self.tone is None and not self.is_grey and not self.blur and self.jpeg_quality is None:
            return pixels
        image = Image.fromarray(pixels)
        if self.tone is not None:
            *factors, turn = self.tone
            for kind, factor in zip(
                (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color), factors, strict=True
            ):
                image = kind(image).enhance(factor)
            image = _turned(image, turn)
        if self.is_grey:
            image = image.convert("L").convert("RGB")
        if self.blur:
            image = image.filter(ImageFilter.GaussianBlur(self.blur * max(image.size)))
        if self.jpeg_quality is not None:
            image.save(stored := io.BytesIO(), "JPEG", quality=self.jpeg_quality)
            image = Image.open(stored).convert("RGB")
        return np.asarray(image)


def draw_change(augment: Augmentations, rng: np.random.Generator) -> Change:
    """Draws each augmentation with its probability."""
    wanted = {name: bool(rng.random() < probability) for name, probability in vars(augment).items()}
    window, tone = _draw_window(rng), (*rng.uniform(1 - TONE, 1 + TONE, 3).tolist(), float(rng.uniform(-HUE, HUE)))
    blur, quality = float(rng.uniform(0, MAX_BLUR)), int(rng.integers(*JPEG_QUALITY, endpoint=True))
    return Change(
        window=window if wanted["crop"] else None,
        flips=(wanted["flip"], wanted["flip_vertical"]),
        tone=tone if wanted["colour"] else None,
        is_grey=wanted["grey"],
        blur=blur if wanted["blur"] else 0.0,
        jpeg_quality=quality if wanted["jpeg"] else None,
    )


def _draw_window(rng: np.random.Generator) -> tuple[float, float, float, float]:
    area, aspect = rng.uniform(*WINDOW_AREA), np.exp(rng.uniform(-1, 1) * np.log(WINDOW_ASPECT))
    width, height = min(1.0, np.sqrt(area * aspect)), min(1.0, np.sqrt(area / aspect))
    left, top = rng.random(2) * (1 - width, 1 - height)
    return float(left), float(top), float(width), float(height)


def _turned(image: Image.Image, turn: float) -> Image.Image:
    """The image with its hues turned by a share of the circle."""
    hsv: NDArray[np.uint8] = np.array(image.convert("HSV"))
    hsv[..., 0] += np.uint8(round(turn * 256) % 256)  # wraps around, as hues do
    return Image.fromarray(hsv, "HSV").convert("RGB")
