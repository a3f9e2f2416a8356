"""Tracking jobs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from sqlmodel import col, select
from sse_starlette import EventSourceResponse

from masklet.serve.api.common import Work, mask_reply, on_device
from masklet.serve.api.schemas import JobReply, TrackingBody
from masklet.serve.auth import User
from masklet.serve.problems import RESPONSES
from masklet.serve.state.rows import job_of, media_of
from masklet.serve.state.tables import Object, Result, TrackingJob
from masklet.serve.tracking import cancel_tracking, progress, start_tracking
from masklet.serve.workspace import Workspace

router = APIRouter(prefix="/v1", tags=["tracking"], responses=RESPONSES)
POLL_SECONDS = 1.0
"""How often the progress of a job of another process is looked up."""
FRAMES_AT_ONCE = 32
EVENTS: dict[int | str, dict[str, Any]] = {
    200: {
        "content": {"text/event-stream": {}},
        "description": "Events `frame` (frame, masks), `progress` and, at the end, `end` (the job).",
    }
}


@router.post("/media/{media_id}/tracking", status_code=202)
async def track(request: Request, user: User, media_id: str, body: TrackingBody) -> JobReply:
    """Starts tracking all objects of a video. Each frame is saved before the next one begins."""
    return job_reply(request.app.state.workspace, await on_device(request, user, start_tracking, media_id, body))


@router.get("/jobs/{job_id}")
def get_job(user: User, ws: Work, job_id: str) -> JobReply:
    """The progress of a tracking job."""
    with ws.database.reading() as db:
        return job_reply(ws, job_of(db, user, job_id))


@router.delete("/jobs/{job_id}")
def cancel_job(user: User, ws: Work, job_id: str) -> JobReply:
    """Cancels a tracking job after the current frame. Tracked frames are kept."""
    return job_reply(ws, cancel_tracking(ws, user, job_id))


@router.get("/jobs/{job_id}/events", response_class=EventSourceResponse, responses=EVENTS)
def job_events(user: User, ws: Work, job_id: str) -> EventSourceResponse:
    """The progress of a tracking job as server-sent events, with the masks of new frames."""
    with ws.database.reading() as db:
        job = job_of(db, user, job_id)
    return EventSourceResponse(events(ws, user, job))


async def events(ws: Workspace, user: str, job: TrackingJob) -> AsyncIterator[dict[str, Any]]:
    """Events of a job, until it has ended."""
    with listening(ws, job.media_id) as changed:
        last = await run_in_threadpool(last_result, ws, job.media_id)
        sent = -1
        while True:
            changed.clear()
            row, frames, last = await run_in_threadpool(news, ws, user, job.id, last)
            for frame in frames:
                yield {"event": "frame", "data": json.dumps(frame)}
            reply = job_reply(ws, row)
            if row.done != sent:
                sent = row.done
                yield {"event": "progress", "data": reply.model_dump_json()}
            if reply.status != "running" and not frames:
                yield {"event": "end", "data": reply.model_dump_json()}
                return
            if not frames:
                await wait_for(changed)


async def wait_for(changed: asyncio.Event) -> None:
    """Waits for a change, but not for long: it may come from another process."""
    try:
        await asyncio.wait_for(changed.wait(), POLL_SECONDS)
    except (asyncio.TimeoutError, TimeoutError):
        return


@contextmanager
def listening(ws: Workspace, media_id: str) -> Iterator[asyncio.Event]:
    """An event that is set when a job of this process has progressed."""
    changed, loop = asyncio.Event(), asyncio.get_running_loop()

    def tell() -> None:
        loop.call_soon_threadsafe(changed.set)

    with ws.lock:
        ws.changed.setdefault(media_id, []).append(tell)
    try:
        yield changed
    finally:
        with ws.lock:
            ws.changed[media_id].remove(tell)
            if not ws.changed[media_id]:
                del ws.changed[media_id]


def last_result(ws: Workspace, media_id: str) -> int:
    """The newest result of a video."""
    with ws.database.reading() as db:
        newest = select(Result.id).where(Result.media_id == media_id).order_by(col(Result.id).desc())
        return db.exec(newest).first() or 0


def news(ws: Workspace, user: str, job_id: str, last: int) -> tuple[TrackingJob, list[dict[str, Any]], int]:
    """The job, its new frames, and the newest result among them."""
    with ws.database.reading() as db:
        job = job_of(db, user, job_id)
        media = media_of(db, user, job.media_id)
        is_new = (Result.media_id == media.id, col(Result.id) > last, col(Result.is_current).is_(True))
        shown = (col(Object.media_id) == Result.media_id) & (col(Object.number) == Result.object_number)
        chosen = select(Result).join(Object, shown).where(*is_new, col(Object.deleted).is_(False))
        rows = db.exec(chosen.order_by(col(Result.id)).limit(FRAMES_AT_ONCE * 4)).all()
    frames: dict[int, list[Any]] = {}
    for row in rows:
        frames.setdefault(row.frame, []).append(mask_reply(row, media).model_dump())
    newest = max((row.id or 0 for row in rows), default=last)
    return job, [{"frame": frame, "masks": masks} for frame, masks in frames.items()], newest


def job_reply(ws: Workspace, row: TrackingJob) -> JobReply:
    """A job, as it is sent to clients."""
    return JobReply(**progress(ws, row).model_dump(), media=row.media_id)
