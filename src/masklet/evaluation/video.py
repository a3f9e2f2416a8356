"""How well objects are followed: J, F and J&F of videos whose every frame is annotated.

Source: the semi-supervised rules of "The 2017 DAVIS challenge" (arXiv 1704.00675), and SAM 2 (arXiv 2408.00714),
section 6.2, for clicks instead of masks. As there

- an object is shown in the first frame that it is annotated in, by its mask or by three clicks, and scored in those
  after it, but for the video's last;
- a pixel belongs to one object, so where masks overlap the highest logit has it;
- an object that is absent, and not claimed, scores 1: J where neither mask has a pixel, F where neither has a boundary;
- what an annotation calls void, 255, is background.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain, pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from masklet.errors import VideoError
from masklet.evaluation.agreement import boundary_f, region_j
from masklet.evaluation.clicks import Click, click_until
from masklet.evaluation.folder import object_numbers, read_labels
from masklet.evaluation.grid import Extremes
from masklet.evaluation.scores import summarise
from masklet.images.folder import images_in
from masklet.masks import upscale_logits
from masklet.segmenter import Segmenter
from masklet.video.frame_result import FrameResult
from masklet.video.frames import width_by_height
from masklet.video.session import VideoSession

CLICKS = 3
EXPECTED = "expected JPEGImages/VIDEO/*.jpg and Annotations/VIDEO/*.png"


@dataclass(frozen=True)
class TrackScore:
    """One object of a video: means over the frames that it is scored in."""

    video: str
    object: int
    frames: int
    j_and_f: float
    """The mean of both, DAVIS's main measure; this and the next two from the object's first mask."""
    j: float
    f: float
    clicks_j_and_f: float
    """These from three clicks on the object's first frame."""
    clicks_j: float
    clicks_f: float
    still_j_and_f: float
    """These of the first mask, kept all along: what an object scores without a tracker."""
    still_j: float
    still_f: float


@dataclass(frozen=True)
class AnnotatedVideo:
    """A video and the truth about each of its frames. Made by ``read_videos``."""

    name: str
    images: list[Path]
    annotations: list[Path]

    def labels(self, frame: int) -> NDArray[np.integer]:
        """(height, width): 0 background, any other number an object."""
        return read_labels(self.annotations[frame])


@dataclass(frozen=True)
class Look:
    """An object in one frame, as it is and as it was followed there."""

    frame: int
    j: float
    image: NDArray[np.uint8]
    truth: NDArray[np.bool_]
    mask: NDArray[np.bool_]


@dataclass
class Followed:
    """One object while its video is gone through."""

    first_frame: int
    first_mask: NDArray[np.bool_]
    rows: list[list[float]] = field(default_factory=list)
    """Of each scored frame J and F from the mask, from the clicks, and of the first mask."""
    worst: Look | None = None
    """From the mask."""

    def score(self, video: str, number: int) -> TrackScore:
        """Means over the frames."""
        means = [((j + f) / 2, j, f) for j, f in np.mean(self.rows, axis=0).reshape(-1, 2).tolist()]
        return TrackScore(video, number, len(self.rows), *chain(*means))


def evaluate_videos(
    segmenter: Segmenter, videos: Iterable[AnnotatedVideo], *, extremes: Extremes | None = None
) -> Iterator[TrackScore]:
    """Follow every object of every video, once shown by its mask and once by clicks.

    Args:
        segmenter: What is measured.
        videos: From ``read_videos``.
        extremes: Shown every object by its J&F from the mask, in the frame in which it was followed worst.

    Raises:
        VideoError: A video has no object that could be scored; an annotation is of another size than its image.
        ImageError: An annotation cannot be read.
    """
    for video in videos:
        for number, one in follow(segmenter, video).items():
            score = one.score(video.name, number)
            if extremes is not None and (worst := one.worst) is not None:
                name = f"{video.name} {number}, J {worst.j:.3f} in frame {worst.frame}; J&F"
                extremes.add(name, score.j_and_f, worst.image, worst.truth, worst.mask)
            yield score


def follow(segmenter: Segmenter, video: AnnotatedVideo) -> dict[int, Followed]:
    """Every object of a video, with its scores in all frames."""
    session = segmenter.video(video.images)
    objects = first_seen(video, session.video.size_hw)
    starts = sorted({one.first_frame for one in objects.values()})
    for start, following in pairwise([*starts, len(video.images) - 1]):
        # Shown when it is reached: in frames before it an object would be made up, and that be remembered.
        for number, one in objects.items():
            if one.first_frame == start:
                # Objects do not touch each other, so both ways of showing them share the encoding of each frame.
                session.prompt(start, ("mask", number), mask=one.first_mask)
                click_on(session, ("clicks", number), one)
        for result in session.track(start=start, end=following - 1):
            add_frame(objects, result, video.labels(result.index))
    return objects


def first_seen(video: AnnotatedVideo, size_hw: tuple[int, int]) -> dict[int, Followed]:
    """Where each object of a video is first seen, of those that are so before its last two frames.

    Raises:
        VideoError: There are none; an annotation is of another size than the video.
    """
    objects: dict[int, Followed] = {}
    for frame, path in enumerate(video.annotations):
        labels = video.labels(frame)
        if labels.shape != size_hw:
            raise VideoError(
                f"{path} is {width_by_height(labels.shape)}: expected {width_by_height(size_hw)}, the video's size"
            )
        if frame < len(video.annotations) - 2:
            for number in object_numbers(labels):
                objects.setdefault(number, Followed(frame, labels == number))
    if not objects:
        raise VideoError(
            f"{video.annotations[0].parent} shows no object before its last two frames: expected numbers from 1 to 254"
        )
    return objects


def click_on(session: VideoSession, name: tuple[str, int], one: Followed) -> None:
    """Show an object by clicks on its first frame, each correcting what those before it gave."""

    def answer(click: Click) -> NDArray[np.bool_]:
        return session.prompt(one.first_frame, name, points=[click.point]).masks[0]

    for _ in click_until(CLICKS, one.first_mask, answer):
        pass


def add_frame(objects: dict[int, Followed], result: FrameResult, labels: NDArray[np.integer]) -> None:
    """Compare a frame with its annotation, for the objects that were seen before it."""
    seen = [number for number, one in objects.items() if one.first_frame <= result.index]
    maps = []
    for kind in ("mask", "clicks"):
        rows = [result.object_ids.index((kind, number)) for number in seen]
        maps.append(label_map(result.masks.logits[rows], labels.shape))
    for place, number in enumerate(seen, start=1):
        one = objects[number]
        if one.first_frame == result.index:
            continue
        truth, masks = labels == number, [*(labelled == place for labelled in maps), one.first_mask]
        one.rows.append([measure(mask, truth) for mask in masks for measure in (region_j, boundary_f)])
        j = one.rows[-1][0]
        if one.worst is None or j < one.worst.j:
            assert result.masks.image is not None
            one.worst = Look(result.index, j, result.masks.image, truth, masks[0])


def summarise_videos(scores: list[TrackScore]) -> dict[str, float]:
    """Means over objects, as DAVIS takes them: a video with three counts three times.

    Raises:
        ValueError: There are none.
    """
    return summarise(scores) | {"videos": len({score.video for score in scores})}


def read_videos(folder: Path) -> list[AnnotatedVideo]:
    """Find videos laid out as DAVIS: ``JPEGImages/VIDEO/*.jpg`` and ``Annotations/VIDEO/*.png``, one for each image.

    Annotations are palette or grey: 0 background, then one number an object, 255 void; or black and white. DAVIS's own
    folder has a ``480p`` above the videos, which is looked for.

    Raises:
        VideoError: There are no videos, one is too short, annotations are missing.
    """
    found = find_videos(folder)
    for video in found:
        if (count := len(video.images)) < 3:
            raise VideoError(f"{folder}: video {video.name} has {count} images: expected 3, as neither end is scored")
        if missing := [path for path in video.annotations if not path.exists()]:
            raise VideoError(f"{len(missing)} of {count} images have no annotation: expected {missing[0]}")
    return found


def find_videos(folder: Path) -> list[AnnotatedVideo]:
    """The videos of a folder as of ``read_videos``, with where an annotation of each image would be.

    Raises:
        VideoError: There are none.
    """
    images, annotations = (
        place / "480p" if (place / "480p").is_dir() else place
        for place in (folder / "JPEGImages", folder / "Annotations")
    )
    names = sorted(path.name for path in images.iterdir() if path.is_dir()) if images.is_dir() else []
    if not names:
        raise VideoError(f"no videos in {images}: {EXPECTED} in {folder}")
    files = {name: images_in(images / name) for name in names}
    return [
        AnnotatedVideo(name, found, [annotations / name / f"{image.stem}.png" for image in found])
        for name, found in files.items()
    ]


def label_map(logits: NDArray[np.float32], size_hw: tuple[int, ...]) -> NDArray[np.int64]:
    """(objects, h, w) logits to (height, width): 0 background, or 1 + the object of the highest logit above 0."""
    height, width = size_hw
    upscaled = upscale_logits(torch.tensor(logits), (height, width)).numpy()
    return np.concatenate([np.zeros_like(upscaled[:1]), upscaled]).argmax(0)
