"""Finding the objects of a video without prompts: which masks are of new objects, and which objects are lost."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterator
from dataclasses import dataclass
from itertools import compress

import numpy as np

from masklet.everything.options import EverythingOptions, check_number, check_whole
from masklet.masks import encode_rle, rle_ious
from masklet.results import Masks
from masklet.video.frame_result import FrameResult


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
        """Those of the masks found in a frame that belong to new objects, from high to low scores.

        Args:
            found: Packed.
            known: The objects that were tracked into the frame.

        Returns:
            (height, width) bool each, one at a time in memory.
        """
        runs = encode_rle(known.masks)
        for number, (run, area) in enumerate(zip(found.to_rle(), found.areas, strict=True)):
            if area >= self.min_object and rle_ious([run], runs).max(initial=-1) < self.same_iou:
                runs.append(run)
                yield found.masks[number]


class Sightings:
    """When each object was last visible, to tell which objects are lost.

    Args:
        patience: Frames that an object may be out of sight.
    """

    def __init__(self, patience: int) -> None:
        self._patience = patience
        self._last_visible: dict[Hashable, int] = {}

    def add(self, result: FrameResult) -> None:
        """Note which objects are visible in a frame."""
        self._last_visible |= dict.fromkeys(compress(result.object_ids, result.visible), result.index)

    def is_lost(self, object_id: Hashable, prompted: Collection[int], frame: int) -> bool:
        """Whether an object was out of sight for too long. A prompt brings it back.

        Args:
            object_id: The object.
            prompted: Frames in which it was prompted.
            frame: The frame to track next.
        """
        sightings = [other for other in prompted if other <= frame]
        if object_id in self._last_visible:
            sightings.append(self._last_visible[object_id])
        return frame - max(sightings, default=frame) > self._patience
