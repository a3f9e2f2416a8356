"""Finding the objects of a video without prompts: which masks are of new objects, and which objects are lost."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import compress, count

import numpy as np

from masklet.errors import PromptError
from masklet.everything.generator import everything
from masklet.everything.options import EverythingOptions, check_number, check_whole
from masklet.masks import encode_rle, rle_ious
from masklet.processing import Sam2ImageProcessor
from masklet.results import Masks
from masklet.video.frame_result import FrameResult
from masklet.video.object_frame import ObjectFrame
from masklet.video.readers import Frame
from masklet.video.tracks import FeaturesOf, Tracks


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


class ObjectFinder:
    """Tracks objects through a video, frame by frame, and finds new ones.

    Args:
        tracks: The objects. New ones are added.
        processor: Prepares crops of frames.
        discovery: What is searched for, and how often.
    """

    def __init__(self, tracks: Tracks, processor: Sam2ImageProcessor, discovery: Discovery) -> None:
        self.tracks = tracks
        self.processor = processor
        self.discovery = discovery
        self.sightings = Sightings(discovery.patience)
        self._new_ids = count(1)

    def advance(self, frame: Frame, features_of: FeaturesOf) -> dict[Hashable, ObjectFrame]:
        """The results of a frame."""
        results = self._track(frame.index, features_of)
        if frame.index % self.discovery.every == 0:
            results |= self._find(frame, features_of, results)
        return results

    def _track(self, index: int, features_of: FeaturesOf) -> dict[Hashable, ObjectFrame]:
        """Track the objects that are not lost. Lost ones are skipped, or a long video would get ever slower."""
        tracked = []
        for object_id, track in self.tracks.objects.items():
            if self.sightings.is_lost(object_id, track.bank.prompted, index):
                track.bank.keep_maps(set())
            else:
                tracked.append(object_id)
        return self.tracks.advance(index, features_of, 1, tracked)

    def _find(
        self, frame: Frame, features_of: FeaturesOf, tracked: dict[Hashable, ObjectFrame]
    ) -> dict[Hashable, ObjectFrame]:
        """Search a frame, and prompt its new objects with their masks."""
        tracks, index = self.tracks, frame.index
        known = tracks.frame_result(index, frame.time, tracked, None, packed=True).masks
        options, features = self.discovery.options, features_of(index)
        found = everything(tracks.engine, self.processor, frame.image, options, features=features, packed=True)
        results: dict[Hashable, ObjectFrame] = {}
        for mask in self.discovery.new_masks(found, known):
            object_id = next(number for number in self._new_ids if number not in tracks.objects)
            with suppress(PromptError):  # the mask is too small at the network's input
                results[object_id] = tracks.prompt(object_id, index, features_of, tracks.read(mask=mask))
                tracks.objects[object_id].tracked_steps[index] = 1  # tracking has reached this frame
        return results
