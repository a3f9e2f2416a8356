"""``kill -9`` at random moments of tracking, training, batch and serving: nothing is lost, and results are identical.

Each process is forked from one that has imported everything, so that most kills hit work and not imports. A run that
is killed is started again until it ends. It must not lose what it had saved, and must give what an uninterrupted run
gives.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image

from soak.network import moving_rectangles, tiny_segmenter
from soak.outcome import Outcome

KILLS = 100
"""Of each kind of work."""
PATIENCE = 600
SECONDS_PER_SERVER_KILL = 8
FRAMES, IMAGES = 150, 30
FORKS = multiprocessing.get_context("forkserver")
PRELOADED = ["torch", "pandas", "accelerate", "masklet.cli", "masklet.training.run", "masklet.batch.runs", __name__]


@dataclass
class Work:
    """Something that is killed.

    Attributes:
        name: Its name.
        run: Works in an output folder, or goes on with what is there.
        saved: How much is saved in that folder.
        result: What the finished work gave.
    """

    name: str
    run: Callable[[Path], None]
    saved: Callable[[Path], int]
    result: Callable[[Path], Any]


def run(seconds: float, seed: int, folder: Path) -> Outcome:
    """Kills each kind of work, for a quarter of the time or as often as wanted."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    tiny_segmenter().model.save_pretrained(folder / "model")
    FORKS.set_forkserver_preload(PRELOADED)
    figures, failures = {}, []
    for work in (tracking(folder), training(folder), batch(folder)):
        figures[work.name] = kill_often(work, seconds / 4, random.Random(f"{seed} {work.name}"), folder, failures)
        print(f"  {work.name}: {figures[work.name]}", flush=True)
    figures["serving"] = kill_servers(seconds / 4, failures)
    return Outcome(figures, failures)


def kill_often(
    work: Work, seconds: float, moments: random.Random, folder: Path, failures: list[str]
) -> dict[str, float]:
    """Kills the work again and again."""
    finished(work, folder / f"{work.name}-first")  # imports
    start = time.monotonic()
    finished(work, folder / f"{work.name}-whole")
    whole, length = work.result(folder / f"{work.name}-whole"), time.monotonic() - start
    kills = runs = 0
    while kills < KILLS and time.monotonic() < start + seconds:
        out, saved, runs = folder / f"{work.name}-{runs}", 0, runs + 1
        while True:
            process, is_last = started(work, out), kills >= KILLS or time.monotonic() > start + seconds
            process.join(PATIENCE if is_last else moments.uniform(0, length))
            if process.exitcode is not None:
                break
            process.kill()
            process.join()
            kills += 1
            if (now := work.saved(out)) < saved:
                failures.append(f"{work.name}: {saved} were saved, and {now} after kill {kills}; {out}")
            if now == saved:  # the machine has become slower
                length *= 1.1
            saved = now
        if process.exitcode or not same(work.result(out), whole):
            failures.append(f"{work.name}: rc {process.exitcode}, or another result, after kill {kills}; {out}")
        else:
            shutil.rmtree(out)
    return {"kills": kills, "runs": runs, "seconds of a run": round(length, 1)}


def started(work: Work, out: Path) -> Any:
    """The work in a process of its own."""
    process = FORKS.Process(target=_quietly, args=(work.run, out))
    process.start()
    return process


def finished(work: Work, out: Path) -> None:
    """Runs the work without a kill."""
    process = started(work, out)
    process.join(PATIENCE)
    assert process.exitcode == 0, f"{work.name} ended with {process.exitcode}: see {out}.log"


def _quietly(work: Callable[[Path], None], out: Path) -> None:
    log = os.open(f"{out}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    torch.set_num_threads(1)
    work(out)


def same(one: Any, other: Any) -> bool:
    """Whether nested values are equal, tensors and tables bit by bit."""
    if isinstance(one, torch.Tensor):
        return one.equal(other)
    if isinstance(one, pd.DataFrame):
        pd.testing.assert_frame_equal(one, other, check_exact=True)
        return True
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


# Tracking: a session that saves itself


def tracking(folder: Path) -> Work:
    """Two objects with a correction."""
    clip = folder / "clip"
    clip.mkdir()
    for index, image in enumerate(moving_rectangles(FRAMES)):
        Image.fromarray(image).save(clip / f"{index:03}.png")
    return Work("tracking", partial(_track, folder), _tracked, _lines)


def _track(folder: Path, out: Path) -> None:
    out.mkdir(exist_ok=True)
    sam, file = tiny_segmenter(), out / "session"
    saving: dict[str, Any] = {"autosave": 0.05, "autosave_to": file}
    if file.exists():
        session = sam.resume(file)
        results = session.resume_tracking(**saving)
    else:
        session = sam.video(folder / "clip")
        session.prompt(0, "cup", points=[(10, 20)])
        session.prompt(5, "lid", box=(30, 5, 60, 40))
        session.prompt(5, "cup", points=[(25, 20), (70, 40, 0)])
        results = session.track(**saving)
    for _ in results:
        pass
    session.write(out / "masks.jsonl")


def _tracked(out: Path) -> int:
    file = out / "session"
    return len(tiny_segmenter().resume(file).tracked_frames) if file.exists() else 0


def _lines(out: Path) -> list[str]:
    return (out / "masks.jsonl").read_text().splitlines()


# Training: a run that is started again


def training(folder: Path) -> Work:
    """The decoder of the tiny network, on four images."""
    for index in range(4):
        pixels, labels = moving_rectangles(index + 1)[index], np.zeros((48, 80), np.uint8)
        labels[10:32, 4 + 3 * index :][:, :20] = 1
        for kind, array in (("images", pixels), ("masks", labels)):
            (folder / "data" / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(folder / "data" / kind / f"{index}.png")
    return Work("training", partial(_train, folder), _steps, _state)


def _train(folder: Path, out: Path) -> None:
    from masklet.training import train

    values = {
        "model": str(folder / "model"),
        "data": {"layout": "folder", "path": str(folder / "data"), "validation": 0.25},
        "stages": [{"steps": 60, "batch_size": 2, "objects": 1, "rounds": 1, "train": "decoder"}],
        "save_every": 5,
        "validate_every": 30,
    }
    train(values, out, device="cpu")


def _state(out: Path) -> Any:
    return torch.load(out / "state.pt", weights_only=True)


def _steps(out: Path) -> int:
    return int(_state(out)["step"]) if (out / "state.pt").exists() else 0


# Batch: a run that is started again


def batch(folder: Path) -> Work:
    """Automatic masks of images of noise."""
    (folder / "images").mkdir()
    for index in range(IMAGES):
        pixels = np.random.default_rng(index).integers(0, 255, (40, 56, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{index}.png")
    return Work("batch", partial(_segment, folder), _parts, _table)


def _segment(folder: Path, out: Path) -> None:
    from masklet.batch.runs import Run
    from masklet.batch.tasks import make_task

    options = {"points_per_side": 2, "iou_threshold": 0, "stability_threshold": 0, "box_nms": 2}
    task = make_task("everything", options)
    for _ in Run(str(folder / "images"), str(out), task, model={"name": str(folder / "model")}, block=2)():
        pass


def _parts(out: Path) -> int:
    return len(list((out / "masks").glob("*.parquet")))


def _table(out: Path) -> pd.DataFrame:
    rows = pd.read_parquet(out / "masks").sort_values(["input", "object"])
    return rows.reset_index(drop=True)


# Serving


def kill_servers(seconds: float, failures: list[str]) -> dict[str, float]:
    """The test of the suite, with as many kills as the time allows: each is a start of the server."""
    kills = max(2, min(KILLS, int(seconds / SECONDS_PER_SERVER_KILL)))
    test = "tests/serve/test_faults.py::test_a_server_killed_at_random_moments_has_every_acknowledged_mask"
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", test]
    environment, start = os.environ | {"MASKLET_TEST_KILLS": str(kills)}, time.monotonic()
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        failures.append(f"serving: MASKLET_TEST_KILLS={kills} {' '.join(command[1:])}: {done.stdout[-1000:]}")
    return {"kills": kills, "seconds": round(time.monotonic() - start)}
