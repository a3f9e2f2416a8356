"""Which data to train on, and how they are varied."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

from masklet.datasets import LAYOUTS
from masklet.errors import ConfigError

REPEATABLE = ("flip",)
"""Augmentations with few results, which a cache of features can hold."""


@dataclass(frozen=True, kw_only=True)
class Augmentations:
    """The probability of each change to an image. All frames of a clip are changed alike."""

    flip: float = 0.5
    """Exchange left and right."""
    flip_vertical: float = 0.0
    """Exchange top and bottom: for images without an upright direction, such as those of a microscope."""
    crop: float = 0.0
    """Cut out a window of 0.25 to 1 of the area, of another aspect ratio, and scale it to the input."""
    colour: float = 0.0
    """Change brightness, contrast, saturation and hue."""
    grey: float = 0.0
    """Remove the colour."""
    blur: float = 0.0
    """Blur, by up to 1 % of the image's longer side."""
    jpeg: float = 0.0
    """Compress as a JPEG of quality 20 to 80."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 <= value <= 1:
                raise ConfigError(f"{name} of augment is {value!r}: expected a probability from 0 to 1")

    @property
    def unrepeatable(self) -> list[str]:
        """The names of those in use that make every image a new one."""
        return [name for name, value in vars(self).items() if value > 0 and name not in REPEATABLE]


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where images or videos and their masks are."""

    layout: str
    """``folder``, ``coco``, ``sa1b``, ``videos`` (DAVIS, YouTube-VOS) or ``sav``; see ``masklet.datasets``."""
    path: str | os.PathLike[str]
    """Folder of the images or videos."""
    annotations: str | os.PathLike[str] | None = None
    """JSON file of the layout ``coco``."""
    split_masks: bool = False
    """Treat every connected component of a label as an object of its own: for masks of classes."""
    weight: float = 1.0
    """Share of this data set among the examples, as a part of the sum of all weights."""
    augment: Augmentations = field(default_factory=Augmentations)
    """Random changes to the images."""
    validation: float | DataConfig = 0.1
    """Share of the images or videos, chosen by name, to validate on instead of training; or other data for that."""

    def __post_init__(self) -> None:
        path_as_text(self, "path", "annotations")
        if self.layout not in LAYOUTS:
            raise ConfigError(f"data has layout {self.layout!r}: expected one of {', '.join(LAYOUTS)}")
        if (self.layout == "coco") != (self.annotations is not None):
            raise ConfigError(
                f"data of layout {self.layout}: annotations, a JSON file, are for layout coco, which needs them"
            )
        if self.split_masks and self.layout != "folder":
            raise ConfigError(f"data of layout {self.layout}: split_masks is for layout folder only")
        if not 0 < self.weight < float("inf"):
            raise ConfigError(f"data has weight {self.weight!r}: expected a number > 0")
        if not isinstance(self.validation, DataConfig) and not 0 <= self.validation < 1:
            raise ConfigError(f"data has validation {self.validation!r}: expected a share from 0 to 1, or data")


def path_as_text(config: object, *names: str) -> None:
    """Converts path objects in fields of a frozen dataclass to text, as in YAML."""
    for name in names:
        if isinstance(value := getattr(config, name), os.PathLike):
            object.__setattr__(config, name, os.fspath(value))
        elif value is not None and not isinstance(value, str):
            raise ConfigError(f"{name} is {value!r}: expected text")


def as_number(value: Any, name: str) -> float:
    """A number; YAML reads 1e-4, which has no decimal point, as text.

    Raises:
        ConfigError: It is none.
    """
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{name} is {value!r}: expected a number") from error
