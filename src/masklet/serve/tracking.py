"""Tracking as jobs: every frame is in the database before the next one begins."""

from __future__ import annotations

import json
import logging
from collections.abc import Generator

from sqlalchemy import update
from sqlalchemy.exc import SQLAlchemyError
from sqlmodel import Session, col, select

from masklet.errors import MaskletError
from masklet.serve.annotate import video_row
from masklet.serve.api.schemas import TrackingBody
from masklet.serve.edits import Place, set_current
from masklet.serve.problems import Problem, public_text, unsaved
from masklet.serve.scheduler import WAITING, Busy
from masklet.serve.state.leases import is_gone, release_lease, take_lease
from masklet.serve.state.rows import current_result, job_of, media_of
from masklet.serve.state.tables import Edit, Media, Result, TrackingJob
from masklet.serve.workspace import OpenSession, Workspace
from masklet.video.frame_result import FrameResult
from masklet.video.journal import remaining_frames, stored_frame

logger = logging.getLogger(__name__)
TRACKED_TOGETHER = 8
"""Videos that are tracked in turn. Their sessions grow meanwhile, and cannot leave the cache."""
SHARE = 10
"""Frames after which a video gives up its place to one that waits. Opening it again takes as long as some frames."""


def start_tracking(ws: Workspace, user: str, media_id: str, body: TrackingBody) -> TrackingJob:
    """Starts a job. Runs in the device's thread.

    Raises:
        Problem: It is not a video, or is being tracked already; there is nothing to continue.
        PromptError: Nothing was prompted, or the range of frames is empty.
        Busy: Too many videos are being tracked.
    """
    with ws.editing(user, media_id) as media:
        if media.kind == "image":
            raise Problem(409, f"{media.name} is an image: only videos are tracked")
        ws.refuse_while_tracking(media)
        with ws.session(media) as opened:
            plan = remaining_frames(opened.session) if body.resume else plan_of(opened, body)
        total = sum(map(len, plan))
        if body.resume and not total:
            raise Problem(409, f"there is nothing to continue: tracking of {media.name} has ended")
        row = TrackingJob(media_id=media_id, user=user, status="running", total=total, owner=ws.owner)
        steps = track(ws, media, row.id, None if body.resume else body)
        # It starts once this function, which occupies the device's thread, has returned.
        job = ws.runtime.scheduler.start(user, steps, lambda error: end_tracking(ws, media_id, row.id, error))
        ws.jobs[media_id] = job
        try:
            with ws.database.writing() as db:
                end_jobs(db, media_id)
                stored = db.get(Media, media_id)
                assert stored is not None
                stored.remaining = ranges_text(plan)
                db.add_all([row, stored])
        except BaseException:
            job.cancel()
            raise
        return row


def plan_of(opened: OpenSession, body: TrackingBody) -> list[range]:
    """The frames of a job."""
    return opened.session.plan(body.start, body.end, body.direction)


def ranges_text(ranges: list[range]) -> str:
    """Ranges as JSON."""
    return json.dumps([[one.start, one.stop, one.step] for one in ranges])


def end_jobs(db: Session, media_id: str) -> None:
    """Marks what earlier processes left running. None of them runs: this process has the lease."""
    values = {"status": "interrupted"}
    old = (col(TrackingJob.media_id) == media_id, col(TrackingJob.status) == "running")
    db.exec(update(TrackingJob).where(*old).values(**values))


def track(ws: Workspace, media: Media, job_id: str, body: TrackingBody | None) -> Generator[object]:
    """The steps of a job, a frame each.

    At most ``TRACKED_TOGETHER`` videos are tracked in turn, and only as many as fit in the cache. The others wait, and
    those give up their place after ``SHARE`` frames. All that is needed to continue is in the database.

    Args:
        ws: The workspace.
        media: The video.
        job_id: The row to count in.
        body: The frames; None continues with those that remain.
    """
    is_done = False
    while not is_done:
        ws.videos_waiting += 1
        try:
            while ws.videos_tracked and (ws.videos_tracked >= TRACKED_TOGETHER or ws.runtime.cache.is_full):
                yield WAITING
        finally:
            ws.videos_waiting -= 1
        ws.videos_tracked += 1
        try:
            is_done = yield from track_share(ws, media, job_id, body)
        finally:
            ws.videos_tracked -= 1
        body = None


def track_share(ws: Workspace, media: Media, job_id: str, body: TrackingBody | None) -> Generator[None, None, bool]:
    """Tracks with the session in memory; whether all is done."""
    with ws.database.reading() as db:
        media = media_of(db, media.user, media.id)
    with ws.session(media) as opened:
        session = opened.session
        results = (
            session.resume_tracking(packed=True)
            if body is None
            else session.track(body.start, body.end, body.direction, packed=True)
        )
        try:
            for count, result in enumerate(results, start=1):
                is_cancelled = store_frame(ws, media, opened, result, job_id)
                ws.notify(media.id)
                if is_cancelled:
                    ws.jobs[media.id].cancel()
                yield
                if count >= SHARE and (ws.videos_waiting or ws.runtime.cache.is_full):
                    return not remaining_frames(session)
        finally:
            results.close()
    return True


def store_frame(ws: Workspace, media: Media, opened: OpenSession, result: FrameResult, job_id: str) -> bool:
    """Stores a tracked frame in one transaction; whether the job was cancelled, by any process."""
    with ws.database.writing() as db:
        take_lease(db, media.id, ws.owner)
        job = db.get(TrackingJob, job_id)
        row = db.get(Media, media.id)
        assert job is not None
        assert row is not None
        if opened.corrected:
            conditioned = (col(Result.media_id) == media.id, col(Result.conditioned).is_not(None))
            db.exec(update(Result).where(*conditioned).values(conditioned=None))
        here = select(Edit.object_number).where(Edit.media_id == media.id, Edit.frame == result.index)
        edited = set(db.exec(here).all())
        for index, object_id in enumerate(result.object_ids):
            stored = stored_frame(opened.session, object_id, result.index)
            number = int(str(object_id))
            current = current_result(db, media.id, number, result.index)
            if current is not None and stored.is_prompted:
                current.step, current.time = stored.step, stored.time
                db.add(current)
                continue
            if current is not None:
                if number in edited:
                    set_current(db, media.id, Place(number, result.index), None)
                else:
                    db.delete(current)
            db.add(video_row(media, stored, result.masks[index], None))
        job.done += 1
        row.version += 1
        row.remaining = ranges_text(remaining_frames(opened.session))
        db.add_all([job, row])
        version, is_cancelled = row.version, job.is_cancelled
    opened.version, opened.corrected = version, False
    return is_cancelled


def end_tracking(ws: Workspace, media_id: str, job_id: str, error: BaseException | None) -> None:
    """Records how a job has ended."""
    if error is not None:
        logger.error("tracking has failed", exc_info=error)
    job = ws.jobs.pop(media_id, None)
    try:
        with ws.database.writing() as db:
            row = db.get(TrackingJob, job_id)
            if row is not None:
                if error is not None:
                    row.status, row.error = "failed", message_of(error)
                elif job is not None and job.cancelled.is_set():
                    row.status = "cancelled" if row.is_cancelled else "interrupted"
                else:
                    row.status = "done"
                db.add(row)
            release_lease(db, media_id, ws.owner)
    except SQLAlchemyError as unrecorded:  # for example because the disk is full, which also ended the job
        logger.exception("the end of tracking could not be saved")
        ws.failed[job_id] = message_of(error or unrecorded)
    ws.notify(media_id)


def progress(ws: Workspace, row: TrackingJob) -> TrackingJob:
    """The current state of a job, also if its end could not be saved or its process is gone."""
    if row.status == "running" and row.id in ws.failed:
        row.status, row.error = "failed", ws.failed[row.id]
    elif row.status == "running" and is_gone(row.owner):
        row.status = "interrupted"
    return row


def message_of(error: BaseException) -> str:
    """Why a job has failed, for users."""
    if isinstance(error, MaskletError | Problem | Busy):
        return public_text(str(error))
    if isinstance(error, SQLAlchemyError | OSError):
        return unsaved(error)[1]
    return "the server could not continue. Its log says why; what was tracked is kept"


def cancel_tracking(ws: Workspace, user: str, job_id: str) -> TrackingJob:
    """Ends a job after the current frame, in whichever process it runs."""
    with ws.database.writing() as db:
        row = job_of(db, user, job_id)
        if row.status == "running":
            row.is_cancelled = True
            if is_gone(row.owner):
                row.status = "interrupted"
        db.add(row)
    if (job := ws.jobs.get(row.media_id)) is not None and row.owner == ws.owner:
        job.cancel()
    return row
