"""Objects of a video that nobody showed: when to look for them, and which masks are of new ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from masklet.everything.options import EverythingOptions, check_number, check_whole
from masklet.masks import encode_rle, rle_ious
from masklet.results import Masks


@dataclass(frozen=True, kw_only=True)
class Discovery:
    """See ``VideoSession.everything``."""

    every: int
    same_iou: float
    min_object: int
    patience: int
    options: EverythingOptions

    def __post_init__(self) -> None:
        for name, least in (("every", 1), ("min_object", 0), ("patience", 0)):
            check_whole(name, getattr(self, name), least)
        check_number("same_iou", self.same_iou, 1)

    def new_masks(self, found: Masks, known: Masks) -> Iterator[np.ndarray]:
        """Of the masks that were found in a frame, from high to low scores, those of objects that are not known.

        Args:
            found: Packed.
            known: The objects that were followed into the frame.

        Returns:
            (height, width) bool each, one at a time in memory.
        """
        runs = encode_rle(known.masks)
        for number, (run, area) in enumerate(zip(found.to_rle(), found.areas, strict=True)):
            if area >= self.min_object and rle_ious([run], runs).max(initial=-1) < self.same_iou:
                runs.append(run)
                yield found.masks[number]
