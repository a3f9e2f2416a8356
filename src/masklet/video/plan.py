"""The frames that tracking goes through, and in which order."""

from __future__ import annotations

import operator
import sys
from collections.abc import Collection
from typing import Any, Literal

from masklet.errors import PromptError, VideoError
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
    if direction not in ("forward", "backward", "both"):
        raise PromptError(f"direction is {direction!r}: expected forward, backward or both")
    every = whole_number("every", every)
    if every < 1:
        raise PromptError(f"every is {every}: expected 1 for all frames, 2 for every other frame, and so on")
    if not prompted:
        raise PromptError("nothing to track: prompt an object first, video.prompt(frame=0, points=[(x, y)])")
    first = (max(prompted) if direction == "backward" else min(prompted)) if start is None else start
    first, count = whole_number("start", first), sys.maxsize if video.count is None else video.count
    if not 0 <= first < count:
        raise VideoError(f"start is {first}: {video.name} has no such frame, they count from 0")
    if end is not None and whole_number("end", end) < 0:
        raise VideoError(f"end is {end}: {video.name} has no such frame, they count from 0")
    forward = range(first, count if end is None else min(end + 1, count), every)
    if direction == "forward":
        return [forward]
    if direction == "backward":
        return [range(first, -1 if end is None else end - 1, -every)]
    return [forward, range(first - every, -1, -every)]


def whole_number(name: str, value: Any) -> int:
    """An argument as an ``int``.

    Raises:
        PromptError: It is not a whole number.
    """
    try:
        return operator.index(value)
    except TypeError as error:
        raise PromptError(f"{name} is {value!r}: expected a whole number") from error
