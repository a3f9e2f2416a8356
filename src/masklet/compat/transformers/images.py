"""Whatever transformers calls an image -> tensors, without EXIF rotation and with its resizing in 8 bits."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from masklet.config import SizeHW
from masklet.errors import ConfigError, ImageError
from masklet.images.reading import explained, open_limited

CHANNELS = (1, 3, 4)
RESAMPLING = {0: "nearest-exact", 2: "bilinear", 3: "bicubic"}
"""Pillow's numbers, in PyTorch's names."""


def flat_list(images: Any) -> list[Any]:
    """One image, a batch as an array of four axes, or nested lists of images, as a flat list.

    Raises:
        ImageError: There is no image.
    """
    if isinstance(images, np.ndarray | Tensor) and images.ndim == 4:
        return list(images)
    if isinstance(images, list | tuple) and not is_numbers(images):
        found = [one for image in images for one in flat_list(image)]
        if not found:
            raise ImageError("an empty list of images: expected at least one image")
        return found
    return [images]


def is_numbers(values: Any) -> bool:
    """Whether nested lists hold numbers, and so are one image."""
    while isinstance(values, list | tuple) and values:
        values = values[0]
    return isinstance(values, int | float)


def to_channels_first(image: Any, input_data_format: str | None = None, *, to_rgb: bool = True) -> Tensor:
    """One image to (channels, height, width), of the type of its numbers.

    Args:
        image: A path, a binary file, a PIL image, or an array, tensor or nested lists of (height, width),
            (height, width, channels) or (channels, height, width). The rotation that EXIF asks for is not applied, so
            that masks fit ``np.array(image)``.
        input_data_format: ``"channels_first"`` or ``"channels_last"``; None decides by the shape.
        to_rgb: Whether images of other than three channels become RGB.

    Raises:
        ImageError: It is not an image, is damaged, or a file has more pixels than Pillow's limit.
    """
    if isinstance(image, str | os.PathLike) or hasattr(image, "read"):
        image = _open(image)
    if isinstance(image, Image.Image):
        with explained(f"the PIL image of {image.width}×{image.height}"):
            keeps_mode = image.mode in ("RGB", "RGBA") or not to_rgb
            image = np.array(image if keeps_mode else image.convert("RGB"))
        input_data_format = "channels_last"
    pixels = image if isinstance(image, Tensor) else _array_of(image)
    if pixels.ndim == 2:
        return pixels.expand(3 if to_rgb else 1, -1, -1)
    if pixels.ndim != 3 or 0 in pixels.shape:
        raise ImageError(f"an image has shape {tuple(pixels.shape)}: expected (height, width, 3) or (3, height, width)")
    if _is_channels_last(tuple(pixels.shape), input_data_format):
        pixels = pixels.permute(2, 0, 1)
    return _to_rgb(pixels) if to_rgb else pixels


def _open(source: Any) -> Image.Image:
    name = str(source if isinstance(source, str | os.PathLike) else getattr(source, "name", None) or "the file object")
    with explained(name), open_limited(source) as image:
        image.load()
        return image


def _array_of(image: Any) -> Tensor:
    try:
        array = np.asarray(image)
        return torch.from_numpy(np.ascontiguousarray(array))
    except (TypeError, ValueError) as error:
        raise ImageError(
            f"expected an image: a path, a binary file, a PIL image, a numpy array or a torch tensor, not "
            f"{type(image).__name__}"
        ) from error


def _is_channels_last(shape: tuple[int, ...], input_data_format: Any) -> bool:
    if input_data_format is not None:
        name = getattr(input_data_format, "value", input_data_format)
        if name not in ("channels_first", "channels_last"):
            raise ConfigError(f"input_data_format is {name!r}: expected channels_first or channels_last")
        return bool(name == "channels_last")
    if shape[0] not in CHANNELS and shape[-1] not in CHANNELS:
        raise ImageError(f"an image has shape {shape}: expected 1, 3 or 4 channels, first or last")
    return shape[0] not in CHANNELS


def _to_rgb(pixels: Tensor) -> Tensor:
    """(1, 3 or 4, height, width) to three channels. Transparency shows white, within a step of transformers."""
    if pixels.shape[0] == 1:
        return pixels.expand(3, -1, -1)
    if pixels.shape[0] == 4 and pixels.dtype == torch.uint8:
        rgb, alpha = pixels[:3], pixels[3:] / 255
        return 255 - (alpha * (255 - rgb)).to(torch.uint8)
    return pixels[:3]


def resize(pixels: Tensor, size_hw: SizeHW, resample: int) -> Tensor:
    """(channels, height, width) to another size, stretched.

    Unsigned bytes are resized as bytes, which gives transformers' pixels to the bit; other types in float32.
    """
    mode = RESAMPLING.get(int(resample))
    if mode is None:
        raise ConfigError(f"resample is {resample!r}: expected one of {', '.join(map(str, RESAMPLING))}")
    batch = pixels[None].contiguous()
    if batch.dtype != torch.uint8 and not batch.is_floating_point():
        batch = batch.float()
    if mode == "nearest-exact":
        return F.interpolate(batch, size=size_hw, mode=mode)[0]
    return F.interpolate(batch, size=size_hw, mode=mode, antialias=True)[0]


def normalise(
    pixels: Tensor, *, factor: float | None, mean: Sequence[float] | None, std: Sequence[float] | None
) -> Tensor:
    """(channels, height, width) to float32: ``(pixels * factor - mean) / std``, where None leaves a step out."""
    pixels = pixels.float()
    if mean is None or std is None:
        return pixels if factor is None else pixels * factor
    # In this order of operations, transformers' numbers are met to the bit.
    scale = 1.0 if factor is None else 1.0 / factor
    centre, spread = (
        (torch.tensor(v, dtype=torch.float32, device=pixels.device) * scale).view(-1, 1, 1) for v in (mean, std)
    )
    return (pixels - centre) / spread


def resize_map(values: Any, size_hw: SizeHW | None) -> Tensor:
    """A segmentation map (height, width), or with an axis of 1, to int64, by the nearest pixel: no new value appears.

    Args:
        values: Integers, as an array, a tensor, nested lists or a PIL image.
        size_hw: None keeps the size.

    Raises:
        ImageError: It is not a map.
    """
    grid = values if isinstance(values, Tensor) else torch.from_numpy(np.array(values))
    if grid.ndim == 3 and 1 in (grid.shape[0], grid.shape[-1]):
        grid = grid[0] if grid.shape[0] == 1 else grid[..., 0]
    if grid.ndim != 2 or 0 in grid.shape:
        raise ImageError(f"a segmentation map has shape {tuple(grid.shape)}: expected (height, width) integers")
    if size_hw is None:
        return grid.long()
    # The value at the centre of each new cell, in integers, so that large values are exact.
    rows, columns = (
        (2 * torch.arange(new, device=grid.device) + 1) * old // (2 * new)
        for new, old in zip(size_hw, grid.shape, strict=True)
    )
    return grid[rows][:, columns].long()
