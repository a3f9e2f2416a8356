"""The endpoints, under ``/xanylabeling``."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import datetime, timezone
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field

from masklet.errors import PromptError
from masklet.image import EncodedImage
from masklet.results import Masks
from masklet.serve.auth import User
from masklet.serve.runtime import Runtime
from masklet.serve.tools.encoded_text import image_bytes
from masklet.serve.tools.objects import predict as predict_objects
from masklet.serve.tools.xanylabeling.models import CLICKS, EVERYTHING, MODELS, VIDEO
from masklet.serve.tools.xanylabeling.replies import ApiError, Route, success
from masklet.serve.tools.xanylabeling.shapes import Params, objects_of_marks, shapes_of
from masklet.serve.tools.xanylabeling.videos import Task, Video, Videos
from masklet.video.session import VideoSession

router = APIRouter(prefix="/xanylabeling", tags=["X-AnyLabeling"], route_class=Route)

POLL_S = 0.5
"""Seconds between checks whether the client is still there."""


class Predict(BaseModel):
    """A request for one image."""

    model: str
    image: str = Field(description="The content of an image file, in base64 or as a data address.")
    params: Params = Params()


class Init(BaseModel):
    """A video."""

    model: str = VIDEO
    frames: list[str] = Field(min_length=1, description="The content of image files.")
    start_frame_index: int = 0


class Prompt(BaseModel):
    """Points on an object in a frame of a video."""

    session_id: str
    model: str = VIDEO
    frame_index: int = Field(ge=0)
    points: list[tuple[float, float]] = Field(
        default=[], max_length=1000, description="0 to 1 of the width and height."
    )
    point_labels: list[int] = Field(default=[], max_length=1000)
    obj_id: int = 1
    text_prompt: str | None = None
    params: Params = Params()


class Propagate(BaseModel):
    """A video to track."""

    session_id: str
    model: str = VIDEO
    start_frame: int | None = None
    end_frame: int | None = Field(default=None, description="The last frame, included.")
    params: Params = Params()


def videos_of(request: Request) -> Videos:
    """The videos of the application."""
    state = request.app.state
    if not hasattr(state, "xanylabeling"):
        state.xanylabeling = Videos(state.runtime)
    return state.xanylabeling


def known(model: str) -> dict[str, Any]:
    """A model. Raises an ApiError if there is none of this name."""
    if model not in MODELS:
        raise ApiError("MODEL_NOT_FOUND", f"Model '{model[:60]}' not loaded: expected one of {', '.join(MODELS)}")
    return MODELS[model]


@router.get("/health")
def health() -> dict[str, Any]:
    """Whether the server works. Needs no token."""
    now = datetime.now(timezone.utc).isoformat()
    return {"status": "healthy", "models_loaded": len(MODELS), "timestamp": now}


@router.get("/v1/models")
def models(user: User) -> dict[str, Any]:
    """All models."""
    return success(MODELS)


@router.get("/v1/models/{model}/info")
def model_info(user: User, model: str) -> dict[str, Any]:
    """One model."""
    return success({"model_id": model, **known(model)})


@router.post("/v1/predict")
async def predict(request: Request, user: User, body: Predict) -> dict[str, Any]:
    """Segments what is marked in an image, or all objects."""
    runtime: Runtime = request.app.state.runtime
    known(body.model)
    params, content = body.params, image_bytes(body.image)

    def segment(image: EncodedImage) -> Masks:
        if not params.marks:
            raise PromptError("there are no marks: add a point or a rectangle on the object")
        return predict_objects(image, objects_of_marks(params.marks))

    if body.model == EVERYTHING:
        masks = await runtime.everything(user, content, request)
    else:
        masks = await runtime.on_image(user, content, segment, request)
    shapes = shapes_of(masks[masks.iou_scores >= params.conf_threshold], params.epsilon_factor)
    return success({"shapes": shapes, "description": "", "replace": False if body.model == CLICKS else None})


@router.post("/v1/video/init")
async def init(request: Request, user: User, body: Init) -> dict[str, Any]:
    """Opens a video."""
    known(body.model)
    videos = videos_of(request)
    frames = [image_bytes(text) for text in body.frames]
    video_id = await asyncio.to_thread(videos.add, user, frames, body.start_frame_index)
    try:
        await videos.runtime.on_video(videos.get(user, video_id).opened, lambda session: session.video[0], request)
    except Exception:
        await asyncio.to_thread(videos.remove, user, video_id)
        raise
    return success({"session_id": video_id, "total_frames": len(frames)})


@router.post("/v1/video/prompt")
async def prompt(request: Request, user: User, body: Prompt) -> dict[str, Any]:
    """Prompts an object in a frame of a video."""
    if body.text_prompt:
        raise PromptError("texts are not understood: click on the object instead")
    if len(body.points) != len(body.point_labels):
        raise PromptError(f"{len(body.points)} points and {len(body.point_labels)} labels: expected as many")
    videos = videos_of(request)
    video = videos.get(user, body.session_id)

    def work(session: VideoSession) -> Masks:
        height, width = session.video.size_hw
        points = [
            (x * width, y * height, int(bool(label)))
            for (x, y), label in zip(body.points, body.point_labels, strict=True)
        ]
        return video.prompt(session, body.obj_id, body.frame_index, {"points": points})

    masks = await videos.runtime.on_video(video.opened, work, request)
    shapes = shapes_of(masks, body.params.epsilon_factor, [1])
    return success({"frame_index": body.frame_index, "masks": shapes, "num_objects": len(video.first_prompted)})


@router.post("/v1/video/propagate")
async def propagate(request: Request, user: User, body: Propagate) -> dict[str, Any]:
    """Begins to track a video; ``status`` reports the progress."""
    videos = videos_of(request)
    task = videos.track(videos.get(user, body.session_id), body.start_frame, body.end_frame, body.params.epsilon_factor)
    return success({"task_id": task.id, "status": task.status})


@router.post("/v1/video/propagate/stream")
async def propagate_stream(request: Request, user: User, body: Propagate) -> StreamingResponse:
    """Tracks a video, as server-sent events. Ends when the client goes."""
    videos = videos_of(request)
    video = videos.get(user, body.session_id)
    task = videos.track(video, body.start_frame, body.end_frame, body.params.epsilon_factor)
    return StreamingResponse(events(request, video, task), media_type="text/event-stream")


async def events(request: Request, video: Video, task: Task) -> AsyncIterator[str]:
    """What happens to a task."""
    assert task.job is not None
    try:
        yield event("started", total_frames=video.count, start_frame_index=task.start, task_id=task.id)
        seen = 0
        while not (task.is_done and seen == len(task.results)):
            await asyncio.to_thread(task.wait, seen, POLL_S)
            if await request.is_disconnected():
                return
            done = list(task.results)
            for frame in done[seen:]:
                yield event("progress", current_frame=frame, total_frames=video.count)
            seen = len(done)
        if task.error is not None:
            yield event("error", message=task.error)
        else:
            yield event("completed", status=task.status, results=task.masks)
    finally:
        task.job.cancel()


def event(kind: str, **values: Any) -> str:
    """One server-sent event."""
    return f"data: {json.dumps({'type': kind, **values})}\n\n"


@router.get("/v1/video/status/{task_id}")
def status(request: Request, user: User, task_id: str) -> dict[str, Any]:
    """How far a task is, and what it found."""
    task = videos_of(request).task(user, task_id)
    total = task.end - task.start + 1
    state = {"task_id": task.id, "status": task.status, "error": task.error}
    return success({**state, "processed_frames": len(task.results), "total_frames": total, "results": task.masks})


@router.post("/v1/video/cancel/{task_id}")
def cancel(request: Request, user: User, task_id: str) -> dict[str, Any]:
    """Ends a task after the frame in work."""
    task = videos_of(request).task(user, task_id)
    assert task.job is not None
    task.job.cancel()
    return success({"task_id": task.id, "status": "cancelled"})


@router.post("/v1/video/cleanup/{session_id}")
def cleanup(request: Request, user: User, session_id: str) -> dict[str, Any]:
    """Forgets a video."""
    return success({"session_id": session_id, "removed": videos_of(request).remove(user, session_id)})
