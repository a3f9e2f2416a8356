"""Peak resident memory of following two objects through a short and a long video, each in a process of its own.

    python benchmarks/video_memory.py [--model FOLDER] [--frames 200 2000] [--size 320 240] [--json memory.json]

"file" is ``video`` of an MP4, which keeps every past mask packed for a rewind, in memory up to a limit and on disk
beyond it; "stream" is ``stream`` of frames that are made as they are pushed. Frames are synthetic and never held
together; the MP4 is written before, by another process. So what grows with the video is masklet's, and over 50 MB is a
failure.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from common import device_name, peak_mb, report
from rich.table import Table

import masklet
from masklet.video.writer import VideoWriter

KINDS = ("file", "stream")
LIMIT_MB = 50
"""What the longest video may take more than the shortest."""


def moving_squares(count: int, size_wh: tuple[int, int]) -> Iterator[np.ndarray]:
    """A yellow and a blue square that cross a noisy image, for ever."""
    width, height = size_wh
    back = np.random.default_rng(0).integers(0, 90, (height, width, 3), dtype=np.uint8)
    side = height // 4
    for index in range(count):
        frame = back.copy()
        right, left = (2 * index) % (width - side), (width - side) - (3 * index) % (width - side)
        frame[side // 2 : side // 2 + side, right : right + side] = (240, 200, 40)
        frame[-2 * side : -side, left : left + side] = (30, 90, 220)
        yield frame


def prompts_for(size_wh: tuple[int, int]) -> dict[str, dict[str, list | tuple]]:
    width, height = size_wh
    side = height // 4
    return {
        "yellow": {"points": [(side // 2, side)]},
        "blue": {"box": (width - side, height - 2 * side, width, height - side)},
    }


def follow(video: Path | None, frames: int, model: str | None, size_wh: tuple[int, int]) -> dict[str, float]:
    """What the subprocess does: follow through a file, or, if there is none, through a stream."""
    sam, prompts = masklet.load(model), prompts_for(size_wh)
    start, seen, visible = time.perf_counter(), 0, 0
    for result in followed(sam, video, prompts) if video else pushed(sam, moving_squares(frames, size_wh), prompts):
        seen += 1
        visible += int(result.visible.sum())
    assert seen == frames
    seconds = time.perf_counter() - start
    return {"frames": frames, "peak_mb": peak_mb(), "seconds": seconds, "visible": visible / (frames * len(prompts))}


def followed(sam: masklet.Segmenter, video: Path, prompts: dict) -> Iterator[masklet.FrameResult]:
    session = sam.video(video)
    for name, prompt in prompts.items():
        session.prompt(0, name, **prompt)
    yield from session.track()


def pushed(sam: masklet.Segmenter, frames: Iterator[np.ndarray], prompts: dict) -> Iterator[masklet.FrameResult]:
    live = sam.stream()
    for index, frame in enumerate(frames):
        yield live.push(frame, prompts if index == 0 else None)


def measure(kind: str, frames: int, args: argparse.Namespace) -> dict[str, float]:
    command = [sys.executable, __file__, "--size", *map(str, args.size), "--frames", str(frames)]
    command += ["--model", args.model] if args.model else []
    with tempfile.TemporaryDirectory() as folder:
        video = Path(folder, "squares.mp4")
        if kind == "file":
            with VideoWriter(video) as out:
                for frame in moving_squares(frames, tuple(args.size)):
                    out.write(frame)
        command += ["--only", str(video) if kind == "file" else "stream"]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    result = json.loads(done.stdout.splitlines()[-1])
    print(
        f"{kind}, {frames} frames: {result['peak_mb']:.1f} MB, {result['seconds']:.0f} s", file=sys.stderr, flush=True
    )
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="name, folder or .pt file; the embedded model if not given")
    parser.add_argument("--frames", type=int, nargs="+", default=[200, 2000], help="lengths of the videos")
    parser.add_argument("--size", type=int, nargs=2, default=[320, 240], metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", help=argparse.SUPPRESS)  # in a subprocess: a file, or "stream"
    args = parser.parse_args()
    if args.only:
        video = None if args.only == "stream" else Path(args.only)
        print(json.dumps(follow(video, args.frames[0], args.model, tuple(args.size))))
        return 0

    lengths = sorted(set(args.frames))
    results = {kind: [measure(kind, frames, args) for frames in lengths] for kind in args.kinds}
    setting = {
        "model": args.model or "embedded",
        "size": "×".join(map(str, args.size)),
        "objects": 2,
        "threads": torch.get_num_threads(),
        "machine": device_name(),
        "masklet": masklet.__version__,
        "torch": torch.__version__,
    }
    grown = {kind: rows[-1]["peak_mb"] - rows[0]["peak_mb"] for kind, rows in results.items()}
    table = Table("kind", "frames", "peak (MB)", f"more than {lengths[0]} frames", "visible", "s/frame")
    for kind, rows in results.items():
        for row in rows:
            more, pace = row["peak_mb"] - rows[0]["peak_mb"], row["seconds"] / row["frames"]
            numbers = (f"{row['peak_mb']:.1f}", f"{more:+.1f}", f"{row['visible']:.0%}", f"{pace:.3f}")
            table.add_row(kind, str(row["frames"]), *numbers)
    report(table, setting, {"kinds": results, "grown_mb": grown}, args.json)
    for kind, more in grown.items():
        verdict = f"{'within' if more <= LIMIT_MB else 'OVER'} the limit of {LIMIT_MB} MB"
        print(f"{kind}: {lengths[-1]} frames take {more:+.1f} MB beside {lengths[0]}, {verdict}")
    return int(max(grown.values()) > LIMIT_MB)


if __name__ == "__main__":
    sys.exit(main())
