"""transformers' settings of an image processor, and which of them this package can follow."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from masklet.config import STRIDES
from masklet.errors import CheckpointError
from masklet.numbers import real_number, shown

SMALLEST, GREATEST = 1e-6, 1e6
"""Limits of factors and divisors of pixels; beyond them, float32 overflows in the network."""

FIXED: dict[str, Any] = {
    "do_resize": True,
    "do_convert_rgb": True,
    "do_center_crop": False,
    "do_pad": False,
    "resample": 2,  # bilinear
    "point_pad_value": -10,
}
"""Settings that have one possible value here."""


@dataclass(frozen=True)
class PreprocessorConfig:
    """How images become the network's input: resized to ``input_hw``, then (pixels * rescale_factor - mean) / std."""

    input_hw: tuple[int, int] = (1024, 1024)
    """(height, width) of the network's input."""
    image_mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Means of red, green and blue, after rescaling."""
    image_std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    rescale_factor: float = 1 / 255


def preprocessor_to_json(config: PreprocessorConfig, *, processor_class: str) -> dict[str, Any]:
    """Content of ``preprocessor_config.json``."""
    height, width = config.input_hw
    return {
        "image_processor_type": "Sam2ImageProcessor",
        "processor_class": processor_class,
        "do_convert_rgb": True,
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "size": {"height": height, "width": width},
        "mask_size": {"height": height // STRIDES[0], "width": width // STRIDES[0]},
        "resample": FIXED["resample"],
        "rescale_factor": config.rescale_factor,
        "image_mean": list(config.image_mean),
        "image_std": list(config.image_std),
    }


def video_preprocessor_to_json(config: PreprocessorConfig) -> dict[str, Any]:
    """Content of ``video_preprocessor_config.json``: frames are prepared as images are."""
    images = preprocessor_to_json(config, processor_class="Sam2VideoProcessor")
    unused = ("image_processor_type", "mask_size")
    kept = {name: value for name, value in images.items() if name not in unused}
    return {"video_processor_type": "Sam2VideoVideoProcessor", **kept}


def preprocessor_from_json(content: Mapping[str, Any], where: str | Path) -> PreprocessorConfig:
    """Reads the settings of an image processor. Absent settings and null have transformers' defaults.

    Raises:
        CheckpointError: A setting is malformed, or has a value that this package does not support.
    """
    values = {name: value for name, value in content.items() if value is not None}
    for name, expected in FIXED.items():
        check_value(name, values.get(name, expected), expected, where)
    height, width = read_size("size", values.get("size"), where)
    if "mask_size" in values:
        mask_hw = (height // STRIDES[0], width // STRIDES[0])
        check_value("mask_size", read_size("mask_size", values["mask_size"], where), mask_hw, where)
    check_value("target_size", values.get("target_size", height), height, where)

    rescales, normalises = (read_switch(name, values, where) for name in ("do_rescale", "do_normalize"))
    defaults = PreprocessorConfig()
    factor = values.get("rescale_factor", defaults.rescale_factor)
    mean, std = values.get("image_mean", defaults.image_mean), values.get("image_std", defaults.image_std)
    return PreprocessorConfig(
        (height, width),
        read_channels("image_mean", mean, where) if normalises else (0.0, 0.0, 0.0),
        read_channels("image_std", std, where, positive=True) if normalises else (1.0, 1.0, 1.0),
        read_number("rescale_factor", factor, where, positive=True) if rescales else 1.0,
    )


def check_same(frames: PreprocessorConfig, images: PreprocessorConfig, where: str | Path) -> None:
    """Raise a CheckpointError if a folder prepares the frames of videos in another way than images."""
    for field in fields(PreprocessorConfig):
        found, expected = getattr(frames, field.name), getattr(images, field.name)
        if found != expected:
            raise CheckpointError(
                f"{where} has {field.name} {found} for videos and {expected} for images: masklet supports only one for "
                "both"
            )


def check_value(name: str, value: object, expected: object, where: str | Path) -> None:
    """Raise a CheckpointError unless a setting has the one supported value."""
    if value != expected:
        raise CheckpointError(f"{where} has {name} {shown(value)}: masklet supports only {expected!r}")


def read_switch(name: str, values: Mapping[str, Any], where: str | Path) -> bool:
    """A setting that is true, false or absent, which means true."""
    if not isinstance(value := values.get(name, True), bool):
        raise CheckpointError(f"{where} has {name} {shown(value)}: expected true or false")
    return value


def read_size(name: str, value: Any, where: str | Path) -> tuple[int, int]:
    """(height, width)."""
    if not isinstance(value, dict) or not all(type(value.get(side)) is int for side in ("height", "width")):
        raise CheckpointError(f'{where} has {name} {shown(value)}: expected {{"height": …, "width": …}} in pixels')
    return value["height"], value["width"]


def read_channels(name: str, value: Any, where: str | Path, *, positive: bool = False) -> tuple[float, float, float]:
    """A number for each of red, green and blue."""
    if not isinstance(value, list | tuple) or len(value) != 3:
        raise CheckpointError(f"{where} has {name} {shown(value)}: expected three numbers, for red, green and blue")
    red, green, blue = (read_number(name, number, where, positive=positive) for number in value)
    return red, green, blue


def read_number(name: str, value: Any, where: str | Path, *, positive: bool = False) -> float:
    """A finite number."""
    try:
        number = real_number(name, value, CheckpointError, least=-GREATEST, most=GREATEST)
    except CheckpointError:
        number = math.nan
    if math.isnan(number) or (positive and number < SMALLEST):
        raise CheckpointError(f"{where} has {name} {shown(value)}: expected a {'positive ' * positive}finite number")
    return number
