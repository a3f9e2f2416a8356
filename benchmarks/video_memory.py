"""Peak resident memory of following two objects through a short and through a long film, each in a process of its own.

    python benchmarks/video_memory.py [--model FOLDER] [--frames 200 2000] [--size 320 240] [--json memory.json]

Frames are made as they are asked for, so what grows with the film is masklet's. "file" is ``video`` of an iterable,
which keeps every past mask packed for a rewind, in memory up to a limit and on disk beyond it; "stream" is ``stream``.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

import masklet

LIMIT_MB = 50
"""What the long film may take more than the short one."""


def moving_squares(count: int, size_wh: tuple[int, int]) -> Iterator[np.ndarray]:
    """A yellow and a blue square that cross a noisy picture, for ever."""
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


def peak_mb() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)  # bytes there, kilobytes elsewhere


def follow(kind: str, frames: int, model: str | None, size_wh: tuple[int, int]) -> dict[str, float]:
    """What the subprocess does."""
    sam = masklet.load(model)
    film, prompts = moving_squares(frames, size_wh), prompts_for(size_wh)
    start, seen = time.perf_counter(), 0
    if kind == "file":
        session = sam.video(film)
        for name, prompt in prompts.items():
            session.prompt(0, name, **prompt)
        for _ in session.track():
            seen += 1
    else:
        live = sam.stream()
        for index, frame in enumerate(film):
            live.push(frame, prompts if index == 0 else None)
            seen += 1
    assert seen == frames
    return {"frames": frames, "peak_mb": peak_mb(), "seconds": time.perf_counter() - start}


def measure(kind: str, frames: int, args: argparse.Namespace) -> dict[str, float]:
    command = [sys.executable, __file__, "--size", *map(str, args.size), "--only", kind, "--frames", str(frames)]
    command += ["--model", args.model] if args.model else []
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="name, folder or .pt file; the embedded model if not given")
    parser.add_argument("--frames", type=int, nargs="+", default=[200, 2000], help="lengths, shortest first")
    parser.add_argument("--size", type=int, nargs=2, default=[320, 240], metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--kinds", nargs="+", choices=["file", "stream"], default=["file", "stream"])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", choices=["file", "stream"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only:
        print(json.dumps(follow(args.only, args.frames[0], args.model, tuple(args.size))))
        return 0

    results = {kind: [measure(kind, frames, args) for frames in args.frames] for kind in args.kinds}
    setting = {
        "model": args.model or "embedded",
        "size": "×".join(map(str, args.size)),
        "objects": 2,
        "threads": torch.get_num_threads(),
        "machine": platform.processor() or platform.machine(),
        "masklet": masklet.__version__,
        "torch": torch.__version__,
    }
    title = ", ".join(f"{name} {value}" for name, value in setting.items())
    table = Table("kind", "frames", "peak (MB)", "more than the shortest (MB)", "s/frame", title=title)
    for kind, rows in results.items():
        for row in rows:
            more = row["peak_mb"] - rows[0]["peak_mb"]
            table.add_row(
                kind,
                str(row["frames"]),
                f"{row['peak_mb']:.1f}",
                f"{more:+.1f}",
                f"{row['seconds'] / row['frames']:.3f}",
            )
    Console(width=120).print(table)
    if args.json:
        args.json.write_text(json.dumps({"setting": setting, "results": results}, indent=2))
    grown = [kind for kind, rows in results.items() if rows[-1]["peak_mb"] - rows[0]["peak_mb"] > LIMIT_MB]
    for kind in grown:
        print(f"{kind}: the longest film took over {LIMIT_MB} MB more than the shortest", file=sys.stderr)
    return 1 if grown else 0


if __name__ == "__main__":
    sys.exit(main())
