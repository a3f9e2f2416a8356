"""64 threads on one model, its images, videos and streams: results equal those of one thread, bit by bit."""

from __future__ import annotations

import random
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from masklet.segmenter import Segmenter
from soak.network import moving_rectangles, tiny_segmenter
from soak.outcome import Outcome, described

THREADS, ROUNDS = 64, 20


def run(seconds: float, seed: int, folder: Path) -> Outcome:
    """Rounds of work that all threads begin together, each in an order of its own."""
    sam, until = tiny_segmenter(), time.monotonic() + seconds
    tasks = list(range(24))
    serial = {task: result_of(sam, task) for task in tasks}
    failures: list[str] = []
    calls = rounds = 0
    while rounds < ROUNDS and time.monotonic() < until:
        together = threading.Barrier(THREADS)
        orders = [random.Random(f"{seed} {rounds} {number}").sample(tasks, 4) for number in range(THREADS)]
        threads = [
            threading.Thread(target=work, args=(sam, order, serial, together, failures), daemon=True)
            for order in orders
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        rounds, calls = rounds + 1, calls + sum(map(len, orders))
    return Outcome({"threads": THREADS, "rounds": rounds, "results compared": calls}, failures)


def work(
    sam: Segmenter, order: list[int], serial: dict[int, list], together: threading.Barrier, failures: list[str]
) -> None:
    """Does the tasks of a thread."""
    together.wait()
    for task in order:
        try:
            equal = all(map(np.array_equal, result_of(sam, task), serial[task]))
        except Exception as error:
            failures.append(f"task {task} of {order}: {described(error)}")
        else:
            if not equal:
                failures.append(f"task {task} of {order} differs from one thread's result")


def result_of(sam: Segmenter, task: int) -> list[Any]:
    """An image, automatic masks, a video or a stream; the same for the same number."""
    frames = moving_rectangles(4 + task % 3)
    if task % 4 == 0:
        found = sam.image(frames[-1]).predict(points=[[(5 + task, 20)], [(40, 10)]], candidates=True)
        return [found.masks, found.iou_scores]
    if task % 4 == 1:
        every = sam.everything(frames[-1], points_per_side=3, iou_threshold=0, stability_threshold=0)
        return [every.masks, every.iou_scores]
    if task % 4 == 2:
        session = sam.video(frames)
        session.prompt(0, 1, points=[(5 + task, 20)])
        session.prompt(1, 2, box=(10, 5, 40 + task, 40))
        results = list(session.track())
    else:
        stream = sam.stream()
        prompts = {"a": {"points": [(5 + task, 20)]}, "b": {"box": (10, 5, 40 + task, 40)}}
        results = [stream.push(frame, {} if index else prompts) for index, frame in enumerate(frames)]
    return [array for result in results for array in (result.masks.masks, result.iou_scores, result.object_scores)]
