"""The processor: an image processor, and prompts in pixels of the original images."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from masklet import checkpoints
from masklet.compat.transformers.feature import BatchFeature
from masklet.compat.transformers.image_processing import Sam2ImageProcessor
from masklet.compat.transformers.nesting import counts_of, pad, pad_labels, read_nested, scale
from masklet.compat.transformers.settings import json_text, take_hub_options
from masklet.config import SizeHW
from masklet.errors import ImageError, PromptError
from masklet.numbers import size_of

Processor = TypeVar("Processor", bound="Sam2Processor")

POINT_LEVELS = ("image", "object", "point", "xy")
LABEL_LEVELS = ("image", "object", "point")
BOX_LEVELS = ("image", "object", "x0 y0 x1 y1")


class Sam2Processor:
    """Prepares images and prompts for the model.

    Args:
        image_processor: Prepares the images.
        target_size: Side of the network's input, which prompts are scaled to; that of the image processor if None.
        point_pad_value: What fills the ends of lists of different lengths.
        kwargs: ``chat_template``, which is for models of text and ignored.
    """

    image_processor_class = Sam2ImageProcessor
    attributes: tuple[str, ...] = ("image_processor",)
    files: tuple[str, ...] = (checkpoints.PROCESSOR, checkpoints.PREPROCESSOR)
    """What ``save_pretrained`` writes."""

    def __init__(
        self, image_processor: Any, target_size: int | None = None, point_pad_value: int = -10, **kwargs: Any
    ) -> None:
        if unknown := kwargs.keys() - {"chat_template"}:
            raise TypeError(f"{type(self).__name__} takes no argument {', '.join(sorted(unknown))}")
        self.image_processor = image_processor
        self.target_size = image_processor.size["height"] if target_size is None else target_size
        self.point_pad_value = point_pad_value

    @property
    def target_hw(self) -> SizeHW:
        """(height, width) that prompts are scaled to."""
        own = self.image_processor.size
        return (own["height"], own["width"]) if self.target_size == own["height"] else (self.target_size,) * 2

    @property
    def model_input_names(self) -> list[str]:
        """Names of the inputs that an image gives."""
        return [*self.image_processor.model_input_names, "original_sizes"]

    def __repr__(self) -> str:
        return f"{type(self).__name__} {self.to_json_string()}"

    # Saving and loading

    def to_dict(self) -> dict[str, Any]:
        """The content of ``processor_config.json``."""
        return {
            "image_processor": self.image_processor.to_dict(),
            "point_pad_value": self.point_pad_value,
            "processor_class": type(self).__name__,
            "target_size": self.target_size,
        }

    def to_json_string(self) -> str:
        """The text of ``processor_config.json``."""
        return json_text(self.to_dict())

    @classmethod
    def from_pretrained(cls: type[Processor], pretrained_model_name_or_path: Any, **kwargs: Any) -> Processor:
        """The processor of a model; arguments as in ``Sam2ImageProcessor.from_pretrained``, and the constructor's."""
        hub = take_hub_options(kwargs)
        images, own = checkpoints.read_processor(pretrained_model_name_or_path, hub)
        arguments = {n: kwargs.pop(n, own.get(n)) for n in ("target_size", "point_pad_value")}
        image_processor = cls.image_processor_class.from_dict(images, **kwargs)
        return cls(image_processor, **{n: v for n, v in arguments.items() if v is not None})

    def save_pretrained(self, save_directory: str | os.PathLike[str], push_to_hub: bool = False, **kwargs: Any) -> None:
        """Writes ``processor_config.json`` and ``preprocessor_config.json``, which masklet and transformers load.

        Args:
            save_directory: Folder of the model; created if missing.
            push_to_hub: Whether to upload them, with ``repo_id`` and others among ``kwargs``: see
                ``Sam2Model.save_pretrained``.
            kwargs: Arguments for ``push_to_hub``.

        Raises:
            CheckpointError: They cannot be written.
        """
        folder = Path(save_directory)
        checkpoints.write_text(folder / checkpoints.PROCESSOR, self.to_json_string())
        self.image_processor.save_pretrained(folder)
        if push_to_hub:
            checkpoints.push_folder(folder, self.files, **kwargs)

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> str:
        """Uploads its settings. Arguments as in ``Sam2Model.push_to_hub``."""
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return checkpoints.push_folder(folder, self.files, repo_id=repo_id, **kwargs)

    # Images and prompts

    def __call__(
        self,
        images: Any = None,
        segmentation_maps: Any = None,
        input_points: Any = None,
        input_labels: Any = None,
        input_boxes: Any = None,
        original_sizes: Any = None,
        return_tensors: Any = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Prepares images and prompts. Coordinates are pixels of the original images, x right and y down.

        Points and boxes may lie outside the image and boxes may be reversed, as in transformers.

        Args:
            images: One image or a list; None for images that are already encoded, which need ``original_sizes``.
            segmentation_maps: One map (height, width) for each image, returned as ``labels``.
            input_points: [image][object][point] (x, y), or [image][point] (x, y) for one object per image.
            input_labels: Nested as the points: 1 foreground, 0 background, 2 and 3 corners of a box.
            input_boxes: [image][object] (x0, y0, x1, y1).
            original_sizes: (batch, 2) heights and widths, if there are no images.
            return_tensors: ``"pt"`` or ``"np"``; None returns images in lists, and prompts as tensors.
            kwargs: Settings of the image processor, for this call.

        Returns:
            What ``Sam2ImageProcessor`` returns; and in pixels of the network's input ``input_points`` (batch, objects,
            points, 2) float32, ``input_labels`` (batch, objects, points) int64, all foreground if there are only
            points, and ``input_boxes`` (batch, objects, 4) float32. Where lists differ in length, ``point_pad_value``
            fills the end, which the model ignores.

        Raises:
            ImageError: There are no images and no ``original_sizes``, or an image cannot be read.
            PromptError: Prompts are malformed, or for another number of images.
        """
        if images is not None:
            inputs = self.image_processor(images, segmentation_maps, **kwargs)
            return_tensors = return_tensors or self.image_processor.return_tensors
        elif original_sizes is None:
            raise ImageError("expected images, or original_sizes for images that are already encoded")
        elif segmentation_maps is not None:
            raise ImageError("segmentation_maps came without images: expected both, or none of them")
        else:
            inputs = BatchFeature({"original_sizes": original_sizes})
        sizes = [size_of("an original size", size, ImageError) for size in inputs["original_sizes"]]
        inputs.update(self._prompts(input_points, input_labels, input_boxes, sizes))
        return inputs.convert_to_tensors(return_tensors)

    def _prompts(self, points: Any, labels: Any, boxes: Any, sizes: list[SizeHW]) -> dict[str, Tensor]:
        prompts: dict[str, Tensor] = {}
        if labels is not None:
            labels = read_nested(labels, "input_labels", levels=LABEL_LEVELS, without_objects=True)
        if points is not None:
            points = read_nested(points, "input_points", levels=POINT_LEVELS, without_objects=True)
            labels = _labels_for(points, labels)
        if labels is not None:
            _check_images("input_points" if points is not None else "input_labels", labels, sizes)
            prompts["input_labels"] = padded_labels = pad_labels(labels, self.point_pad_value)
        if points is not None:
            padded = pad(points, self.point_pad_value, last=2)
            prompts["input_points"] = self._scaled(padded, padded_labels == self.point_pad_value, sizes)
        if boxes is not None:
            boxes = read_nested(boxes, "input_boxes", levels=BOX_LEVELS)
            _check_images("input_boxes", boxes, sizes)
            corners = pad(boxes, self.point_pad_value, last=4)
            # A single -10 may be a coordinate.
            is_padding = torch.from_numpy((corners == self.point_pad_value).all(-1, keepdims=True))
            corners = corners.reshape(*corners.shape[:2], 2, 2)
            prompts["input_boxes"] = self._scaled(corners, is_padding, sizes).flatten(2)
        return prompts

    def _scaled(self, values: np.ndarray, is_padding: Tensor, sizes: list[SizeHW]) -> Tensor:
        """(images, objects, points, 2), with the scale of each image; padding is kept."""
        scaled = scale(values, sizes, self.target_hw)
        return torch.where(is_padding[..., None], float(self.point_pad_value), scaled)

    def post_process_masks(self, *args: Any, **kwargs: Any) -> list[Tensor]:
        """As ``Sam2ImageProcessor.post_process_masks``."""
        found: list[Tensor] = self.image_processor.post_process_masks(*args, **kwargs)
        return found


def _labels_for(points: list[Any], labels: list[Any] | None) -> list[Any]:
    """A label for each point: those that came, or all foreground.

    Without labels, the model would take padding for points.
    """
    wanted = [[len(row) for row in image] for image in points]
    if labels is None:
        return [[[1] * count for count in image] for image in wanted]
    if (came := counts_of(labels)) != wanted:
        raise PromptError(
            f"input_labels hold {came} labels for each image and object, input_points {wanted} points: expected one "
            "label for each point"
        )
    return labels


def _check_images(name: str, nested: list[Any], sizes: list[SizeHW]) -> None:
    if len(sizes) not in (1, len(nested)):
        raise PromptError(f"{name} are for {len(nested)} images, but {len(sizes)} came")
