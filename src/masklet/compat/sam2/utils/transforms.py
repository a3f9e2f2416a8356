"""Between images and the network's input."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from masklet.config import SizeHW
from masklet.images.reading import read_image
from masklet.masks import clean_masks, upscale_logits
from masklet.processing import ImageProcessor


class SAM2Transforms:
    """Prepares images, coordinates and masks as Meta's class of this name.

    Args:
        resolution: Side of the square input.
        mask_threshold: Logit above which a pixel is inside, for the two areas.
        max_hole_area: Holes up to this many low-resolution pixels are filled.
        max_sprinkle_area: Islands up to this many low-resolution pixels are removed.
        image_processor: How images are prepared; None for that of the published checkpoints.
    """

    def __init__(
        self,
        resolution: int,
        mask_threshold: float,
        max_hole_area: float = 0.0,
        max_sprinkle_area: float = 0.0,
        image_processor: ImageProcessor | None = None,
    ) -> None:
        self.resolution = resolution
        self.mask_threshold = mask_threshold
        self.max_hole_area = max_hole_area
        self.max_sprinkle_area = max_sprinkle_area
        self.image_processor = image_processor or ImageProcessor(resolution)

    def __call__(self, x: Any) -> Tensor:
        """An image to (3, resolution, resolution), normalised."""
        return self.image_processor.pixel_values(rgb_pixels(x))[0]

    def forward_batch(self, img_list: list[Any]) -> Tensor:
        """Images to (batch, 3, resolution, resolution)."""
        return torch.stack([self(image) for image in img_list])

    def transform_coords(self, coords: Tensor, normalize: bool = False, orig_hw: SizeHW | None = None) -> Tensor:
        """(..., 2) x and y to pixels of the network's input.

        Args:
            coords: From 0 to 1; with ``normalize``, pixels of the original image.
            normalize: Whether they are pixels.
            orig_hw: (height, width) of the original image.
        """
        if normalize:
            assert orig_hw is not None
            coords = coords / torch.tensor([orig_hw[1], orig_hw[0]], dtype=coords.dtype, device=coords.device)
        return coords * self.resolution

    def transform_boxes(self, boxes: Tensor, normalize: bool = False, orig_hw: SizeHW | None = None) -> Tensor:
        """(boxes, 4) to corners (boxes, 2, 2): see ``transform_coords``."""
        return self.transform_coords(boxes.reshape(-1, 2, 2), normalize, orig_hw)

    def postprocess_masks(self, masks: Tensor, orig_hw: SizeHW) -> Tensor:
        """(batch, masks, h, w) logits to (batch, masks, height, width), with gradients where nothing is cleaned."""
        return upscale_logits(
            clean_logits(masks.float(), self.max_hole_area, self.max_sprinkle_area, threshold=self.mask_threshold),
            (orig_hw[0], orig_hw[1]),
        )


def clean_logits(
    logits: Tensor, max_hole_area: float, max_sprinkle_area: float = 0, *, threshold: float = 0, margin: float = 10
) -> Tensor:
    """Fills small holes of logits (..., h, w) and removes small islands.

    Args:
        logits: Logits of masks.
        max_hole_area: The largest hole that is filled, in pixels of ``logits``.
        max_sprinkle_area: The largest island that is removed; the largest of a mask stays.
        threshold: Logit above which a pixel is inside.
        margin: Filled holes become ``threshold + margin``, islands ``threshold - margin``.
    """
    if max_hole_area <= 0 and max_sprinkle_area <= 0:
        return logits
    inside = (logits > threshold).detach()
    # clean_masks changes what has fewer pixels, Meta what has at most so many.
    holes, islands = (int(area) + 1 if area > 0 else 0 for area in (max_hole_area, max_sprinkle_area))
    flat = inside.reshape(-1, *logits.shape[-2:]).cpu().numpy()
    cleaned = clean_masks(flat, fill_holes=holes, remove_islands=islands, hole_connectivity=8)
    after = torch.from_numpy(cleaned).to(logits.device).reshape(logits.shape)
    logits = torch.where(after & ~inside, threshold + margin, logits)
    return torch.where(~after & inside, threshold - margin, logits)


def rgb_pixels(image: Any) -> np.ndarray:
    """(height, width, 3) uint8 of a PIL image or an array, not rotated by EXIF, so that masks fit ``np.array(image)``.

    Raises:
        ImageError: It is not an image.
    """
    return read_image(np.asarray(image.convert("RGB")) if isinstance(image, Image.Image) else image)
