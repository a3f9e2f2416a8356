"""A video tracked through exported graphs and with torch: do differences add up over 300 frames?

    python benchmarks/export_video.py VIDEO [--model nano] [--precision fp32] [--frames 300] [--exports FOLDER]
        [--json FILE]

VIDEO is ``demo/data/gallery/01_dog.mp4`` of facebookresearch/sam2 (Apache-2.0), to which the prompts belong: two
objects in frame 0, a correction in frame 90 once 100 frames are tracked, and an object that is added in frame 100. It
has 289 frames: after the last one it is played backwards. torch is the eager engine in float32.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import onnxruntime
from common import report, setting
from PIL import Image
from rich.table import Table

import masklet
from masklet.evaluation.agreement import region_j
from masklet.export import to_onnx
from masklet.video.frame_result import FrameResult
from masklet.video.frames import open_video

FIRST_PART = 100
"""Frames that are tracked before the correction."""


def there_and_back(video: Path, folder: Path, count: int) -> list[Path]:
    """The frames of a video as files: forwards, then backwards, and so on, until there are enough."""
    paths = []
    for frame in open_video(video).frames(0, count):
        paths.append(folder / f"{frame.index:05}.jpg")
        Image.fromarray(frame.image).save(paths[-1], quality=95)
    order = [*range(len(paths)), *range(len(paths) - 2, 0, -1)]
    return [paths[order[index % len(order)]] for index in range(count)]


def track(sam: Any, frames: Sequence[Path]) -> Iterator[FrameResult]:
    """The woman and the dog, a correction of the woman, and later the far doorway. Frames 91 to 99 come twice."""
    video = sam.video(frames)
    video.prompt(0, "woman", box=(235, 210, 475, 560))
    video.prompt(0, "dog", box=(455, 370, 710, 550))
    yield from video.track(end=FIRST_PART - 1)
    video.prompt(FIRST_PART - 10, "woman", points=[(375, 428)])
    video.prompt(FIRST_PART, "doorway", box=(870, 70, 1025, 240))
    yield from video.track(start=FIRST_PART - 9)


def agreement(sides: Sequence[Any], frames: Sequence[Path]) -> dict[str, dict[str, float]]:
    """By object, the IoU of the masks of both sides over all frames, and in how many frames torch sees it."""
    ious: dict[str, list[float]] = {}
    visible: dict[str, int] = {}
    for ours, theirs in zip(*(track(sam, frames) for sam in sides), strict=True):
        assert (ours.index, ours.object_ids) == (theirs.index, theirs.object_ids)
        for name, one, other, is_visible in zip(
            map(str, ours.object_ids), ours.masks.masks, theirs.masks.masks, theirs.visible, strict=True
        ):
            ious.setdefault(name, []).append(region_j(one, other))
            visible[name] = visible.get(name, 0) + bool(is_visible)
        print(ours.index, {name: round(found[-1], 5) for name, found in ious.items()}, flush=True)
    return {
        name: {
            "lowest IoU": min(found),
            "mean IoU": statistics.mean(found),
            "masks": len(found),
            "visible": visible[name],
        }
        for name, found in ious.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("video", type=Path)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--frames", type=int, default=300)
    parser.add_argument("--exports", type=Path, help="Keeps the exports, by precision, and uses those that it holds.")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (args.exports or Path(temporary)) / args.precision
        if not folder.exists():
            to_onnx(args.model, folder, precision=args.precision, check=False)
        frames = there_and_back(args.video, Path(temporary), args.frames)
        exported = masklet.load(folder, engine="onnx", threads=1)
        eager = masklet.load(args.model, device="cpu", dtype="float32", engine="eager")
        results = agreement((exported, eager), frames)
    table = Table("object", "lowest IoU", "mean IoU", "masks", "visible in")
    for name, row in results.items():
        table.add_row(
            name, f"{row['lowest IoU']:.5f}", f"{row['mean IoU']:.6f}", str(row["masks"]), str(row["visible"])
        )
    conditions = setting(
        onnxruntime=onnxruntime.__version__, model=args.model, precision=args.precision, video=args.video.name
    )
    report(table, conditions, results, args.json)


if __name__ == "__main__":
    main()
