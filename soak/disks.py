"""Full disks and read-only folders wherever something is written: a clear error, and older files stay as they were.

A disk that is full after so many bytes is a limit on the size of files (``RLIMIT_FSIZE``). Neither that nor a read-only
folder needs any rights. Every case is a process of its own.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from starlette.testclient import TestClient

import masklet.training.run  # noqa: F401  # before a process becomes a user who cannot read packages
from masklet.segmenter import Segmenter
from masklet.serve.app import create_app
from masklet.serve.settings import Settings
from masklet.video.writer import VideoWriter
from soak.kills import batch, training
from soak.network import moving_rectangles, tiny_segmenter
from soak.outcome import Outcome, described, is_clear

LIMITS = (0, 1, 100, 1000, 4096, 20_000, 200_000)
"""Bytes that fit into a file."""
READ_ONLY = -1
NOBODY = 65534
OLD = b"what was there before"
PATIENCE = 600
FORKS = multiprocessing.get_context("fork")


def run(seconds: float, seed: int, folder: Path) -> Outcome:
    """Every writer under every limit."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    folder.chmod(0o755)
    all_writers = writers(folder)
    until, counts, failures = time.monotonic() + seconds, Counter(), []
    for (name, write), limit in product(all_writers.items(), (READ_ONLY, *LIMITS)):
        if time.monotonic() < until:
            outcome, problem = attempt(folder / f"{name} {limit}", write, limit)
            counts[outcome] += 1
            if problem:
                failures.append(f"{name}, {'read-only' if limit == READ_ONLY else f'{limit} bytes'}: {problem}")
    return Outcome({"writers": len(all_writers), **counts}, failures)


def attempt(out: Path, write: Callable[[Path], None], limit: int) -> tuple[str, str]:
    """(what happened, what is wrong with it) when something is written into a folder that is full or read-only."""
    out.mkdir()
    old = out / "old.txt"
    old.write_bytes(OLD)
    receive, send = FORKS.Pipe(duplex=False)
    process = FORKS.Process(target=_limited, args=(out, write, limit, send))
    process.start()
    send.close()
    if not receive.poll(PATIENCE):
        process.kill()
        return "hangs", "no answer"
    try:
        outcome, problem = receive.recv()
    except EOFError:
        process.join()
        return "ended the process", f"exit status {process.exitcode}"
    process.join()
    left = [str(path.relative_to(out)) for path in out.rglob("*") if ".part" in path.name or "unfinished" in path.name]
    if old.read_bytes() != OLD or (outcome != "written" and left):
        problem = f"{problem} old file changed, or left behind: {left}".strip()
    return outcome, problem


def _limited(out: Path, write: Callable[[Path], None], limit: int, answer: Any) -> None:
    """Writes under the limit, and sends what came of it."""
    if limit == READ_ONLY:
        out.chmod(0o555)
        if os.geteuid() == 0:  # who may write everywhere
            os.setuid(NOBODY)
    else:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        tempfile.tempdir = str(out)
    outcome, problem = "written", ""
    try:
        write(out)
    except Exception as error:
        names_file = isinstance(error, OSError) and error.filename is not None
        outcome, problem = "refused", "" if is_clear(error) or names_file else described(error)
    answer.send((outcome, problem))


def writers(folder: Path) -> dict[str, Callable[[Path], None]]:
    """Everything that writes, by name."""
    sam, frames = tiny_segmenter(), moving_rectangles(4)
    sam.model.save_pretrained(folder / "model")
    image = sam.image(frames[0])
    masks = image.predict(points=[[(20, 20)], [(60, 30)]])
    work = {name: make(folder) for name, make in (("batch", batch), ("training", training))}
    for path in [folder / "images", folder / "data"]:
        path.chmod(0o755)
    return {
        **{f"masks.{suffix}": partial(_save, masks, f"m.{suffix}") for suffix in ("png", "npz", "json", "svg")},
        "encoded image": partial(_save, image, "e.safetensors"),
        "model": lambda out: sam.model.save_pretrained(out / "model"),
        "video": partial(_write_video, frames),
        **{f"session {name}": partial(_write_session, sam, frames, name) for name in SESSION_FILES},
        "session": lambda out: _session(sam, frames).save(out / "session"),
        "autosave": lambda out: list(_session(sam, frames).track(autosave=0, autosave_to=out / "session")),
        "server": partial(_serve, sam),
        "batch": lambda out: work["batch"].run(out / "run"),
        "training": lambda out: work["training"].run(out / "run"),
    }


SESSION_FILES = ("masks", "masks.jsonl", "masks.mp4", "tracks.xml", "tracks.txt")


def _save(value: Any, name: str, out: Path) -> None:
    value.save(out / name)


def _write_video(frames: list[np.ndarray], out: Path) -> None:
    with VideoWriter(out / "v.mp4", 25) as writer:
        for frame in frames:
            writer.write(frame)


def _session(sam: Segmenter, frames: list[np.ndarray]) -> Any:
    session = sam.video(frames)
    session.prompt(0, 1, points=[(20, 20)])
    return session


def _write_session(sam: Segmenter, frames: list[np.ndarray], name: str, out: Path) -> None:
    session = _session(sam, frames)
    list(session.track())
    if name.startswith("tracks"):
        session.export(out / name, None if name.endswith("xml") else "mots")
    else:
        session.write(out / name)


def _serve(sam: Segmenter, out: Path) -> None:
    app = create_app(Settings(data=out / "data"), sam)
    with TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False) as client:
        reply = client.post("/v1/projects", json={"name": "x"})
        assert reply.status_code in (201, 503, 507), f"{reply.status_code}: {reply.text}"
        assert reply.status_code == 201 or len(reply.json()["detail"]) > 20
