"""Answers to what a user did in a task."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from fastapi import Request

from masklet.errors import DataError, PromptError
from masklet.image import EncodedImage
from masklet.serve.tools.labelstudio import video_events as events
from masklet.serve.tools.labelstudio.label_config import LabelConfig, read_label_config
from masklet.serve.tools.labelstudio.prompts import read_prompts
from masklet.serve.tools.labelstudio.regions import bitmask_value, regions_of
from masklet.serve.tools.labelstudio.state import State, state_of
from masklet.serve.tools.labelstudio.videos import Place
from masklet.serve.tools.objects import predict

Reply = dict[str, Any]


async def answer(
    request: Request, user: str, task: Mapping[str, Any], project: str, label_config: str, context: Mapping[str, Any]
) -> Reply:
    """The prediction for a task.

    Raises:
        PromptError: The prompts are invalid.
        DataError: The configuration or the task lacks what is needed; its media cannot be fetched.
    """
    config = read_label_config(label_config)
    state = state_of(request.app)
    if context.get("event") is not None:
        return await Interaction(request, state, user, task, project, config, context).answer()
    drawn = context.get("result")
    regions = [region for region in drawn if isinstance(region, Mapping)] if isinstance(drawn, list) else []
    if any(region.get("type") == "videorectangle" for region in regions):
        return await track_boxes(request, state, user, task, project, config, regions)
    return await segment(request, state, user, task, config, regions)


def address_of(task: Mapping[str, Any], config: LabelConfig, tag: str | None) -> str:
    """The address of a tag's media. Raises a DataError if the task has none."""
    key = config.data_keys.get(tag or "") or next(iter(config.data_keys.values()), None)
    data = task.get("data")
    address = data.get(key) if isinstance(data, Mapping) and key is not None else None
    if not isinstance(address, str) or not address:
        raise DataError(f"the task has no media in its data ({key!r}): expected an address")
    return address


async def segment(
    request: Request,
    state: State,
    user: str,
    task: Mapping[str, Any],
    config: LabelConfig,
    regions: list[Mapping[str, Any]],
) -> Reply:
    """The regions of the objects that were clicked or boxed in an image."""
    to_name = next((str(region["to_name"]) for region in regions if region.get("to_name")), None)
    control = config.control_for(to_name)
    address = address_of(task, config, to_name or control.to_name)
    content = await asyncio.to_thread(state.media.image, user, address, task.get("id"))

    def work(image: EncodedImage) -> Reply:
        prompts = read_prompts(regions, image.size_hw)
        if not prompts:
            return {}
        masks = predict(image, [prompt for _, prompt in prompts])
        found = [
            region
            for mask, (label, _) in zip(masks, prompts, strict=True)
            for region in regions_of(mask, control, label)
        ]
        return {"result": found, "score": float(np.mean(masks.iou_scores))}

    return await state.runtime.on_image(user, content, work, request)


async def track_boxes(
    request: Request,
    state: State,
    user: str,
    task: Mapping[str, Any],
    project: str,
    config: LabelConfig,
    regions: list[Mapping[str, Any]],
) -> Reply:
    """Video regions with the boxes of the frames that were tracked."""
    drawn = [region for region in regions if region.get("type") == "videorectangle"]
    address = address_of(task, config, drawn[0].get("to_name"))
    path = await asyncio.to_thread(state.media.file, user, address, task.get("id"))
    place = Place(user, project, str(task.get("id")), address)
    video = state.videos.boxes(place, path)
    rate = config.video.frame_rate if config.video else None
    failed: list[BaseException] = []
    job = state.runtime.track(
        video.opened,
        lambda session: video.steps(session, drawn, rate),
        lambda error: failed.append(error) if error is not None else None,
    )
    try:
        while not await asyncio.to_thread(job.ended.wait, 0.5):
            if await request.is_disconnected():
                break
    finally:
        job.cancel()
    await asyncio.to_thread(job.ended.wait)
    if failed:
        state.videos.forget_boxes(place)
        raise failed[0]
    return {"result": video.results(drawn)}


class Interaction:
    """An event of Label Studio's interactive video."""

    def __init__(
        self,
        request: Request,
        state: State,
        user: str,
        task: Mapping[str, Any],
        project: str,
        config: LabelConfig,
        context: Mapping[str, Any],
    ) -> None:
        self.request = request
        self.state = state
        self.user = user
        self.task = task
        self.project = project
        self.config = config
        self.context = context
        self.rate = config.video.frame_rate if config.video else None

    async def answer(self) -> Reply:
        """The reply to the event. Raises a PromptError if there is no such event."""
        handlers: dict[str, Callable[[], Any]] = {
            "capabilities": self.capabilities,
            "prewarm": self.prewarm,
            "predict": self.predict,
            "track": self.track,
            "track_progress": self.track_progress,
            "track_cancel": self.track_cancel,
            "release": self.release,
        }
        if (name := str(self.context["event"])) not in handlers:
            raise PromptError(f"event {name[:60]!r}: expected one of {', '.join(handlers)}")
        return await handlers[name]()

    async def capabilities(self) -> Reply:
        """What the page may ask for."""
        return events.capabilities(next((control.tag for control in self.config.controls), None))

    async def prewarm(self) -> Reply:
        """Reads frames before they are clicked."""
        one = await self.object()
        await self.state.runtime.on_video(
            one.opened, lambda session: events.prewarm(session, self.context, self.rate), self.request
        )
        return {"status": "ok"}

    async def predict(self) -> Reply:
        """The mask of an object in a frame."""
        one = await self.object()
        masks = await self.state.runtime.on_video(
            one.opened, lambda session: one.prompt(session, self.context, self.rate), self.request
        )
        value = bitmask_value(masks.masks[0])
        score = float(masks.iou_scores[0])
        region = {"id": self.object_id, "type": "bitmask", "value": value, "score": score, "readonly": False}
        return {"result": [region], "score": score}

    async def track(self) -> Reply:
        """Begins to track an object; ``track_progress`` brings its masks."""
        one = await self.object()
        if one.is_busy:
            assert one.tracking is not None
            return {"event": "track_busy", "session_id": one.tracking.id}
        tracking, clock = await self.state.runtime.on_video(
            one.opened, lambda session: one.begin(session, self.context, self.rate), self.request
        )
        tracking.job = self.state.runtime.track(
            one.opened, lambda session: tracking.steps(session, clock), tracking.finish
        )
        one.tracking = tracking
        return {
            "event": "track_started",
            "session_id": tracking.id,
            "total_frames": tracking.count,
            "fps": clock.page_rate,
            "duration_ms": round(1000 * clock.count / clock.video_rate),
        }

    async def track_progress(self) -> Reply:
        """The masks since the last time; waits for them."""
        tracking = self.state.videos.tracking(self.user, str(self.context.get("session_id")))
        if tracking is None:
            error = "this tracking session has ended: track again"
            return {"frames": [], "produced": 0, "total": 0, "done": True, "error": error}
        return await asyncio.to_thread(tracking.progress)

    async def track_cancel(self) -> Reply:
        """Ends tracking after the frame in work."""
        tracking = self.state.videos.tracking(self.user, str(self.context.get("session_id")))
        if tracking is not None and tracking.job is not None:
            tracking.job.cancel()
        return {"status": "cancelled"}

    async def release(self) -> Reply:
        """Forgets an object, or all of the task."""
        given = self.object_id if self.context.get("object_id") or self.context.get("region_id") else None
        await asyncio.to_thread(self.state.videos.release, self.user, self.project, str(self.task.get("id")), given)
        return {"status": "released"}

    @property
    def object_id(self) -> str:
        """The object that the event is about; without an id, the task has one object."""
        return str(self.context.get("object_id") or self.context.get("region_id") or "object")

    async def object(self) -> events.EventObject:
        """The object that the event is about."""
        tag = self.config.video.name if self.config.video else None
        address = address_of(self.task, self.config, tag)
        path = await asyncio.to_thread(self.state.media.file, self.user, address, self.task.get("id"))
        place = Place(self.user, self.project, str(self.task.get("id")), address, self.object_id)
        return self.state.videos.object(place, path)
