"""Videos: folders in the layout of DAVIS and YouTube-VOS, and SA-V's videos with JSON files of masklets."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from masklet.datasets.labels import read_labels
from masklet.datasets.scenes import Frame, Mask, Scene, mask_of_coco, masks_of_labels, read_json
from masklet.datasets.video_folders import EXPECTED, find_videos
from masklet.errors import DataError, VideoError
from masklet.images.reading import read_image
from masklet.video.frames import Video, open_video

SAV_STRIDE = 4
"""SA-V annotates 6 of its 24 frames per second."""


def read_videos(folder: Path) -> list[Scene]:
    """All videos of a folder: ``JPEGImages/VIDEO/*.jpg`` and ``Annotations/VIDEO/*.png``.

    They are found and read as in evaluation, except that images without an annotation are skipped: YouTube-VOS
    annotates every fifth frame.

    Raises:
        VideoError: There are no videos, or a video has no annotations.
    """
    scenes = []
    for video in find_videos(folder):
        pairs = [pair for pair in zip(video.images, video.annotations, strict=True) if pair[1].exists()]
        if not pairs:
            raise VideoError(f"video {video.name} has no annotations in {folder}: {EXPECTED}, of the same names")
        files = tuple(file for pair in pairs for file in pair)
        scenes.append(Scene(video.name, partial(_read_frame, pairs), partial(len, pairs), files))
    return scenes


def _read_frame(pairs: list[tuple[Path, Path]], index: int) -> Frame:
    image, labels = pairs[index]
    return Frame(str(image), read_image(image), masks_of_labels(read_labels(labels)))


def read_sav(folder: Path) -> list[Scene]:
    """All videos of a folder of SA-V, at any depth: ``NAME.mp4`` with ``NAME_manual.json``, ``NAME_auto.json`` or both.

    Raises:
        DataError: There are no such videos.
    """
    scenes = []
    for video in sorted(folder.rglob("*.mp4")):
        files = [video.with_name(f"{video.stem}_{kind}.json") for kind in ("manual", "auto")]
        if files := [file for file in files if file.exists()]:
            masklets = tuple(files)
            count = partial(_annotated_frames, masklets)
            frame, run = partial(_read_sav_frame, video, masklets), partial(_read_sav, video, masklets)
            scenes.append(Scene(video.stem, frame, count, (video, *files), run))
    if not scenes:
        raise DataError(f"no videos of SA-V in {folder}: expected NAME.mp4 beside NAME_manual.json or NAME_auto.json")
    return scenes


@lru_cache(maxsize=8)
def _masklets(files: tuple[Path, ...]) -> list[tuple[Path, Mapping[str, Any]]]:
    """The annotations of a video, cached for a few videos, since clips read frame by frame."""
    found = [(file, read_json(file)) for file in files]
    for file, content in found:
        if not isinstance(content, dict) or not isinstance(content.get("masklet"), list) or not content["masklet"]:
            raise DataError(
                f"{file} is not in the format of SA-V: expected masklet, a list of run lengths for each frame"
            )
    return found


@lru_cache(maxsize=8)
def _video(path: Path) -> Video:
    return open_video(path)


def _annotated_frames(files: tuple[Path, ...]) -> int:
    return min(len(content["masklet"]) for _, content in _masklets(files))


def _read_sav_frame(path: Path, files: tuple[Path, ...], index: int) -> Frame:
    return next(iter(_read_sav(path, files, range(index, index + 1))))


def _read_sav(path: Path, files: tuple[Path, ...], indices: range) -> Iterator[Frame]:
    """Consecutive annotated frames, decoded in one run: a seek decodes from the key frame before it."""
    video, count = _video(path), _annotated_frames(files)
    stride = sav_stride(len(video), count)
    # Frames are read while they are needed, and the reading thread ends with the block.
    with closing(video.frames(indices.start * stride, (indices.stop - 1) * stride + 1, stride)) as read:
        for index, decoded in zip(indices, read, strict=True):
            found = [(file, one) for file, content in _masklets(files) for one in content["masklet"][index]]
            masks: dict[int, Callable[[], Mask]] = {
                number: mask_of_coco(segmentation, video.size_hw, str(file), number)
                for number, (file, segmentation) in enumerate(found, start=1)
                if segmentation  # None where the object is absent
            }
            yield Frame(f"{path}, frame {index * stride}", decoded.image, masks)


def sav_stride(frames: int, annotated: int) -> int:
    """Distance between annotated frames: 4 in SA-V itself; in other data, from the number of frames and annotations."""
    if math.ceil(frames / SAV_STRIDE) == annotated:
        return SAV_STRIDE
    return max(1, (frames - 1) // max(1, annotated - 1))
