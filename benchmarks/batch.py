"""What masklet batch costs beside a plain loop, how it grows with workers, and that its memory does not.

    python benchmarks/batch.py [--images 48] [--rounds 3] [--many 10000] [--frames 20000] [--only NAME] [--json FILE]

- overhead: seconds an image of a run in this process, beside ``sam.everything`` in a loop, image by image in turn.
- workers: images/s and frames/s on Ray with 1 and 2 workers of one thread each, from the first result to the last.
- memory: peak memory of a worker after 100 small images and after --many, and along a video of --frames frames.

The embedded model, on the processor. Times are medians of rounds; above 1, a ratio favours masklet batch.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from common import device_name, peak_mb
from PIL import Image

import masklet
from masklet.batch.prompt_files import PromptTable
from masklet.batch.runs import Run
from masklet.batch.tasks import make_task
from masklet.cluster.connection import LOCAL, connect_data
from masklet.cluster.runs import Cluster
from masklet.video.writer import VideoWriter

GRID = {"points_per_side": 8}
STARTING_S = 20
"""Ray's own processes need the processor for some seconds after they have started."""


def write_images(folder: Path, count: int, size_hw: tuple[int, int]) -> None:
    """Images of noise in blocks, of which there are masks."""
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(count):
        small = random.integers(0, 255, (size_hw[0] // 16, size_hw[1] // 16, 3), dtype=np.uint8)
        Image.fromarray(small.repeat(16, 0).repeat(16, 1)).save(folder / f"{number:06}.png")


def write_video(path: Path, frames: int, size_hw: tuple[int, int]) -> None:
    wide = np.random.default_rng(0).integers(0, 255, (size_hw[0] // 16, size_hw[1] // 8, 3), dtype=np.uint8)
    wide = wide.repeat(16, 0).repeat(16, 1)
    with VideoWriter(path) as writer:
        for number in range(frames):
            place = abs(number % (2 * size_hw[1]) - size_hw[1])
            writer.write(np.ascontiguousarray(wide[:, place : place + size_hw[1]]))


def rate(run: Run, execute: Cluster) -> float:
    """Images or frames per second from the first result to the last."""
    first = None
    for progress in run(execute):
        if first is None and progress.frames:
            first = progress.seconds, progress.frames
    assert first is not None
    assert not progress.failed
    return (progress.frames - first[1]) / (progress.seconds - first[0])


def overhead(folder: Path, images: int) -> dict[str, float]:
    """The same images in a plain loop and in a run, image by image in turn, so that other work disturbs both alike.

    Without the first image, before which the run loads the model. In seconds of processor time.
    """
    write_images(folder / "images", images, (240, 320))
    sam = masklet.load(device="cpu")
    task, model = make_task("everything", GRID), {"device": "cpu"}
    progress = Run(str(folder / "images"), str(folder / "out"), task, model=model, block=1)()
    next(progress)  # before the first image
    plain, ours = [], []
    for path in sorted((folder / "images").iterdir()):
        start = time.process_time()
        sam.everything(path, packed=True, **GRID)
        between = time.process_time()
        next(progress)
        plain.append(between - start)
        ours.append(time.process_time() - between)
    return {
        "plain loop, s/image": statistics.mean(plain[1:]),
        "masklet batch, s/image": statistics.mean(ours[1:]),
        "ratio": sum(plain[1:]) / sum(ours[1:]),
        "first image, s": ours[0],
    }


def workers(folder: Path, images: int, rounds: int) -> dict[str, float]:
    """One and two workers on Ray, in turn."""
    write_images(folder / "images", images, (240, 320))
    (folder / "videos").mkdir()
    for number in range(6):
        write_video(folder / f"videos/{number}.mp4", 60, (240, 320))
    prompts = PromptTable()
    prompts.at("", 1, 0).box = (40, 40, 120, 120)
    connect_data(LOCAL)
    time.sleep(STARTING_S)
    rates: dict[str, list[float]] = {}
    for number in range(rounds):
        for count in (1, 2):
            cluster = Cluster(workers=count)
            out = folder / f"out{number}-{count}"
            run = Run(str(folder / "images"), f"{out}-images", make_task("everything", GRID), block=2)
            rates.setdefault(f"images/s, {count} workers", []).append(rate(run, cluster))
            run = Run(str(folder / "videos"), f"{out}-videos", make_task("track"), prompts, chunk_frames=10)
            rates.setdefault(f"frames/s, {count} workers", []).append(rate(run, cluster))
    found = {name: statistics.median(values) for name, values in rates.items()}
    ratios = {
        f"{unit}, 2 workers / 1": found[f"{unit}/s, 2 workers"] / found[f"{unit}/s, 1 workers"]
        for unit in ("images", "frames")
    }
    return found | ratios


def memory(folder: Path, many: int, frames: int) -> dict[str, float]:
    """Peak memory of processes of their own."""
    found = {}
    for kind, count in (("images", 100), ("images", many), ("frames", frames // 10), ("frames", frames)):
        arguments = [sys.executable, __file__, "--measure", kind, str(count)]
        output = subprocess.run(arguments, capture_output=True, text=True, check=True).stdout
        found[f"MB after {count} {kind}"] = float(output.splitlines()[-1])
    return found


def measure(kind: str, count: int) -> None:
    """Prints the peak memory of a run."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = {"resolution": 128, "device": "cpu"}
        if kind == "images":
            write_images(folder / "images", count, (48, 64))
            run = Run(
                str(folder / "images"),
                str(folder / "out"),
                make_task("everything", {"points_per_side": 2}),
                model=model,
            )
        else:
            (folder / "videos").mkdir()
            write_video(folder / "videos/a.mp4", count, (48, 64))
            prompts = PromptTable()
            prompts.at("", 1, 0).box = (8, 8, 30, 30)
            run = Run(str(folder / "videos"), str(folder / "out"), make_task("track"), prompts, model)
        for _ in run():
            pass
        print(peak_mb())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--many", type=int, default=10_000)
    parser.add_argument("--frames", type=int, default=20_000)
    parser.add_argument("--only", choices=["overhead", "workers", "memory"])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(options.measure[0], int(options.measure[1]))
        return
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    sections = {
        "overhead": lambda folder: overhead(folder, options.images),
        "workers": lambda folder: workers(folder, options.images, options.rounds),
        "memory": lambda folder: memory(folder, options.many, options.frames),
    }
    results = {}
    for name, section in sections.items():
        if options.only in (None, name):
            with tempfile.TemporaryDirectory() as folder:
                results[name] = section(Path(folder))
            print(f"{name}: {json.dumps(results[name])}", flush=True)
    if options.json:
        options.json.write_text(json.dumps({"machine": device_name("cpu"), "results": results}, indent=2))


if __name__ == "__main__":
    main()
