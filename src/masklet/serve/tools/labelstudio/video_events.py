"""Label Studio's interactive video: masks of an object, frame by frame, by the events that a page sends.

An object has a session of its own, so any number of objects is tracked at the same time.
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from masklet.errors import MaskletError, PromptError
from masklet.numbers import real_number
from masklet.results import Masks
from masklet.serve.runtime import OpenVideo
from masklet.serve.scheduler import Job
from masklet.serve.tools.labelstudio.clock import Clock
from masklet.serve.tools.labelstudio.prompts import read_prompts
from masklet.serve.tools.labelstudio.regions import bitmask_value
from masklet.video.session import VideoSession

OBJECT = 1
"""The id of the only object of a session."""
POLL_S = 5.0
"""A request for progress waits for so long for the first frame."""
BATCH_S = 0.25
"""And then for so long for more."""
BATCH_FRAMES = 32
PREWARMED = 2
"""Frames that are encoded ahead of a click, at most: a session keeps no more."""


@dataclass
class Tracking:
    """An object that is being tracked."""

    start: int
    count: int
    """Frames to track, the first one included."""
    direction: str
    frames: list[dict[str, Any]] = field(default_factory=list)
    """What was found."""
    sent: int = 0
    """Frames that a client has got."""
    error: str | None = None
    is_done: bool = False
    job: Job | None = None
    changed: threading.Condition = field(default_factory=threading.Condition)
    id: str = field(default_factory=lambda: uuid4().hex)

    def steps(self, session: VideoSession, clock: Clock) -> Generator[None]:
        """Tracks, and keeps a mask of each frame."""
        forward = self.direction == "forward"
        end = self.start + (self.count - 1) * (1 if forward else -1)
        for result in session.track(self.start, end, "forward" if forward else "backward"):
            mask = result[OBJECT].masks[0] & bool(result.visible[0])
            place = {"frame": clock.number(result.time), "time_ms": round(result.time * 1000)}
            with self.changed:
                self.frames.append({**place, **bitmask_value(mask)})
                self.changed.notify_all()
            yield

    def finish(self, error: BaseException | None) -> None:
        """Called at the end."""
        with self.changed:
            if error is not None:
                self.error = str(error) if isinstance(error, MaskletError) else "the server failed: see its log"
            self.is_done = True
            self.changed.notify_all()

    def progress(self) -> dict[str, Any]:
        """The frames since the last call. Waits for the first of them."""
        with self.changed:
            first = self.sent
            self.changed.wait_for(lambda: self.is_done or len(self.frames) > first, POLL_S)
            self.changed.wait_for(lambda: self.is_done or len(self.frames) >= first + BATCH_FRAMES, BATCH_S)
            frames = self.frames[first : first + BATCH_FRAMES]
            self.sent = first + len(frames)
            return {
                "frames": frames,
                "produced": self.sent,
                "total": self.count,
                "done": self.is_done and self.sent == len(self.frames),
                "error": self.error,
            }


@dataclass
class EventObject:
    """An object of a video, as the events of a page prompt it."""

    opened: OpenVideo
    tracking: Tracking | None = None
    prompted: set[int] = field(default_factory=set)
    """Frames."""

    @property
    def is_busy(self) -> bool:
        """Whether it is being tracked."""
        return self.tracking is not None and not self.tracking.is_done

    def prompt(self, session: VideoSession, context: Mapping[str, Any], rate: float | None) -> Masks:
        """Prompts the object in a frame. All prompts of the frame come together, and replace those before."""
        regions = regions_of_context(context)
        frame = frame_of(context, Clock.of(session.video, regions, rate))
        prompts = read_prompts(regions, session.video.size_hw)
        if len(prompts) != 1:
            raise PromptError(f"prompts of {len(prompts)} objects: expected points and at most one box of one object")
        if frame in self.prompted:
            session.remove(OBJECT, frame if len(self.prompted) > 1 else None)
        self.prompted.add(frame)
        return session.prompt(frame, OBJECT, **prompts[0][1].keywords)

    def begin(self, session: VideoSession, context: Mapping[str, Any], rate: float | None) -> tuple[Tracking, Clock]:
        """What a ``track`` event asks for."""
        clock = Clock.of(session.video, regions_of_context(context), rate)
        if any(True for _ in regions_of_context(context)):
            self.prompt(session, context, rate)
        if not self.prompted:
            raise PromptError("nothing to track: click on the object, or draw a box around it, first")
        start = frame_of(context, clock)
        direction = str(context.get("direction") or "forward")
        if direction not in ("forward", "backward"):
            raise PromptError(f"direction {direction[:40]!r}: expected forward or backward")
        available = clock.count - start if direction == "forward" else start + 1
        return Tracking(start, max(1, min(frames_wanted(context, clock), available)), direction), clock


def capabilities(control: str | None) -> dict[str, Any]:
    """What the page may ask for."""
    targets = [{"tag": control or "Bitmask", "output": "bitmask", "features": ["track"]}]
    return {"prompts": ["point", "box"], "targets": targets, "model_info": {"name": "masklet"}}


def prewarm(session: VideoSession, context: Mapping[str, Any], rate: float | None) -> None:
    """Reads the frames that may be clicked next."""
    clock = Clock.of(session.video, (), rate)
    frame = frame_of(context, clock)
    window = int(real_number("window", context.get("window") or 1, PromptError, least=1, most=1e6))
    step = -1 if context.get("direction") == "backward" else 1
    for index in range(frame, frame + step * min(window, PREWARMED), step):
        if 0 <= index < clock.count:
            session.preload(index)


def regions_of_context(context: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """The prompts of an event."""
    regions = context.get("result") or context.get("prompts") or []
    if not isinstance(regions, list) or not all(isinstance(region, Mapping) for region in regions):
        raise PromptError("the prompts of an event are not a list of regions")
    return regions


def frame_of(context: Mapping[str, Any], clock: Clock) -> int:
    """The frame of the video that an event is about."""
    if context.get("time_ms") is not None:
        return clock.index_at(real_number("time_ms", context["time_ms"], PromptError, least=0, most=1e12) / 1000)
    return clock.index(real_number("frame", context.get("frame", 1), PromptError, least=0, most=1e9))


def frames_wanted(context: Mapping[str, Any], clock: Clock) -> int:
    """How many frames are to be tracked."""
    if context.get("max_frames") is not None:
        return int(real_number("max_frames", context["max_frames"], PromptError, least=1, most=1e9))
    if context.get("max_duration_ms") is not None:
        seconds = real_number("max_duration_ms", context["max_duration_ms"], PromptError, least=0, most=1e12) / 1000
        return int(seconds * clock.video_rate) + 1
    return clock.count
