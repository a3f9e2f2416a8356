"""Options of automatic masks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, TypedDict

import numpy as np

from masklet.config import Sam2Config, Sam2EverythingConfig
from masklet.errors import ConfigError


class EverythingKeywords(TypedDict, total=False):
    """The fields of ``EverythingOptions`` as keyword arguments, for editors and type checkers."""

    points_per_side: int
    crops: int
    crop_overlap: float
    crop_points_divisor: int
    iou_threshold: float
    stability_threshold: float
    stability_offset: float
    box_nms: float
    crop_nms: float
    min_area: int
    refine: bool


@dataclass(frozen=True, kw_only=True)
class EverythingOptions:
    """Options of ``Segmenter.everything``, with the meanings and defaults of the reference's generator.

    ``iou_threshold`` and ``stability_threshold`` default to those of the model, see ``Sam2EverythingConfig``.
    """

    points_per_side: int = 32
    """Points along each side of the image. Each point gives three candidates; more points find smaller objects."""
    crops: int = 0
    """Layers of crops that are searched besides the whole image, for small objects: layer n has 2**n by 2**n crops."""
    crop_overlap: float = 512 / 1500
    """Share of the image's shorter side by which the crops of the first layer overlap. It is halved in each layer."""
    crop_points_divisor: int = 1
    """Layer n has ``points_per_side / divisor**n`` points along each side of a crop."""
    iou_threshold: float = Sam2EverythingConfig.iou_threshold
    """Masks are kept if their predicted IoU is above this."""
    stability_threshold: float = Sam2EverythingConfig.stability_threshold
    """Masks are kept if their stability score is at least this, see ``masklet.masks.stability_scores``."""
    stability_offset: float = 1.0
    """Offset of the stability score, in logits."""
    box_nms: float = 0.7
    """Of two masks in a crop whose boxes have a higher IoU, only the better one is kept; from 1 on, both."""
    crop_nms: float = 0.7
    """The same between crops. Here the mask of the smaller crop is kept."""
    min_area: int = 0
    """Holes and islands with fewer pixels are removed, and then masks that have become duplicates."""
    refine: bool = False
    """Whether each candidate is prompted to the network once more, with its point. This takes four times as long."""

    def __post_init__(self) -> None:
        for name, least in (("points_per_side", 1), ("crops", 0), ("crop_points_divisor", 1), ("min_area", 0)):
            check_whole(name, getattr(self, name), least)
        for name, most in (
            ("crop_overlap", 1),
            ("iou_threshold", 1),
            ("stability_threshold", 1),
            ("stability_offset", math.inf),
            ("box_nms", math.inf),
            ("crop_nms", math.inf),
        ):
            check_number(name, getattr(self, name), most)
        if not isinstance(self.refine, bool | np.bool_):  # the text "false" would count as true
            raise ConfigError(f"refine is {self.refine!r}: expected True or False")
        if not self.points_in_layer(self.crops):
            raise ConfigError(
                f"points_per_side {self.points_per_side} leaves no points for the crops of layer {self.crops}, which "
                f"have {self.points_per_side} / {self.crop_points_divisor}**{self.crops} along a side: expected more "
                "points, or fewer layers"
            )

    @classmethod
    def for_model(cls, config: Sam2Config, keywords: Mapping[str, Any], *others: str) -> EverythingOptions:
        """Reads keyword arguments; thresholds that are not among them are the model's.

        Args:
            config: Of the model.
            keywords: Fields by name.
            others: Further keyword arguments of the caller, for the error.

        Raises:
            ConfigError: An option is unknown or its value is invalid.
        """
        known = [field.name for field in fields(cls)]
        if unknown := [name for name in keywords if name not in known]:
            raise ConfigError(f"there is no option {unknown[0]}: expected {', '.join([*others, *known])}")
        return cls(**{**asdict(config.everything), **keywords})

    def points_in_layer(self, layer: int) -> int:
        """Points along each side of a crop of this layer."""
        return self.points_per_side // self.crop_points_divisor**layer


def check_whole(name: str, value: Any, least: int) -> None:
    """Raises a ConfigError unless a value is a whole number of at least ``least``."""
    if not isinstance(value, int | np.integer) or value < least:
        raise ConfigError(f"{name} is {value!r}: expected a whole number, {least} or more")


def check_number(name: str, value: Any, most: float) -> None:
    """Raises a ConfigError unless a value is a number from 0 to ``most``, which is 1 or infinite."""
    if not isinstance(value, int | float | np.number) or not 0 <= value <= most:
        raise ConfigError(f"{name} is {value!r}: expected a number, 0 {'or more' if most > 1 else 'to 1'}")
