"""Measures tracking on videos whose frames are all annotated, by J, F and J&F.

Source: the semi-supervised rules of "The 2017 DAVIS challenge" (arXiv 1704.00675), and SAM 2 (arXiv 2408.00714),
section 6.2, for clicks instead of masks. By these rules

- an object is prompted on the first frame it is annotated in, by its mask or by three clicks, and scored on all later
  frames except the video's last;
- a pixel belongs to one object: where masks overlap, to the one with the highest logit;
- if both the mask and the truth are empty, J is 1; if neither has a boundary, F is 1;
- void pixels of an annotation, 255, are background.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from masklet.datasets.labels import object_numbers
from masklet.datasets.video_folders import AnnotatedVideo, find_videos
from masklet.errors import VideoError
from masklet.evaluation.agreement import boundary_f, region_j
from masklet.evaluation.clicks import Click, click_until
from masklet.evaluation.grid import Extremes
from masklet.evaluation.scores import summarise
from masklet.masks import upscale_logits
from masklet.segmenter import Segmenter
from masklet.video.frame_result import FrameResult
from masklet.video.frames import width_by_height
from masklet.video.policy import MemoryPolicy
from masklet.video.session import VideoSession

CLICKS = 3


@dataclass(frozen=True)
class TrackScore:
    """One object of a video: means over the frames it is scored on."""

    video: str
    object: int
    frames: int
    j_and_f: float
    """Mean of J and F, the main measure of DAVIS; this and the next two for the object's mask as the prompt."""
    j: float
    f: float
    clicks_j_and_f: float
    """The same for three clicks on the object's first frame."""
    clicks_j: float
    clicks_f: float
    baseline_j_and_f: float
    """The same for the first mask held on all frames, the baseline of no tracking."""
    baseline_j: float
    baseline_f: float


class MeasuredVideo(Protocol):
    """A video and the annotations of its frames: ``AnnotatedVideo`` or ``layouts.SceneVideo``."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def images(self) -> Sequence[Any]:
        """Its frames, as ``Segmenter.video`` takes them."""

    @property
    def annotations(self) -> Sequence[Path]:
        """What messages call the annotation of each frame."""

    def labels(self, frame: int) -> NDArray[np.integer]:
        """(height, width): 0 background, any other number an object."""


@dataclass(frozen=True)
class TrackedFrame:
    """An object on one frame: its truth and its tracked mask."""

    frame: int
    j: float
    image: NDArray[np.uint8]
    truth: NDArray[np.bool_]
    mask: NDArray[np.bool_]


@dataclass
class TrackedObject:
    """One object of a video and its scores so far."""

    first_frame: int
    first_mask: NDArray[np.bool_]
    rows: list[list[float]] = field(default_factory=list)
    """J and F on each scored frame: with a mask as the prompt, with clicks, and of the baseline."""
    worst: TrackedFrame | None = None
    """The frame of the lowest J with a mask as the prompt."""

    def score(self, video: str, number: int) -> TrackScore:
        """The means over all scored frames."""
        means = [((j + f) / 2, j, f) for j, f in np.mean(self.rows, axis=0).reshape(-1, 2).tolist()]
        return TrackScore(video, number, len(self.rows), *chain(*means))


def evaluate_videos(
    segmenter: Segmenter,
    videos: Iterable[MeasuredVideo],
    *,
    extremes: Extremes | None = None,
    policy: str | MemoryPolicy = "paper",
) -> Iterator[TrackScore]:
    """Tracks every object of every video twice, once prompted by its mask and once by clicks.

    Args:
        segmenter: The segmenter to measure.
        videos: From ``read_videos``.
        extremes: Collects every object's worst frame with its J&F, both with a mask as the prompt.
        policy: The memory policy, see ``Segmenter.video``. Results that a policy decides late, as "sam2long" does, are
            scored when a video is done.

    Raises:
        VideoError: A video has no object that can be scored, or an annotation is not of its image's size.
        ImageError: An annotation cannot be read.
    """
    for video in videos:
        for number, tracked in track_objects(segmenter, video, policy).items():
            score = tracked.score(video.name, number)
            if extremes is not None and (worst := tracked.worst) is not None:
                name = f"{video.name} {number}, J {worst.j:.3f} in frame {worst.frame}; J&F"
                extremes.add(name, score.j_and_f, worst.image, worst.truth, worst.mask)
            yield score


def track_objects(
    segmenter: Segmenter, video: MeasuredVideo, policy: str | MemoryPolicy = "paper"
) -> dict[int, TrackedObject]:
    """Every object of a video, with its scores on all frames."""
    session = segmenter.video(list(video.images), policy=policy)
    objects = first_appearances(video, session.video.size_hw)
    starts = sorted({tracked.first_frame for tracked in objects.values()})
    for start, following in pairwise([*starts, len(video.images) - 1]):
        # An object is prompted when tracking reaches its first frame. Prompted before, it would be tracked through the
        # frames without it as well, and wrong masks would enter its memory.
        for number, tracked in objects.items():
            if tracked.first_frame == start:
                # Objects are independent, so both kinds of prompts share the encoding of each frame.
                session.prompt(start, ("mask", number), mask=tracked.first_mask)
                click_on(session, ("clicks", number), tracked)
        for result in session.track(start=start, end=following - 1):
            if not session.decides_late:
                add_frame(objects, result, video.labels(result.index))
    for result in session.results(with_images=True) if session.decides_late else ():
        add_frame(objects, result, video.labels(result.index))
    return objects


def first_appearances(video: MeasuredVideo, size_hw: tuple[int, int]) -> dict[int, TrackedObject]:
    """The objects that appear before a video's last two frames, each with its first frame and mask.

    Raises:
        VideoError: There are none, or an annotation is not of the video's size.
    """
    objects: dict[int, TrackedObject] = {}
    for frame, path in enumerate(video.annotations):
        labels = video.labels(frame)
        if labels.shape != size_hw:
            raise VideoError(
                f"{path} is {width_by_height(labels.shape)}: expected {width_by_height(size_hw)}, the video's size"
            )
        if frame < len(video.annotations) - 2:
            for number in object_numbers(labels):
                objects.setdefault(number, TrackedObject(frame, labels == number))
    if not objects:
        raise VideoError(
            f"{video.annotations[0].parent} contains no object before its last two frames: expected numbers from 1 to "
            "254"
        )
    return objects


def click_on(session: VideoSession, name: tuple[str, int], tracked: TrackedObject) -> None:
    """Prompts an object by clicks on its first frame, each of which corrects the previous mask."""

    def predict(click: Click) -> NDArray[np.bool_]:
        return session.prompt(tracked.first_frame, name, points=[click.point]).masks[0]

    for _ in click_until(CLICKS, tracked.first_mask, predict):
        pass


def add_frame(objects: dict[int, TrackedObject], result: FrameResult, labels: NDArray[np.integer]) -> None:
    """Scores a frame for the objects that appeared before it."""
    present = [number for number, tracked in objects.items() if tracked.first_frame <= result.index]
    maps = []
    for kind in ("mask", "clicks"):
        rows = [result.object_ids.index((kind, number)) for number in present]
        maps.append(label_map(result.masks.logits[rows], labels.shape))
    for position, number in enumerate(present, start=1):
        tracked = objects[number]
        if tracked.first_frame == result.index:
            continue
        truth, masks = labels == number, [*(labelled == position for labelled in maps), tracked.first_mask]
        tracked.rows.append([measure(mask, truth) for mask in masks for measure in (region_j, boundary_f)])
        j = tracked.rows[-1][0]
        if tracked.worst is None or j < tracked.worst.j:
            assert result.masks.image is not None
            tracked.worst = TrackedFrame(result.index, j, result.masks.image, truth, masks[0])


def summarise_videos(scores: list[TrackScore]) -> dict[str, float]:
    """Means over objects, as in DAVIS: a video with three objects counts three times.

    Raises:
        ValueError: ``scores`` is empty.
    """
    return summarise(scores) | {"videos": len({score.video for score in scores})}


def read_videos(folder: Path) -> list[AnnotatedVideo]:
    """Finds videos laid out as DAVIS: ``JPEGImages/VIDEO/*.jpg`` and ``Annotations/VIDEO/*.png``, one for each image.

    Annotations are palette or greyscale images: 0 is background, 255 is void, any other number an object. Or they are
    black and white. The videos may lie in a folder ``480p``, as those of DAVIS do.

    Raises:
        VideoError: There are no videos, a video is too short, or annotations are missing.
    """
    found = find_videos(folder)
    for video in found:
        if (count := len(video.images)) < 3:
            raise VideoError(
                f"{folder}: video {video.name} has {count} images: expected 3 or more, since the first and the last "
                "are not scored"
            )
        if missing := [path for path in video.annotations if not path.exists()]:
            raise VideoError(f"{len(missing)} of {count} images have no annotation: expected {missing[0]}")
    return found


def label_map(logits: NDArray[np.float32], size_hw: tuple[int, ...]) -> NDArray[np.int64]:
    """(objects, h, w) logits to (height, width): 0 is background, n + 1 is object n, whose logit is the highest."""
    height, width = size_hw
    upscaled = upscale_logits(torch.tensor(logits, device="cpu"), (height, width)).numpy()
    return np.concatenate([np.zeros_like(upscaled[:1]), upscaled]).argmax(0)
