"""Converts images to the network's input."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from masklet import checkpoints
from masklet.checkpoints import HubOptions
from masklet.checkpoints.preprocessor import GREATEST, SMALLEST, PreprocessorConfig
from masklet.config import SIDE_MULTIPLE, SizeHW
from masklet.engine.base import normalised
from masklet.errors import ConfigError
from masklet.numbers import real_number, shown, whole_number

MAX_INPUT_PIXELS = 2**28
"""Limit of the network's input: 16,384 by 16,384, whose first feature map takes 6 GB."""
IMAGE_MEAN, IMAGE_STD = PreprocessorConfig.image_mean, PreprocessorConfig.image_std
"""Values of the published models."""

Processor = TypeVar("Processor", bound="ImageProcessor")


class ImageProcessor:
    """Prepares images for the network.

    Args:
        size: Size of the network's input: (height, width), or one side of a square; multiples of 32.
        image_mean: Means of red, green and blue, subtracted after rescaling.
        image_std: Standard deviations of red, green and blue, divided by at the end.
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
        mean, std = (
            [real_number(name, value, ConfigError, least=least, most=GREATEST) for value in check_channels(values)]
            for name, values, least in (("image_mean", image_mean, -GREATEST), ("image_std", image_std, SMALLEST))
        )
        factor = real_number("rescale_factor", rescale_factor, ConfigError, least=SMALLEST, most=GREATEST)
        self.config = PreprocessorConfig(
            check_input_size(size), (mean[0], mean[1], mean[2]), (std[0], std[1], std[2]), factor
        )

    @property
    def input_hw(self) -> SizeHW:
        """(height, width) of the network's input."""
        return self.config.input_hw

    @classmethod
    def from_pretrained(
        cls: type[Processor],
        name_or_path: str | os.PathLike[str],
        *,
        revision: str | None = None,
        token: str | None = None,
    ) -> Processor:
        """The processor of a model: see ``Sam2Model.from_pretrained``.

        Raises:
            CheckpointError: Its settings are missing, malformed, or not supported.
        """
        config = checkpoints.read_preprocessor(name_or_path, HubOptions(revision=revision, token=token))
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
            folder: Folder of the model; created if missing.

        Raises:
            CheckpointError: It cannot be written, or a ``processor_config.json`` in the folder would override it.
        """
        checkpoints.write_preprocessor(folder, self.config)

    def with_size(self, size: int | SizeHW) -> ImageProcessor:
        """The same processor for another input size.

        Raises:
            ConfigError: The size does not fit the network.
        """
        return ImageProcessor(
            size,
            image_mean=self.config.image_mean,
            image_std=self.config.image_std,
            rescale_factor=self.config.rescale_factor,
        )

    def pixel_values(self, image: np.ndarray) -> Tensor:
        """(height, width, 3) uint8 RGB to (1, 3, *input_hw), normalised.

        The image is stretched in float32, bilinear with antialias, as in Meta's image predictor. transformers rounds
        the result to 8 bits, which differs by half a step at most. All of it runs on the CPU: MPS has no antialias.
        """
        pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float()  # a CPU tensor, whatever the default device
        return normalised(F.interpolate(pixels, size=self.input_hw, mode="bilinear", antialias=True), self.config)

    def frame_values(self, image: np.ndarray) -> Tensor:
        """As ``pixel_values`` for a frame of a video, which Meta's loader resizes with Pillow: bicubic, in 8 bits."""
        return normalised(self.resized_frame(image).permute(2, 0, 1)[None].float(), self.config)

    def resized_frame(self, image: np.ndarray) -> Tensor:
        """A frame at the size of the network's input, (height, width, 3) uint8: see ``frame_values``."""
        height, width = self.input_hw
        return torch.from_numpy(np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)))


def check_input_size(size: Any) -> SizeHW:
    """(height, width) of the network's input, from a pair or one side of a square.

    Raises:
        ConfigError: A side is not a multiple of 32, or there are too many pixels.
    """
    sides = [size, size] if isinstance(size, str) or not isinstance(size, Sequence | np.ndarray) else list(size)
    try:
        height, width = (whole_number("a side", side, ConfigError, least=1) for side in sides)
    except ValueError:  # also for another number of sides
        height, width = 1, 1
    if height % SIDE_MULTIPLE or width % SIDE_MULTIPLE:
        raise ConfigError(
            f"input size {shown(size)} does not fit the network: expected a multiple of {SIDE_MULTIPLE} for the height "
            "and for the width"
        )
    if height * width > MAX_INPUT_PIXELS:
        raise ConfigError(f"input size {shown(size)} is too large: expected at most {MAX_INPUT_PIXELS} pixels")
    return height, width


def check_channels(values: Any) -> list[Any]:
    """Three values as a list; anything else raises a ConfigError."""
    if not isinstance(values, Sequence | np.ndarray) or len(values) != 3:
        raise ConfigError(f"{shown(values)} is not a value for each of red, green and blue: expected three numbers")
    return list(values)
