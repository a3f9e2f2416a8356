"""Options of automatic masks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, TypedDict

import numpy as np

from masklet.config import Sam2Config, Sam2EverythingConfig
from masklet.errors import ConfigError
from masklet.numbers import LARGEST, LARGEST_FLOAT, real_number, whole_number

MAX_POINTS = 1024
"""Points along a side. They are a million then."""
MAX_CROPS = 8
"""Layers of crops. They are 87,380 crops then."""


class EverythingKeywords(TypedDict, total=False):
    """The fields of ``EverythingOptions`` as keyword arguments, for editors and type checkers."""

    points_per_side: int
    point_grids: Sequence[Any] | None
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
    candidates: bool
    mask_threshold: float


@dataclass(frozen=True, kw_only=True)
class EverythingOptions:
    """Options of ``Segmenter.everything``, with the meanings and defaults of the reference's generator.

    ``iou_threshold`` and ``stability_threshold`` default to those of the model, see ``Sam2EverythingConfig``.
    """

    points_per_side: int = 32
    """Points along each side of the image. Each point gives three candidates; more points find smaller objects."""
    point_grids: Sequence[Any] | None = None
    """Your own points instead of ``points_per_side``: for each layer of crops, beginning with the whole image,
    (points, 2) x and y from 0 to 1 of the crop."""
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
    candidates: bool = True
    """Whether each point gives three candidates, or only the mask that the model would choose."""
    mask_threshold: float = 0.0
    """A mask has the pixels whose logit is above this. Logits of the results are relative to it."""

    def __post_init__(self) -> None:
        for name, least, most in (
            ("points_per_side", 1, MAX_POINTS),
            ("crops", 0, MAX_CROPS),
            ("crop_points_divisor", 1, LARGEST),
            ("min_area", 0, LARGEST),
        ):
            value: float = whole_number(name, getattr(self, name), ConfigError, least=least, most=most)
            object.__setattr__(self, name, value)
        for name, highest in (
            ("crop_overlap", 1.0),
            ("iou_threshold", 1.0),
            ("stability_threshold", 1.0),
            ("stability_offset", LARGEST_FLOAT),
            ("box_nms", math.inf),
            ("crop_nms", math.inf),
        ):
            value = real_number(name, getattr(self, name), ConfigError, least=0, most=highest)
            object.__setattr__(self, name, value)
        value = real_number("mask_threshold", self.mask_threshold, ConfigError)
        object.__setattr__(self, "mask_threshold", value)
        for name in ("refine", "candidates"):
            if not isinstance(getattr(self, name), bool | np.bool_):  # the text "false" would count as true
                raise ConfigError(f"{name} is {getattr(self, name)!r}: expected True or False")
        if self.point_grids is not None:
            object.__setattr__(self, "point_grids", read_grids(self.point_grids, layers=self.crops + 1))
        elif not self.points_in_layer(self.crops):
            raise ConfigError(
                f"points_per_side {self.points_per_side} leaves no points for the crops of layer {self.crops}, which "
                f"have {self.points_per_side} / {self.crop_points_divisor}**{self.crops} along a side: expected more "
                "points, or fewer layers"
            )

    @classmethod
    def for_model(cls, config: Sam2Config, keywords: Mapping[str, Any], *others: str) -> EverythingOptions:
        """Reads keyword arguments; thresholds that are not among them are the model's.

        Args:
            config: Configuration of the model.
            keywords: Fields by name.
            others: Further keyword arguments of the caller, for the error.

        Raises:
            ConfigError: An option is unknown, its value is invalid, or it is about crops and there are none.
        """
        known = [field.name for field in fields(cls)]
        if unknown := [name for name in keywords if name not in known]:
            raise ConfigError(f"there is no option {unknown[0]}: expected {', '.join([*others, *known])}")
        # With ``min_area``, ``crop_nms`` also decides which cleaned masks are duplicates.
        of_crops = ("crop_overlap", "crop_points_divisor", *(() if "min_area" in keywords else ("crop_nms",)))
        without_effect = [name for name in of_crops if name in keywords]
        if without_effect and "crops" not in keywords:
            raise ConfigError(f"{without_effect[0]} has no effect without crops: expected crops=1 or more with it")
        if "point_grids" in keywords:
            replaced = [name for name in ("points_per_side", "crop_points_divisor") if name in keywords]
            if replaced and keywords["point_grids"] is not None:
                raise ConfigError(f"{replaced[0]} has no effect with point_grids: expected one of the two")
        return cls(**{**asdict(config.everything), **keywords})

    def points_in_layer(self, layer: int) -> int:
        """Points along each side of a crop of this layer."""
        return self.points_per_side // self.crop_points_divisor**layer


def read_grids(grids: Any, *, layers: int) -> tuple[tuple[tuple[float, float], ...], ...]:
    """Reads ``EverythingOptions.point_grids``.

    Raises:
        ConfigError: There is not one grid for each layer, or a grid is not (points, 2) of numbers from 0 to 1.
    """
    if not isinstance(grids, Sequence) or len(grids) != layers:
        found = f"{len(grids)} grids" if isinstance(grids, Sequence) else type(grids).__name__
        raise ConfigError(f"point_grids is {found}: expected a list of one grid for each layer of crops, so {layers}")
    read = []
    for layer, grid in enumerate(grids):
        try:
            points = np.asarray(grid, np.float64)
        except (TypeError, ValueError, OverflowError):
            points = np.empty(0)
        if points.ndim != 2 or points.shape[1] != 2 or not len(points) or not ((points >= 0) & (points <= 1)).all():
            raise ConfigError(
                f"grid {layer} of point_grids is not a grid of points: expected (points, 2), x and y from 0 to 1, at "
                "least one point"
            )
        read.append(tuple((float(x), float(y)) for x, y in points))
    return tuple(read)
