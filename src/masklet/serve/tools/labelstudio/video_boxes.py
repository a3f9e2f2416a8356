"""Boxes that a user draws in a video (VideoRectangle), tracked through the frames that follow."""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from masklet.errors import PromptError
from masklet.numbers import real_number
from masklet.serve.runtime import OpenVideo
from masklet.serve.tools.labelstudio.clock import Clock
from masklet.serve.tools.labelstudio.prompts import FULL, value_of
from masklet.serve.tools.labelstudio.regions import percent_box
from masklet.video.frame_result import FrameResult
from masklet.video.session import VideoSession

SECONDS = 60.0
"""Duration of one request: Label Studio waits for 100 s. The next request continues where this one ended."""
MAX_PROMPTED = 8
"""Boxes of an object that become prompts when it is not known which of them the user drew."""
SAME = 0.01
"""Percent: boxes that differ by less are those that were sent to the page."""

Keyframe = dict[str, Any]


@dataclass
class TrackedRegion:
    """A region, and what is known of it."""

    prompted: dict[int, Keyframe] = field(default_factory=dict)
    """Boxes that the user drew, by frame."""
    tracked: dict[int, Keyframe] = field(default_factory=dict)
    """Boxes that were found, by frame."""


@dataclass
class BoxVideo:
    """A video whose boxes are tracked."""

    opened: OpenVideo
    regions: dict[str, TrackedRegion] = field(default_factory=dict)
    last: int | None = None
    """The last frame tracked."""

    def steps(self, session: VideoSession, drawn: Sequence[Mapping[str, Any]], rate: float | None) -> Generator[None]:
        """Prompts what is new or changed, then tracks for a while."""
        clock = Clock.of(session.video, drawn, rate)
        changed = self.prompt(session, drawn, clock)
        yield
        if not self.regions:
            return
        last_frame = len(session.video) - 1
        start = min(changed) if changed else self.last + 1 if self.last is not None else 0
        if start > last_frame:
            return
        for region in self.regions.values():
            region.tracked = {frame: box for frame, box in region.tracked.items() if frame < start}
        until = time.monotonic() + SECONDS
        for result in session.track(start):
            self.take(result, clock)
            self.last = result.index
            yield
            if time.monotonic() > until:
                return

    def prompt(self, session: VideoSession, drawn: Sequence[Mapping[str, Any]], clock: Clock) -> list[int]:
        """Prompts the boxes that the user drew or moved. Returns the frames in which something changed."""
        wanted = {str(region.get("id")): region for region in drawn}
        for gone in [name for name in self.regions if name not in wanted]:
            del self.regions[gone]
            session.remove(gone)
        changed: list[int] = []
        for name, region in wanted.items():
            known = self.regions.get(name, TrackedRegion())
            boxes = user_boxes(keyframes(region, clock), known)
            if not boxes:
                raise PromptError(f"region {name} has no box that is switched on: draw one on the object")
            moved = sorted(frame for frame, box in boxes.items() if known.prompted.get(frame) != box)
            undone = sorted(known.prompted.keys() - boxes.keys())
            for frame in moved:
                session.prompt(frame, name, box=pixels(boxes[frame], session))
            for frame in undone:
                session.remove(name, frame)
            changed += [*moved, *undone]
            self.regions[name] = TrackedRegion(boxes, known.tracked)
        return changed

    def take(self, result: FrameResult, clock: Clock) -> None:
        """Keeps the boxes of a frame."""
        size_hw = result.masks.size_hw
        rows = zip(result.object_ids, result.masks.boxes.tolist(), result.visible, strict=True)
        for name, box, is_visible in rows:
            there = bool(is_visible) and box[2] > box[0]
            place = {"frame": clock.number(result.time), "time": result.time, "rotation": 0, "enabled": there}
            if there:
                self.regions[str(name)].tracked[result.index] = {**percent_box(box, size_hw), **place}
            elif before := self.regions[str(name)].tracked.get(result.index - 1):
                self.regions[str(name)].tracked[result.index] = {**before, **place}

    def results(self, drawn: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The regions as they came, with all boxes."""
        results = []
        for region in drawn:
            known = self.regions[str(region.get("id"))]
            # A region begins where the user drew it. Two frames of the video may be one of the page.
            tracked = {frame: box for frame, box in known.tracked.items() if frame > min(known.prompted)}
            boxes = {**tracked, **known.prompted}
            by_number = {
                boxes[frame]["frame"]: boxes[frame]
                for frame in sorted(boxes, key=lambda at: (at in known.prompted, at))
            }
            sequence = [by_number[number] for number in sorted(by_number)]
            results.append({**region, "value": {**value_of(region), "sequence": sequence}, "origin": "prediction"})
        return results


def keyframes(region: Mapping[str, Any], clock: Clock) -> dict[int, Keyframe]:
    """The boxes of a region that are switched on, by frame of the video."""
    sequence = value_of(region).get("sequence")
    if not isinstance(sequence, list):
        raise PromptError("a videorectangle has no sequence: expected a list of keyframes")
    found: dict[int, Keyframe] = {}
    for keyframe in sequence:
        if isinstance(keyframe, Mapping) and keyframe.get("enabled", True):
            found[clock.index(real_number("frame", keyframe.get("frame"), PromptError, least=0))] = dict(keyframe)
    return found


def user_boxes(boxes: Mapping[int, Keyframe], known: TrackedRegion) -> dict[int, Keyframe]:
    """The boxes that a user drew: those that were not sent to the page.

    Of boxes of which nothing is known, such as those of another server, a few stand for all.
    """
    if not known.prompted:
        frames = sorted(boxes)
        step = max(1, -(-(len(frames) - 1) // (MAX_PROMPTED - 1))) if len(frames) > MAX_PROMPTED else 1
        return {frame: boxes[frame] for frame in {*frames[::step], *frames[-1:]}}
    drawn = {}
    for frame, box in boxes.items():
        if is_same(box, known.prompted.get(frame)):
            drawn[frame] = known.prompted[frame]
        elif not is_same(box, known.tracked.get(frame)):
            drawn[frame] = box
    return drawn


def is_same(box: Keyframe, other: Keyframe | None) -> bool:
    """Whether two boxes have one place."""
    if other is None:
        return False
    return all(abs(percent_of(box, key) - percent_of(other, key)) < SAME for key in ("x", "y", "width", "height"))


def percent_of(box: Keyframe, key: str) -> float:
    """A number of a keyframe."""
    return real_number(f"sequence.{key}", box.get(key), PromptError, least=-1e4, most=1e4)


def pixels(box: Keyframe, session: VideoSession) -> tuple[float, float, float, float]:
    """x0 y0 x1 y1, in pixels of the video."""
    height, width = session.video.size_hw
    x, y, w, h = (percent_of(box, key) / FULL for key in ("x", "y", "width", "height"))
    return x * width, y * height, (x + w) * width, (y + h) * height
