"""Images and prompts -> tensors, and logits -> masks of the original size.

The two classes take and return what transformers' classes of the same names do.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from typing_extensions import Self

from masklet import checkpoints
from masklet.config import SIDE_MULTIPLE, STRIDES, SizeHW
from masklet.errors import ConfigError, ImageError, PromptError
from masklet.images.reading import read_image
from masklet.masks import clean_masks, upscale_logits
from masklet.model.prompt_encoder import PADDING
from masklet.prompts import pad_boxes, pad_points, to_model_pixels

IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)


class ModelInputs(dict[str, Tensor]):
    """Tensors by name, for ``model(**inputs)``."""

    def to(self, *args: Any, **kwargs: Any) -> ModelInputs:
        """Move every tensor, as ``Tensor.to``; a dtype is given to floating-point ones alone."""
        device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
        return ModelInputs({name: t.to(device, dtype if t.is_floating_point() else None) for name, t in self.items()})


class Sam2ImageProcessor:
    """Images to the network's input, and its logits back to masks.

    Args:
        size: Of the network's input: (height, width), or one side of a square; multiples of 32.
    """

    def __init__(self, size: int | SizeHW = 1024) -> None:
        sides = list(size) if isinstance(size, Sequence) else [size, size]
        fitting = [int(s) for s in sides if isinstance(s, int | np.integer) and s > 0 and s % SIDE_MULTIPLE == 0]
        if len(sides) != 2 or len(fitting) != 2:
            raise ConfigError(
                f"input size {size!r} does not fit the network: expected a multiple of {SIDE_MULTIPLE} for the height "
                "and for the width"
            )
        self.input_hw: SizeHW = (fitting[0], fitting[1])

    @classmethod
    def from_pretrained(
        cls, name_or_path: str | os.PathLike[str], *, revision: str | None = None, token: str | None = None
    ) -> Self:
        """Processor for a model: see ``Sam2Model.from_pretrained``."""
        return cls(checkpoints.read_input_hw(name_or_path, revision=revision, token=token))

    def __call__(self, images: Any, segmentation_maps: Any = None, *, return_tensors: str = "pt") -> ModelInputs:
        """Prepare images.

        Args:
            images: One image or a list of them: whatever ``read_image`` reads.
            segmentation_maps: One map (height, width) of whole numbers for each image.
            return_tensors: Only ``"pt"``.

        Returns:
            ``pixel_values`` (batch, 3, height, width), ``original_sizes`` and ``reshaped_input_sizes`` (batch, 2)
            as (height, width); with maps, ``labels`` (batch, height / 4, width / 4) int64.
        """
        if return_tensors != "pt":
            raise ValueError(f"return_tensors is {return_tensors!r}: expected 'pt', PyTorch tensors")
        images = [read_image(image) for image in (images if isinstance(images, list | tuple) else [images])]
        if not images:
            raise ImageError("an empty list of images: expected at least one image")
        inputs = ModelInputs(
            pixel_values=torch.cat([self.pixel_values(image) for image in images]),
            original_sizes=torch.tensor([image.shape[:2] for image in images]),
            reshaped_input_sizes=torch.tensor([self.input_hw] * len(images)),
        )
        if segmentation_maps is not None:
            inputs["labels"] = self.resize_maps(segmentation_maps, count=len(images))
        return inputs

    def pixel_values(self, image: np.ndarray) -> Tensor:
        """(height, width, 3) uint8 RGB to (1, 3, *input_hw), normalised.

        The image is stretched, bilinear with antialias, in float32 as Meta's image predictor does it; transformers
        rounds to 8 bits in between, which differs by half a step at most.
        """
        pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float()
        return self._normalise(F.interpolate(pixels, size=self.input_hw, mode="bilinear", antialias=True))

    def frame_values(self, image: np.ndarray) -> Tensor:
        """As ``pixel_values`` for a video's frame, which Meta's loader stretches by Pillow: bicubic, 8 bits."""
        height, width = self.input_hw
        resized = np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))
        return self._normalise(torch.from_numpy(resized).permute(2, 0, 1)[None].float())

    def _normalise(self, pixels: Tensor) -> Tensor:
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGE_MEAN, IMAGE_STD))
        return (pixels / 255 - mean) / std

    def resize_maps(self, maps: Any, *, count: int) -> Tensor:
        """Segmentation maps to (batch, height / 4, width / 4) int64, nearest, so that no new value arises."""
        arrays = [np.asarray(m) for m in (maps if isinstance(maps, list | tuple) else [maps])]
        if len(arrays) != count:
            raise ImageError(f"{len(arrays)} segmentation maps came with {count} images: expected one for each")
        if bad := [a for a in arrays if a.ndim != 2 or a.dtype.kind not in "iub" or 0 in a.shape]:
            raise ImageError(
                f"a segmentation map has shape {bad[0].shape} of {bad[0].dtype}: expected (height, width) whole numbers"
            )
        size = (self.input_hw[0] // STRIDES[0], self.input_hw[1] // STRIDES[0])
        return torch.stack([_nearest(torch.from_numpy(a.astype(np.int64)), size) for a in arrays])

    def post_process_masks(
        self,
        masks: Tensor | Sequence[Tensor],
        original_sizes: Tensor | Sequence[Sequence[int]],
        reshaped_input_sizes: Any = None,
        *,
        mask_threshold: float = 0.0,
        binarize: bool = True,
        max_hole_area: int = 0,
        max_sprinkle_area: int = 0,
    ) -> list[Tensor]:
        """Logits to masks of the original images' sizes.

        Args:
            masks: (batch, objects, masks, h, w) logits, or a list of (objects, masks, h, w).
            original_sizes: (batch, 2) heights and widths.
            reshaped_input_sizes: Accepted because SAM's processors take it; the image fills the input, so it says
                nothing here.
            mask_threshold: Logit above which a pixel is inside.
            binarize: False returns the upscaled logits.
            max_hole_area: Holes below this many pixels are filled.
            max_sprinkle_area: Islands below this many pixels are removed.

        Returns:
            For each image (objects, masks, height, width), bool.
        """
        sizes = [tuple(map(int, size)) for size in original_sizes]
        if len(masks) != len(sizes):
            raise PromptError(f"masks are of {len(masks)} images, original_sizes of {len(sizes)}")
        out = []
        for logits, (height, width) in zip(masks, sizes, strict=True):
            upscaled = upscale_logits(torch.as_tensor(logits), (height, width))
            if not binarize:
                out.append(upscaled)
                continue
            binary = upscaled > mask_threshold
            if max_hole_area or max_sprinkle_area:
                flat = binary.flatten(0, -3).cpu().numpy()
                cleaned = clean_masks(flat, fill_holes=max_hole_area, remove_islands=max_sprinkle_area)
                binary = torch.from_numpy(cleaned).view(binary.shape).to(binary.device)
            out.append(binary)
        return out


class Sam2Processor:
    """Images and prompts to the model's inputs."""

    def __init__(self, image_processor: Sam2ImageProcessor) -> None:
        self.image_processor = image_processor

    @classmethod
    def from_pretrained(
        cls, name_or_path: str | os.PathLike[str], *, revision: str | None = None, token: str | None = None
    ) -> Self:
        """Processor for a model: see ``Sam2Model.from_pretrained``."""
        return cls(Sam2ImageProcessor.from_pretrained(name_or_path, revision=revision, token=token))

    def __call__(
        self,
        images: Any = None,
        segmentation_maps: Any = None,
        input_points: Any = None,
        input_labels: Any = None,
        input_boxes: Any = None,
        original_sizes: Any = None,
        *,
        return_tensors: str = "pt",
    ) -> ModelInputs:
        """Prepare images and prompts; coordinates are pixels of the original images, x right and y down.

        Args:
            images: One image or a list; None if they are encoded already, then ``original_sizes`` is needed.
            segmentation_maps: One map (height, width) for each image, returned as ``labels``.
            input_points: [image][object][point] (x, y), or [image][point] (x, y) with one object an image.
            input_labels: Nested likewise: 1 foreground, 0 background. All foreground if None.
            input_boxes: [image][object] (x0, y0, x1, y1).
            original_sizes: (batch, 2) heights and widths, where no images are given.
            return_tensors: Only ``"pt"``.

        Returns:
            What ``Sam2ImageProcessor`` returns, and ``input_points`` (batch, objects, points, 2) float32,
            ``input_labels`` (batch, objects, points) int64, ``input_boxes`` (batch, objects, 4) float32 in pixels of
            the network's input; ragged ends hold -10, which the model ignores.

        Raises:
            PromptError: Prompts that make no sense, or for another number of images.
        """
        if images is not None:
            inputs = self.image_processor(images, segmentation_maps, return_tensors=return_tensors)
        elif original_sizes is not None:
            inputs = ModelInputs(original_sizes=torch.as_tensor(original_sizes))
        else:
            raise ImageError("expected images, or original_sizes for images that are encoded already")
        sizes_hw: list[SizeHW] = [(int(h), int(w)) for h, w in inputs["original_sizes"]]
        if input_labels is not None and input_points is None:
            raise PromptError("input_labels came without input_points: expected one label for each point")
        if input_points is not None:
            points, labels = pad_points(input_points, input_labels, sizes_hw)
            inputs["input_points"] = self._to_model_pixels(points, labels == PADDING, sizes_hw)
            inputs["input_labels"] = torch.from_numpy(labels)
        if input_boxes is not None:
            boxes = pad_boxes(input_boxes, sizes_hw)
            corners = boxes.reshape(*boxes.shape[:2], 2, 2)
            is_padding = (boxes == PADDING).all(-1, keepdims=True)  # a single -10 may be a place
            inputs["input_boxes"] = self._to_model_pixels(corners, is_padding, sizes_hw).flatten(2)
        return inputs

    def _to_model_pixels(self, points: np.ndarray, is_padding: np.ndarray, sizes_hw: list[SizeHW]) -> Tensor:
        """(batch, objects, points, 2), each image by its own scale; padding stays padding."""
        original = torch.from_numpy(points)
        moved = torch.stack(
            [
                to_model_pixels(p, size_hw=size_hw, input_hw=self.image_processor.input_hw)
                for p, size_hw in zip(original, sizes_hw, strict=True)
            ]
        )
        return torch.where(torch.from_numpy(is_padding)[..., None], original, moved)

    def post_process_masks(self, *args: Any, **kwargs: Any) -> list[Tensor]:
        """As ``Sam2ImageProcessor.post_process_masks``."""
        return self.image_processor.post_process_masks(*args, **kwargs)


def _nearest(values: Tensor, size_hw: SizeHW) -> Tensor:
    """The value under the centre of each new cell; in whole numbers, so that large ones survive."""
    rows, columns = (
        (2 * torch.arange(new) + 1) * old // (2 * new) for new, old in zip(size_hw, values.shape, strict=True)
    )
    return values[rows][:, columns]
