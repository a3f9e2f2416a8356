"""Writes tracked masks: a video with the masks painted over it, a folder of masks, or lines of JSON."""

from __future__ import annotations

import itertools
import json
import math
import os
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from numbers import Integral
from pathlib import Path
from typing import Any

import av
from PIL import Image

from masklet import atomic
from masklet.atomic import check_writable, keeping, replacing
from masklet.config import SizeHW
from masklet.errors import VideoError
from masklet.masks import PackedMasks
from masklet.results import Masks
from masklet.video.frame_result import FrameResult
from masklet.video.frames import Video, width_by_height
from masklet.video.writer import MAX_FPS, MIN_FPS, WRITABLE_SUFFIXES, VideoWriter


@dataclass(frozen=True)
class Writers:
    """Open files that results are added to, frame by frame. Made by ``open_writers``."""

    size_hw: SizeHW
    outputs: tuple[tuple[Path, Callable[[FrameResult], None]], ...]

    def write(self, result: FrameResult) -> None:
        """Add a frame to every file.

        Raises:
            VideoError: It has another size than the video; a file cannot be written.
        """
        if (size_hw := result.masks.masks.shape[1:]) != self.size_hw:
            raise VideoError(
                f"frame {result.index} is {width_by_height(size_hw)}, but the video to write is "
                f"{width_by_height(self.size_hw)}: expected one size throughout"
            )
        for path, add in self.outputs:
            with naming(path):
                add(result)


@contextmanager
def open_writers(
    overlay: Path | None = None,
    masks: Path | None = None,
    jsonl: Path | None = None,
    *,
    fps: Fraction | float,
    size_hw: SizeHW,
    live: bool = False,
) -> Iterator[Writers]:
    """Open files to write results to. No more than one frame is held in memory.

    The video and the JSON lines appear when the block ends without an error, and otherwise not at all. PNGs appear as
    they are written.

    Args:
        overlay: A video of the frames with their masks painted over them, see ``VideoWriter``. It begins with the first
            frame that is written, and frames keep the intervals of their times.
        masks: A folder of PNGs as in DAVIS: ``00000.png`` for frame 0, where 0 is background and 1 the first object. It
            is created if it does not exist; other files in it are left alone.
        jsonl: A file with a line of JSON for each frame, see ``json_line``.
        fps: Frames per second of the video; its last frame is shown for ``1 / fps`` seconds, a millisecond to 100 s.
        size_hw: Size of the video, and so of every result.
        live: Keep what was written, also if the block ends with an error or the process is killed: the video and the
            lines grow in ``NAME.part.SUFFIX``, see ``atomic.keeping``.

    Raises:
        VideoError: One of them cannot be written, or frames of a video do not come in their order.
    """
    with ExitStack() as stack:
        outputs: list[tuple[Path, Callable[[FrameResult], None]]] = []
        if overlay is not None:
            with naming(overlay):
                # Every frame has its time; the rate of few frames of a long video may be lower than a writer takes.
                rate = min(max(fps, MIN_FPS), MAX_FPS)
                video = stack.enter_context(VideoWriter(overlay, rate, live=live))
            outputs.append((overlay, lambda result: video.write(result.masks.overlay(), result.time)))
        if masks is not None:
            with naming(masks):
                masks.mkdir(parents=True, exist_ok=True)
                check_writable(masks / "00000.png")
            outputs.append((masks, lambda result: save_index_image(masks, result)))
        if jsonl is not None:
            with naming(jsonl):
                unfinished = stack.enter_context((keeping if live else replacing)(jsonl))
                lines = stack.enter_context(unfinished.open("w", encoding="utf-8", buffering=1 if live else -1))
            outputs.append((jsonl, lambda result: print(json_line(result), file=lines)))
        yield Writers(size_hw, tuple(outputs))
        with naming(" or ".join(str(path) for path, _ in outputs)):  # the disk may be full
            stack.close()


def output_kind(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The argument of ``open_writers`` that a path is for, by its suffix; without one it is a folder."""
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix == ".jsonl":
        return {"jsonl": path}
    if suffix in WRITABLE_SUFFIXES:
        return {"overlay": path}
    if not suffix or path.is_dir():
        return {"masks": path}
    raise VideoError(
        f"cannot write masks to {path}: expected a video ({', '.join(WRITABLE_SUFFIXES)}), JSON lines (.jsonl), or a "
        "folder, which has no suffix; export() writes CVAT and MOT"
    )


def refuse_to_overwrite(video: Video, *paths: str | os.PathLike[str] | None) -> None:
    """Raise a VideoError if one of the paths is the video itself, a file or a folder of images."""
    for path in paths:
        if path is not None and video.path is not None and Path(path).resolve() == video.path.resolve():
            raise VideoError(f"{path} is the video itself: write to another path, or the video would be lost")


def step_between(frames: Sequence[int]) -> int:
    """The step from frame to frame, of which gaps are multiples; 1 for a single frame."""
    return math.gcd(*(after - before for before, after in itertools.pairwise(frames))) or 1


def index_image(masks: Masks) -> Image.Image:
    """(height, width) of object numbers, from 1: 8 bits with the colours of ``overlay``, 16 bits beyond 255 objects.

    Where masks overlap, the object of the highest logit is on top.

    Raises:
        VideoError: There are too many objects; the masks are packed, and have no logits.
    """
    if isinstance(masks.masks, PackedMasks):
        raise VideoError("packed masks have no logits to decide overlaps: write PNGs from track() without packed=True")
    if (last := masks.object_ids.max(initial=-1) + 1) > 65535:
        raise VideoError(f"object {last} does not fit the 65535 values of a 16-bit PNG: write JSON lines (.jsonl)")
    return masks.without_overlap().index_map(by_object=True)


def save_index_image(folder: Path, result: FrameResult) -> None:
    """Write the ``index_image`` of one frame to a folder."""
    with replacing(folder / f"{result.index:05}.png") as unfinished:
        index_image(result.masks).save(unfinished)


def json_line(result: FrameResult) -> str:
    """A frame as JSON, without the end of the line.

    ``frame``, ``time`` in seconds, and ``objects``, each with its ``object_id``, ``segmentation`` (COCO's compressed
    run lengths), ``iou_score`` (predicted IoU), ``object_score`` (above 0: it is in the frame), ``bbox`` [x, y, width,
    height] and ``area`` in pixels, and ``label`` if objects were found by words. Ids that JSON cannot hold become text.
    """
    masks, objects = result.masks, []
    labels = [None] * len(masks) if masks.labels is None else masks.labels.tolist()
    columns = (masks.to_rle(), result.iou_scores, result.object_scores, masks.boxes, masks.areas, labels)
    for object_id, rle, iou_score, object_score, (x0, y0, x1, y1), area, label in zip(
        result.object_ids, *columns, strict=True
    ):
        entry: dict[str, Any] = {
            "object_id": json_id(object_id),
            "segmentation": rle,
            "iou_score": float(iou_score),
            "object_score": float(object_score),
            "bbox": [float(x0), float(y0), float(x1 - x0), float(y1 - y0)],
            "area": int(area),
        }
        if label is not None:
            entry["label"] = label
        objects.append(entry)
    return json.dumps({"frame": result.index, "time": result.time, "objects": objects}, ensure_ascii=False, default=str)


def json_id(object_id: Hashable) -> Hashable:
    """An id as JSON holds it: numpy's whole numbers are numbers; infinity, which JSON does not have, is text."""
    if isinstance(object_id, Integral) and not isinstance(object_id, bool):
        return int(object_id)
    return str(object_id) if isinstance(object_id, float) and not math.isfinite(object_id) else object_id


def naming(path: Path | str) -> AbstractContextManager[None]:
    """Turn errors of the file system and of PyAV into a VideoError that names the path."""
    return atomic.naming(path, VideoError, av.FFmpegError)
