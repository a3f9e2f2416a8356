"""Images and videos with their state: what the endpoints of the API share."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from sqlalchemy.exc import SQLAlchemyError
from sqlmodel import col, select

from masklet.errors import MaskletError
from masklet.image import EncodedImage
from masklet.masks import decode_rle
from masklet.serve.library import file_of
from masklet.serve.problems import Problem
from masklet.serve.runtime import Runtime, encoded_bytes, session_bytes
from masklet.serve.scheduler import Busy, Job
from masklet.serve.settings import Settings
from masklet.serve.state.database import Database
from masklet.serve.state.leases import release_lease, take_lease
from masklet.serve.state.rows import media_of, results_in
from masklet.serve.state.tables import Media, Result, TrackingJob
from masklet.video.frames import Video, open_video
from masklet.video.journal import StoredFrame, restored_session
from masklet.video.policies import make_policy
from masklet.video.policy import MAX_PROMPTED
from masklet.video.session import VideoSession

FRAMES_BYTES = 4 * 2**20
"""What an open video file is counted as in the cache."""
MAX_OBJECTS = 16


@dataclass
class OpenSession:
    """A session in memory, and the state of the database that it agrees with."""

    session: VideoSession
    version: int
    corrected: bool
    """Whether conditioned maps are stored, which the next tracked frame makes invalid."""


@dataclass
class Workspace:
    """The database, the files and the runtime of a process."""

    settings: Settings
    runtime: Runtime
    database: Database
    jobs: dict[str, Job] = field(default_factory=dict)
    """Running in this process, by image or video."""
    failed: dict[str, str] = field(default_factory=dict)
    """Error messages, by id, of jobs whose end could not be saved."""
    changed: dict[str, list[Any]] = field(default_factory=dict)
    """Functions to call when a job has progressed."""
    videos_tracked: int = 0
    """Videos whose sessions stay in memory for a job. Only the device's thread changes it, and the next one."""
    videos_waiting: int = 0
    """Videos whose jobs wait until others give up their place in memory."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def owner(self) -> str:
        """The name of this process, for its leases."""
        return self.runtime.owner

    @contextmanager
    def editing(self, user: str, media_id: str) -> Iterator[Media]:
        """An image or a video that only this process changes until the block ends. For the device's thread.

        Raises:
            Problem: There is none, or it is another user's.
            Busy: Another process works on it.
        """
        with self.database.writing() as db:
            media = media_of(db, user, media_id)
            take_lease(db, media_id, self.owner)
        try:
            yield media
        finally:
            if media_id not in self.jobs:
                with suppress(SQLAlchemyError), self.database.writing() as db:  # it expires anyway
                    release_lease(db, media_id, self.owner)

    def refuse_while_tracking(self, media: Media) -> None:
        """Raises a Problem if the video is being tracked."""
        if media.id in self.jobs:
            raise Problem(409, f"{media.name} is being tracked: wait until it has finished, or cancel it first")

    @contextmanager
    def encoded(self, media: Media, frame: int) -> Iterator[EncodedImage]:
        """An encoded image or frame of a video, from memory or a file if it was encoded before."""
        source, files = file_of(self.settings, media), self.runtime.encoded
        path = files.path(media.id, frame, source)

        def make() -> EncodedImage:
            if (kept := files.load(path)) is not None:
                return kept
            return self.runtime.sam.image(source if media.kind == "image" else self.frame_pixels(media, frame))

        def leave(image: EncodedImage) -> None:
            files.save(path, image)

        with self.runtime.cache.use(("encoded", media.id, path.name), make, encoded_bytes, leave) as image:
            yield image

    @contextmanager
    def session(self, media: Media) -> Iterator[OpenSession]:
        """The session of a video, as it is in the database. After an error it is read again from there."""
        key = "session", media.id

        def make() -> OpenSession:
            return self._restored(media)

        opened: OpenSession
        with self.runtime.cache.use(key, make, lambda one: session_bytes(one.session)) as opened:
            is_current = opened.version == media.version
        if not is_current:
            self.runtime.cache.drop(key)
        with self.runtime.cache.use(key, make, lambda one: session_bytes(one.session)) as opened:
            try:
                yield opened
            except (MaskletError, Problem, Busy, GeneratorExit):  # refused, which changes nothing
                raise
            except BaseException:
                self.runtime.cache.drop(key)
                if media.id in self.jobs:
                    self.jobs[media.id].cancel()
                raise

    def restored(self, media: Media) -> VideoSession:
        """A separate session for reading: other threads may continue to use the shared one."""
        return self._restored(media).session

    def _restored(self, media: Media) -> OpenSession:
        with self.database.reading() as db:
            rows = results_in(db, media.id)
            row = db.get(Media, media.id)
            assert row is not None
            version, remaining = row.version, [range(*one) for one in json.loads(row.remaining)]
        sam, video = self.runtime.sam, open_video(file_of(self.settings, media))
        policy = make_policy(
            "paper", num_maskmem=sam.engine.config.num_maskmem, max_prompted=MAX_PROMPTED, length=video.count
        )
        ordered = sorted(rows, key=lambda one: (one.track_number, one.frame))
        session = restored_session(
            sam.engine,
            sam.image_processor,
            video,
            policy,
            map(stored_of, ordered),
            remaining,
            max_objects=MAX_OBJECTS,
        )
        return OpenSession(session, version, any(row.conditioned is not None for row in rows))

    def frame_pixels(self, media: Media, frame: int) -> np.ndarray:
        """(height, width, 3) uint8: a frame of a video. May be called from any thread."""
        check_frame(media, frame)

        def make() -> tuple[Video, threading.Lock]:
            return open_video(file_of(self.settings, media)), threading.Lock()

        with self.runtime.cache.use(("frames", media.id), make, lambda _: FRAMES_BYTES) as (video, lock), lock:
            return video[frame].image

    def interrupted_job(self, media_id: str) -> TrackingJob | None:
        """The last job of a video, unless it is over."""
        with self.database.reading() as db:
            chosen = select(TrackingJob).where(TrackingJob.media_id == media_id)
            job = db.exec(chosen.order_by(col(TrackingJob.created).desc())).first()
        return job if job is not None and job.status in ("running", "interrupted") else None

    def forget(self, media_id: str) -> None:
        """Drops everything cached for an image or a video."""
        cache = self.runtime.cache
        for key in [key for key in cache.held_keys() if isinstance(key, tuple) and media_id in key]:
            cache.drop(key)
        self.runtime.encoded.forget(media_id)

    def notify(self, media_id: str) -> None:
        """Notifies everyone who waits for the progress of a video."""
        with self.lock:
            waiting = list(self.changed.get(media_id, ()))
        for call in waiting:
            call()


def stored_of(row: Result) -> StoredFrame:
    """A row as a part of a session."""
    return StoredFrame(
        object_id=row.object_number,
        number=row.track_number,
        frame=row.frame,
        packed=row.state,
        object_score=row.object_score or 0.0,
        is_prompted=row.is_prompted,
        step=row.step,
        time=row.time,
        clicks=row.clicks,
        conditioned=row.conditioned,
    )


def check_frame(media: Media, frame: int) -> None:
    """Raises a Problem if there is no such frame."""
    if not 0 <= frame < media.frames:
        many = (
            "an image, whose only frame is 0" if media.kind == "image" else f"a video of {media.frames} frames from 0"
        )
        raise Problem(422, f"there is no frame {frame}: {media.name} is {many}")


def mask_of(rle: Any, size_hw: tuple[int, int]) -> np.ndarray:
    """(height, width) bool, from run lengths that a client sent.

    Raises:
        Problem: They are invalid or of another size.
    """
    height, width = size_hw
    if list(rle.size) != [height, width]:
        raise Problem(422, f"the mask has size {rle.size}: expected [height, width] = [{height}, {width}]")
    try:
        return decode_rle([{"size": [height, width], "counts": rle.counts}])[0]
    except ValueError as error:
        raise Problem(422, f"the mask is not COCO's compressed run lengths: {error}") from error
