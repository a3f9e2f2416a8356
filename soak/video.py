"""A video of 20,000 frames with 16 objects, prompts and corrections on the way: memory stays flat.

The process's memory and the bytes that the session counts are read every 500 frames. Results of past frames grow by a
few numbers for each object and frame, and their masks lie in a file.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from masklet.video.session import VideoSession
from masklet.video.writer import VideoWriter
from soak.network import moving_rectangles, tiny_segmenter
from soak.outcome import Outcome

FRAMES, OBJECTS = 20_000, 16
EVERY = 500
SETTLED = 3000
"""Frames after which masks lie in a file, and memory no longer grows."""
MOST_GROWTH = 60 * 10**6
"""Bytes for the numbers of 20,000 frames, and what the allocator does not give back."""


def run(seconds: float, seed: int, folder: Path) -> Outcome:
    """Tracks until the video or the time ends; every 500 frames a prompt or a correction."""
    folder.mkdir(parents=True, exist_ok=True)
    path, moments = folder / "long.mp4", random.Random(seed)
    write_video(path)
    torch.set_num_threads(1)
    session = tiny_segmenter().video(path)
    measured: dict[int, tuple[int, int]] = {}
    frame, until = 0, time.monotonic() + seconds
    for number in range(OBJECTS // 2):
        prompt_anywhere(session, 0, number, moments)
    results = session.track()
    while (last := pass_frames(results, EVERY)) is not None and time.monotonic() < until:
        frame = last
        results.close()
        measured[frame] = (resident_bytes(), session.memory_bytes())
        print(f"  frame {frame}: {measured[frame][0] / 1e6:.0f} MB, counted {measured[frame][1] / 1e6:.1f}", flush=True)
        prompt_anywhere(session, frame - moments.randrange(3), moments.randrange(OBJECTS), moments)
        results = session.resume_tracking()
    settled = [values for at, values in measured.items() if at >= SETTLED] or [(0, 0)]
    growth = settled[-1][0] - settled[0][0], settled[-1][1] - settled[0][1]
    failures = [f"memory grew by {grown} bytes: seed {seed}, {measured}" for grown in growth if grown > MOST_GROWTH]
    figures = {
        "frames": frame + 1,
        "objects": len(session.object_ids),
        "prompts and corrections": OBJECTS // 2 + len(measured),
        "MB after settling": round(settled[0][0] / 1e6),
        "MB at the end": round(settled[-1][0] / 1e6),
        "counted MB after settling": round(settled[0][1] / 1e6, 2),
        "counted MB at the end": round(settled[-1][1] / 1e6, 2),
    }
    return Outcome(figures, failures)


def write_video(path: Path) -> None:
    """Rectangles that move, again and again."""
    frames = moving_rectangles(60)
    with VideoWriter(path, 25) as writer:
        for index in range(FRAMES):
            writer.write(frames[index % len(frames)])


def prompt_anywhere(session: VideoSession, frame: int, number: int, moments: random.Random) -> None:
    """A click or a box for an object, new or known."""
    x, y = moments.uniform(0, 60), moments.uniform(0, 30)
    prompt = {"points": [(x, y)]} if moments.random() < 0.5 else {"box": (x, y, x + 20, y + 18)}
    session.prompt(frame, number, **prompt)


def pass_frames(results: Iterator, count: int) -> int | None:
    """Tracks so many frames; the number of the last one."""
    last = None
    for result in islice(results, count):
        assert np.isfinite(result.iou_scores).all()
        last = result.index
    return last


def resident_bytes() -> int:
    """What the process takes in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
