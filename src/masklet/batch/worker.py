"""A worker process: loads the model once, and makes parts of the results from blocks of inputs."""

from __future__ import annotations

import io
import json
import os
import socket
import tempfile
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import sha256
from itertools import islice
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np
from PIL import Image

from masklet.batch.inputs import Input, digest_of
from masklet.batch.parts import FOLDER, Done, frame_rows, rows_of, write_part
from masklet.batch.prompt_files import ObjectPrompt
from masklet.batch.storage import Storage
from masklet.batch.tasks import ImageTask, Task, VideoTask
from masklet.errors import MaskletError
from masklet.video.journal import forget_tracked

if TYPE_CHECKING:
    from masklet.results import Masks
    from masklet.segmenter import Segmenter
    from masklet.video.frame_result import FrameResult
    from masklet.video.session import VideoSession

SESSIONS = ".sessions"
"""Folder of the sessions of videos that are not finished."""


@dataclass(frozen=True)
class Work:
    """What every worker of a run needs to know."""

    out: str
    """Address of the folder of the results."""
    task: Task
    settings: str
    """Identifies the task, the model and the version."""
    model: Mapping[str, Any]
    """Arguments of ``masklet.load``."""
    chunk_frames: int = 1000
    """Frames of a video between two savings."""
    png: bool = False
    """Whether each mask is written as a PNG, too."""


@dataclass(frozen=True)
class Block:
    """Inputs that are made into one part, each with its prompts."""

    inputs: list[Input]
    prompts: list[list[ObjectPrompt]]

    def name(self, settings: str) -> str:
        """Name of its part. No other block has it, and a block that is done again has the same."""
        text = "\n".join([settings, *(one.name for one in self.inputs)])
        return f"{FOLDER}/part-{sha256(text.encode()).hexdigest()[:24]}.parquet"


@dataclass
class Report:
    """What was done for a part: a block of images, or a chunk of a video."""

    done: int = 0
    failed: int = 0
    share: float = 0.0
    """Inputs that were worked on; of a video, the share of its frames."""
    earlier: float = 0.0
    """Share of a video that an earlier run or another worker has done."""
    frames: int = 0
    masks: int = 0
    seconds: float = 0.0
    worker: str = field(default_factory=lambda: f"{socket.gethostname()}:{os.getpid()}")
    failures: dict[str, str] = field(default_factory=dict)


class Worker:
    """Makes parts. It keeps nothing between two blocks but the model."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.storage = Storage(work.out)

    @cached_property
    def sam(self) -> Segmenter:
        """The model."""
        import masklet

        return masklet.load(**self.work.model)

    def __call__(self, block: Block) -> Iterator[Report]:
        """Makes the part of a block; of a video, a part for each chunk of its frames. Yields a report for each part.

        Inputs that cannot be processed are recorded with the reason. What is wrong with the storage is raised.
        """
        start = perf_counter()
        for report in self._reports(block, self.work.task):
            now = perf_counter()
            report.seconds, start = now - start, now
            yield report

    def _reports(self, block: Block, task: Task) -> Iterator[Report]:
        if isinstance(task, ImageTask):
            yield self._images(block, task)
            return
        for one, prompts in zip(block.inputs, block.prompts, strict=True):
            yield from self._video(one, prompts, task)

    def _images(self, block: Block, task: ImageTask) -> Report:
        report = Report(share=len(block.inputs))
        rows: list[dict[str, Any]] = []
        done: list[Done] = []
        for one, prompts in zip(block.inputs, block.prompts, strict=True):
            done_with = Done(one.name, "", "", digest_of_prompts(prompts))
            try:
                stamp, content = one.stamp(), one.read()
                done_with = replace(done_with, stamp=stamp, digest=digest_of(content))
                file = io.BytesIO(content)
                file.name = one.name  # for messages
                masks, ids = task.segment(self.sam, file, prompts)
                found = rows_of(one.name, masks, ids)
            except Exception as error:  # whatever is wrong with an input must not stop the others
                done.append(_failed(done_with, error, report))
                continue
            if self.work.png:
                self._write_pngs(f"png/{one.name}", masks, ids)
            rows += found
            height, width = masks.masks.shape[-2:]
            done.append(replace(done_with, masks=len(found), height=height, width=width))
            report.done += 1
            report.frames += 1
            report.masks += len(found)
        write_part(self.storage, block.name(self.work.settings), rows, done, self.work.settings)
        return report

    def _video(self, one: Input, prompts: Sequence[ObjectPrompt], task: VideoTask) -> Iterator[Report]:
        done = Done(one.name, "", "", digest_of_prompts(prompts))
        part = Block([one], [[]]).name(self.work.settings).removesuffix(".parquet")
        failure = f"{part}-failed.parquet"
        covered = 0.0
        try:
            done = replace(done, stamp=one.stamp())
            with one.as_file() as path:
                done = replace(done, digest=digest_of(path))
                for report in self._track(path, prompts, task, done, part):
                    covered += report.share + report.earlier
                    if report.done:
                        self.storage.remove(failure)
                    yield report
        except Exception as error:
            report = Report(share=1 - covered)
            write_part(self.storage, failure, [], [_failed(done, error, report)], self.work.settings)
            yield report

    def _track(
        self, path: Path, prompts: Sequence[ObjectPrompt], task: VideoTask, done: Done, part: str
    ) -> Iterator[Report]:
        """Tracks a video chunk by chunk, from where it was saved. The session is saved after each chunk's part.

        There is a report for each chunk, also for earlier ones: when a worker dies, Ray counts what another one
        yields for the same video, and leaves out as many reports as it has seen.
        """
        key = sha256(f"{part}{done.digest}{done.prompts}".encode()).hexdigest()[:24]
        chunk, session, results = self._open(path, prompts, task, key)
        size = self.work.chunk_frames if task.can_continue else None
        step = (size or 0) / task.frames(session)
        with closing(results):
            for number in range(chunk):
                yield Report(earlier=_share(number, step))
            while True:
                rows: list[dict[str, Any]] = []
                frames = 0
                for result in islice(results, size):
                    rows += self._frame_rows(done.name, result)
                    frames += 1
                is_last = size is None or frames < size
                this = replace(done, masks=len(rows), frames=frames, chunk=chunk, is_last=is_last)
                write_part(self.storage, f"{part}-{chunk:06}.parquet", rows, [this], self.work.settings)
                if is_last:
                    break
                self._save(session, key, chunk + 1)
                yield Report(share=_share(chunk, step), frames=frames, masks=len(rows))
                chunk += 1
        self._forget(key, chunk + 1)
        yield Report(done=1, share=1 - min(1, chunk * step), frames=frames, masks=len(rows))

    def _open(
        self, path: Path, prompts: Sequence[ObjectPrompt], task: VideoTask, key: str
    ) -> tuple[int, VideoSession, Generator[FrameResult]]:
        """The chunk that comes next, the session and the results from there."""
        saved = self.storage.names(f"{SESSIONS}/{key}-*.session")
        if not saved:
            session = task.open(self.sam, path)
            return 0, session, task.start(session, prompts)
        with self.storage.local_copy(saved[-1]) as file:
            session = self.sam.resume(file, path)
        return int(saved[-1][-14:-8]), session, session.resume_tracking(packed=True)

    def _save(self, session: VideoSession, key: str, chunk: int) -> None:
        forget_tracked(session)  # the parts hold the results
        with tempfile.TemporaryDirectory(prefix="masklet-") as folder:
            session.save(file := Path(folder) / "session")
            self.storage.upload(file, f"{SESSIONS}/{key}-{chunk:06}.session")
        self._forget(key, chunk)

    def _forget(self, key: str, before: int) -> None:
        """Removes the sessions that were saved before a chunk."""
        for name in self.storage.names(f"{SESSIONS}/{key}-*.session"):
            if int(name[-14:-8]) < before:
                self.storage.remove(name)

    def _frame_rows(self, name: str, result: FrameResult) -> list[dict[str, Any]]:
        if self.work.png:
            self._write_pngs(f"png/{name}/{result.index:06}", result.masks, result.object_ids)
        return frame_rows(name, result)

    def _write_pngs(self, folder: str, masks: Masks, objects: Sequence[Any]) -> None:
        """A black and white image for each mask, named after its object. Those of earlier runs are removed."""
        old = set(self.storage.names(f"{folder}/*.png"))
        for mask, object_id in zip(masks, objects, strict=True):
            image = Image.fromarray(mask.masks[0].astype(np.uint8) * 255)
            image.save(content := io.BytesIO(), "PNG")
            name = f"{folder}/{quote(str(object_id), safe='')}.png"
            self.storage.write(name, content.getvalue())
            old.discard(name)
        for name in old:
            self.storage.remove(name)


def _share(chunk: int, step: float) -> float:
    """The share of a video in one of its chunks. ``step`` is an estimate, so there may be more chunks than it says."""
    return min(1, (chunk + 1) * step) - min(1, chunk * step)


def _failed(done: Done, error: Exception, report: Report) -> Done:
    """The record of an input that could not be processed."""
    reason = " ".join(str(error).split()) or type(error).__name__
    if not isinstance(error, (MaskletError, OSError)):
        reason = f"{type(error).__name__}: {reason}"
    report.failed += 1
    report.failures[done.name] = reason
    return replace(done, frames=0, error=reason)


def digest_of_prompts(prompts: Sequence[ObjectPrompt]) -> str:
    """Identifies the prompts of an input."""
    return sha256(json.dumps([prompt.to_json() for prompt in prompts], sort_keys=True).encode()).hexdigest()
