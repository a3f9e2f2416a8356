"""Converts images and prompts to tensors, and logits to masks of the original size.

The two classes have the interface of transformers' classes of the same names.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from masklet import checkpoints
from masklet.checkpoints.preprocessor import PreprocessorConfig
from masklet.config import SIDE_MULTIPLE, STRIDES, SizeHW
from masklet.errors import ConfigError, ImageError, PromptError
from masklet.images.reading import read_image
from masklet.masks import clean_masks, upscale_logits
from masklet.model.prompt_encoder import PADDING
from masklet.prompts import pad_boxes, pad_points, to_model_pixels

IMAGE_MEAN, IMAGE_STD = PreprocessorConfig.image_mean, PreprocessorConfig.image_std
"""Of the published models."""

ImageProcessor = TypeVar("ImageProcessor", bound="Sam2ImageProcessor")
Processor = TypeVar("Processor", bound="Sam2Processor")


class ModelInputs(dict[str, Tensor]):
    """Tensors by name, for ``model(**inputs)``."""

    def to(self, *args: Any, **kwargs: Any) -> ModelInputs:
        """Moves every tensor, as ``Tensor.to``; a dtype applies to floating-point tensors only."""
        device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
        return ModelInputs({name: t.to(device, dtype if t.is_floating_point() else None) for name, t in self.items()})


class Sam2ImageProcessor:
    """Prepares images for the network, and converts its logits to masks.

    Args:
        size: Of the network's input: (height, width), or one side of a square; multiples of 32.
        image_mean: Of red, green and blue, subtracted after rescaling.
        image_std: Of red, green and blue, divided by at the end.
        rescale_factor: Pixels of 0 to 255 are multiplied by this first.
    """

    def __init__(
        self,
        size: int | SizeHW = 1024,
        *,
        image_mean: tuple[float, float, float] = IMAGE_MEAN,
        image_std: tuple[float, float, float] = IMAGE_STD,
        rescale_factor: float = PreprocessorConfig.rescale_factor,
    ) -> None:
        sides = list(size) if isinstance(size, Sequence) else [size, size]
        fitting = [int(s) for s in sides if isinstance(s, int | np.integer) and s > 0 and s % SIDE_MULTIPLE == 0]
        if len(sides) != 2 or len(fitting) != 2:
            raise ConfigError(
                f"input size {size!r} does not fit the network: expected a multiple of {SIDE_MULTIPLE} for the height "
                "and for the width"
            )
        self.config = PreprocessorConfig((fitting[0], fitting[1]), image_mean, image_std, rescale_factor)

    @property
    def input_hw(self) -> SizeHW:
        """(height, width) of the network's input."""
        return self.config.input_hw

    @classmethod
    def from_pretrained(
        cls: type[ImageProcessor],
        name_or_path: str | os.PathLike[str],
        *,
        revision: str | None = None,
        token: str | None = None,
    ) -> ImageProcessor:
        """The processor of a model: see ``Sam2Model.from_pretrained``.

        Raises:
            CheckpointError: Its settings are missing, malformed, or not supported.
        """
        config = checkpoints.read_preprocessor(name_or_path, revision=revision, token=token)
        return cls(
            config.input_hw,
            image_mean=config.image_mean,
            image_std=config.image_std,
            rescale_factor=config.rescale_factor,
        )

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Writes ``preprocessor_config.json``, which masklet and transformers load.

        ``Sam2Model.save_pretrained`` writes the one of the published models, so save a processor with other settings
        after the model.

        Args:
            folder: Of the model; created if missing.

        Raises:
            CheckpointError: It cannot be written, or a ``processor_config.json`` in the folder would override it.
        """
        checkpoints.write_preprocessor(folder, self.config)

    def with_size(self, size: int | SizeHW) -> Sam2ImageProcessor:
        """The same processor for another input size.

        Raises:
            ConfigError: The size does not fit the network.
        """
        return Sam2ImageProcessor(
            size,
            image_mean=self.config.image_mean,
            image_std=self.config.image_std,
            rescale_factor=self.config.rescale_factor,
        )

    def __call__(self, images: Any, segmentation_maps: Any = None, *, return_tensors: str = "pt") -> ModelInputs:
        """Prepares images.

        Args:
            images: One image or a list of images, as ``read_image`` accepts them.
            segmentation_maps: One map (height, width) of integers for each image.
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

        The image is stretched in float32, bilinear with antialias, as in Meta's image predictor. transformers rounds
        the result to 8 bits, which differs by half a step at most. All of it runs on the CPU: MPS has no antialias.
        """
        pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float()  # a CPU tensor, whatever the default device
        return self._normalise(F.interpolate(pixels, size=self.input_hw, mode="bilinear", antialias=True))

    def frame_values(self, image: np.ndarray) -> Tensor:
        """As ``pixel_values`` for a frame of a video, which Meta's loader resizes with Pillow: bicubic, in 8 bits."""
        height, width = self.input_hw
        resized = np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))
        return self._normalise(torch.from_numpy(resized).permute(2, 0, 1)[None].float())

    def _normalise(self, pixels: Tensor) -> Tensor:
        mean, std = (
            torch.tensor(values, device=pixels.device).view(3, 1, 1)
            for values in (self.config.image_mean, self.config.image_std)
        )
        return (pixels / (1 / self.config.rescale_factor) - mean) / std  # 1 / (1 / 255) is exactly 255

    def resize_maps(self, maps: Any, *, count: int) -> Tensor:
        """Segmentation maps to (batch, height / 4, width / 4) int64, by the nearest pixel: no new value appears."""
        arrays = [np.asarray(m) for m in (maps if isinstance(maps, list | tuple) else [maps])]
        if len(arrays) != count:
            raise ImageError(f"{len(arrays)} segmentation maps came with {count} images: expected one for each")
        if bad := [a for a in arrays if a.ndim != 2 or a.dtype.kind not in "iub" or 0 in a.shape]:
            raise ImageError(
                f"a segmentation map has shape {bad[0].shape} of {bad[0].dtype}: expected (height, width) integers"
            )
        size = (self.input_hw[0] // STRIDES[0], self.input_hw[1] // STRIDES[0])
        return torch.stack([_nearest(torch.from_numpy(a.astype(np.int64)), size) for a in arrays])

    def post_process_masks(
        self,
        masks: Tensor | Sequence[Tensor],
        original_sizes: Tensor | Sequence[Sequence[int]],
        mask_threshold: float = 0.0,
        binarize: bool = True,
        max_hole_area: float = 0,
        max_sprinkle_area: float = 0,
        apply_non_overlapping_constraints: bool = False,
        *,
        reshaped_input_sizes: Any = None,
    ) -> list[Tensor]:
        """Converts logits to masks of the original images' sizes.

        Args:
            masks: (batch, objects, masks, h, w) logits, or a list of (objects, masks, h, w).
            original_sizes: (batch, 2) heights and widths.
            mask_threshold: Logit above which a pixel is inside. Sizes in its place are SAM's ``reshaped_input_sizes``:
                they are ignored, since the image fills the whole input here, and the threshold is 0.
            binarize: False returns the upscaled logits.
            max_hole_area: Holes of fewer pixels are filled.
            max_sprinkle_area: Islands of fewer pixels are removed.
            apply_non_overlapping_constraints: Each pixel belongs to the object with the highest logit at most; the
                logits of others become -10 or less.
            reshaped_input_sizes: Ignored, too.

        Returns:
            For each image (objects, masks, height, width), bool.

        Raises:
            PromptError: Masks and sizes are of different numbers of images, or the order of arguments is SAM's.
        """
        if not isinstance(mask_threshold, int | float | np.number):
            if not isinstance(binarize, bool):  # SAM has its threshold there, which must not be ignored
                raise PromptError(
                    f"binarize is {binarize!r}: expected True or False. The arguments after original_sizes are "
                    "mask_threshold and binarize; leave SAM's reshaped_input_sizes out"
                )
            mask_threshold = 0.0
        sizes = [tuple(map(int, size)) for size in original_sizes]
        if len(masks) != len(sizes):
            raise PromptError(f"masks are of {len(masks)} images, original_sizes of {len(sizes)}")
        out = []
        for logits, (height, width) in zip(masks, sizes, strict=True):
            upscaled = upscale_logits(torch.as_tensor(logits), (height, width))
            if apply_non_overlapping_constraints:
                upscaled = _without_overlap(upscaled)
            if binarize:
                out.append(_cleaned(upscaled > mask_threshold, max_hole_area, max_sprinkle_area))
            else:
                out.append(upscaled)
        return out


class Sam2Processor:
    """Prepares images and prompts for the model."""

    def __init__(self, image_processor: Sam2ImageProcessor) -> None:
        self.image_processor = image_processor

    @classmethod
    def from_pretrained(
        cls: type[Processor],
        name_or_path: str | os.PathLike[str],
        *,
        revision: str | None = None,
        token: str | None = None,
    ) -> Processor:
        """The processor of a model: see ``Sam2ImageProcessor.from_pretrained``."""
        return cls(Sam2ImageProcessor.from_pretrained(name_or_path, revision=revision, token=token))

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Writes its settings into a model folder: see ``Sam2ImageProcessor.save_pretrained``."""
        self.image_processor.save_pretrained(folder)

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
        """Prepares images and prompts. Coordinates are pixels of the original images, x right and y down.

        Args:
            images: One image or a list; None for images that are already encoded, which need ``original_sizes``.
            segmentation_maps: One map (height, width) for each image, returned as ``labels``.
            input_points: [image][object][point] (x, y), or [image][point] (x, y) for one object per image.
            input_labels: Nested as the points: 1 foreground, 0 background. All foreground if None.
            input_boxes: [image][object] (x0, y0, x1, y1).
            original_sizes: (batch, 2) heights and widths, if there are no images.
            return_tensors: Only ``"pt"``.

        Returns:
            The tensors of ``Sam2ImageProcessor``; and in pixels of the network's input ``input_points`` (batch,
            objects, points, 2) float32, ``input_labels`` (batch, objects, points) int64, and ``input_boxes`` (batch,
            objects, 4) float32. Where lists differ in length, -10 fills the end, which the model ignores.

        Raises:
            ImageError: There are no images and no ``original_sizes``, or an image cannot be read.
            PromptError: Prompts are invalid, or for another number of images.
        """
        if images is not None:
            inputs = self.image_processor(images, segmentation_maps, return_tensors=return_tensors)
        elif original_sizes is not None:
            inputs = ModelInputs(original_sizes=torch.as_tensor(original_sizes))
        else:
            raise ImageError("expected images, or original_sizes for images that are already encoded")
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
            is_padding = (boxes == PADDING).all(-1, keepdims=True)  # a single -10 may be a coordinate
            inputs["input_boxes"] = self._to_model_pixels(corners, is_padding, sizes_hw).flatten(2)
        return inputs

    def _to_model_pixels(self, points: np.ndarray, is_padding: np.ndarray, sizes_hw: list[SizeHW]) -> Tensor:
        """(batch, objects, points, 2), with the scale of each image; padding is kept."""
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


def _without_overlap(logits: Tensor) -> Tensor:
    """(objects, masks, height, width): lowers the logits of all but the highest object of each pixel to -10 or less."""
    is_highest = logits.argmax(0, keepdim=True) == torch.arange(len(logits), device=logits.device).view(-1, 1, 1, 1)
    return torch.where(is_highest, logits, logits.clamp(max=-10.0))


def _cleaned(masks: Tensor, max_hole_area: float, max_sprinkle_area: float) -> Tensor:
    """(objects, masks, height, width) bool, without small holes and islands."""
    if not max_hole_area and not max_sprinkle_area:
        return masks
    flat = masks.flatten(0, -3).cpu().numpy()
    cleaned = clean_masks(flat, fill_holes=math.ceil(max_hole_area), remove_islands=math.ceil(max_sprinkle_area))
    return torch.from_numpy(cleaned).view(masks.shape).to(masks.device)


def _nearest(values: Tensor, size_hw: SizeHW) -> Tensor:
    """The value at the centre of each new cell, in integers, so that large values are exact."""
    rows, columns = (
        (2 * torch.arange(new) + 1) * old // (2 * new) for new, old in zip(size_hw, values.shape, strict=True)
    )
    return values[rows][:, columns]
