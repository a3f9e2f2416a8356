"""Finding the objects of a video without prompts: which masks are of new objects, and which objects are lost."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import compress, count
from typing import Any, TypeAlias

import numpy as np

from masklet.detection import Detections, Detector, Words
from masklet.engine import Engine
from masklet.errors import ConfigError, PromptError
from masklet.everything.generator import everything
from masklet.everything.options import EverythingKeywords, EverythingOptions
from masklet.image import EncodedImage
from masklet.masks import encode_rle, rle_ious
from masklet.model.neck import Features
from masklet.numbers import real_number, whole_number
from masklet.processing import ImageProcessor
from masklet.results import Masks
from masklet.video.frame_result import FrameResult
from masklet.video.frame_step import FeaturesOf
from masklet.video.object_frame import ObjectFrame
from masklet.video.readers import Frame
from masklet.video.tracker import FramePrompt
from masklet.video.tracks import Tracks

Search: TypeAlias = Callable[[np.ndarray, Features], Masks]
"""Finds the masks of a frame, packed, from its image (height, width, 3) and its features."""


@dataclass(frozen=True, kw_only=True)
class Discovery:
    """See ``VideoSession.everything``."""

    every: int
    same_iou: float
    min_object: int
    patience: int
    search: Search

    def __post_init__(self) -> None:
        for name, least in (("every", 1), ("min_object", 0), ("patience", 0)):
            object.__setattr__(self, name, whole_number(name, getattr(self, name), ConfigError, least=least))
        object.__setattr__(self, "same_iou", real_number("same_iou", self.same_iou, ConfigError, least=0, most=1))

    def new_masks(self, found: Masks, known: Masks) -> Iterator[tuple[np.ndarray, str | None]]:
        """Those of the masks found in a frame that belong to new objects, from high to low scores.

        Args:
            found: Packed.
            known: The objects that were tracked into the frame.

        Returns:
            (height, width) bool each, one at a time in memory, and its label.
        """
        runs = encode_rle(known.masks)
        for number, (run, area) in enumerate(zip(found.to_rle(), found.areas, strict=True)):
            if area >= self.min_object and rle_ious([run], runs).max(initial=-1) < self.same_iou:
                runs.append(run)
                yield found.masks[number], None if found.labels is None else str(found.labels[number])


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
        discovery: What is searched for, and how often.
    """

    def __init__(self, tracks: Tracks, discovery: Discovery) -> None:
        self.tracks = tracks
        self.discovery = discovery
        self.sightings = Sightings(discovery.patience)
        self._new_ids = count(1)
        self._next_search = 0

    def advance(self, frame: Frame, features_of: FeaturesOf) -> dict[Hashable, ObjectFrame]:
        """The results of a frame."""
        results = self._track(frame.index, features_of)
        if frame.index >= self._next_search:  # the frame whose turn it was may be missing from a damaged video
            results |= self._find(frame, features_of, results)
            self._next_search = (frame.index // self.discovery.every + 1) * self.discovery.every
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
        found = self.discovery.search(frame.image, features_of(index))
        prompts: dict[Hashable, FramePrompt] = {}
        labels: dict[Hashable, str | None] = {}
        for mask, label in self.discovery.new_masks(found, known):
            with suppress(PromptError):  # the mask is too small at the network's input
                tracks.check_prompt(prompt := tracks.read(mask=mask))
                object_id = next(number for number in self._new_ids if number not in tracks.objects)
                prompts[object_id], labels[object_id] = prompt, label
        results = tracks.prompt_new(index, features_of, prompts)
        for new_id, label in labels.items():
            tracks.objects[new_id].tracked_steps[index] = 1  # tracking has reached this frame
            tracks.objects[new_id].label = label
        return results


def search_for(
    engine: Engine,
    processor: ImageProcessor,
    options: EverythingKeywords,
    *,
    text: Words | None,
    detector: Any,
    threshold: float,
) -> Search:
    """What finds the masks of a frame: a grid of points, or a detector of words.

    Raises:
        ConfigError: An option is invalid, or does not go with words.
        PromptError: The words are invalid.
        DetectorError: The detector cannot be loaded.
    """
    if text is None and detector is None:
        known = ("every", "same_iou", "min_object", "patience", "packed", "text", "detector", "detection_threshold")
        chosen = EverythingOptions.for_model(engine.config, options, *known)
        return lambda image, features: everything(engine, processor, image, chosen, features=features, packed=True)
    if options:
        raise ConfigError(f"{next(iter(options))} is an option of the grid of points, which text does not use")
    find = Detector(detector, [] if text is None else text, threshold=threshold)

    def search(image: np.ndarray, features: Features) -> Masks:
        found = find(image)
        encoded = EncodedImage(engine, features, (image.shape[0], image.shape[1]), image)
        masks = encoded.predict(boxes=found.boxes, packed=True)
        return replace(masks, labels=np.array(found.labels, np.str_))

    return search


def prompt_detections(
    tracks: Tracks, frame: int, features_of: FeaturesOf, found: Detections
) -> dict[Hashable, ObjectFrame]:
    """Prompt a new object with each box. Returns their results in the frame."""
    free = (number for number in count(1) if number not in tracks.objects)
    each = zip(free, found.boxes.tolist(), strict=False)
    prompts: dict[Hashable, FramePrompt] = {object_id: tracks.read(box=box) for object_id, box in each}
    results = tracks.prompt_new(frame, features_of, prompts)
    for object_id, label in zip(results, found.labels, strict=True):
        tracks.objects[object_id].label = label
    return results
