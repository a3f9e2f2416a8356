"""The frames that tracking goes through, and in which order."""

from __future__ import annotations

import sys
from collections.abc import Collection
from typing import Literal

from masklet.errors import PromptError, VideoError
from masklet.numbers import shown, whole_number
from masklet.video.frames import Video

Direction = Literal["forward", "backward", "both"]


def plan_frames(
    video: Video,
    prompted: Collection[int],
    start: int | None = None,
    end: int | None = None,
    direction: Direction = "forward",
    *,
    every: int = 1,
) -> list[range]:
    """The ranges of frames to track, in order: see ``VideoSession.track``.

    Args:
        video: The video to track through.
        prompted: Frames in which an object was prompted.
        start: First frame.
        end: Last frame, included.
        direction: ``"forward"``, ``"backward"`` or ``"both"``.
        every: Step from one frame to the next.

    Raises:
        PromptError: Nothing was prompted; an argument is invalid.
        VideoError: There is no such frame.
    """
    if not isinstance(direction, str) or direction not in ("forward", "backward", "both"):
        raise PromptError(f"direction is {shown(direction)}: expected forward, backward or both")
    every = whole_number("every", every, PromptError, least=1)
    if not prompted:
        raise PromptError("nothing to track: prompt an object first, video.prompt(frame=0, points=[(x, y)])")
    first = (max(prompted) if direction == "backward" else min(prompted)) if start is None else start
    first, count = whole_number("start", first, PromptError), sys.maxsize if video.count is None else video.count
    if not 0 <= first < count:
        raise VideoError(f"start is {first}: {video.name} has no such frame, they count from 0")
    if end is not None:
        end = check_end(whole_number("end", end, PromptError), first, direction, video.name)
    forward = range(first, count if end is None else min(end + 1, count), every)
    if direction == "forward":
        return [forward]
    if direction == "backward":
        return [range(first, -1 if end is None else end - 1, -every)]
    return [forward, range(first - every, -1, -every)]


def check_end(end: int, first: int, direction: Direction, name: str) -> int:
    """The last frame to track.

    Raises:
        VideoError: There is no such frame.
        PromptError: Tracking in this direction from ``first`` does not reach it.
    """
    if end < 0:
        raise VideoError(f"end is {end}: {name} has no such frame, they count from 0")
    if end > first if direction == "backward" else end < first:
        kind, side = ("largest", "after") if direction == "backward" else ("smallest", "before")
        raise PromptError(
            f"nothing to track: end={end} is {side} the first frame to track, {first}, and direction is {direction}. "
            f"Give start=, of which the {kind} prompted frame is the default, or another direction"
        )
    return end
