"""The frames of a stream: their times, their size, and that only the latest is encoded. Runs without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from masklet.config import SizeHW
from masklet.errors import ConfigError, ImageError, PromptError
from masklet.numbers import real_number
from masklet.video.frames import width_by_height
from masklet.video.policy import PaperPolicy

MIN_FPS, MAX_FPS = 1e-6, 1e6
"""Two frames a month, and a million in a second."""
FeaturesT = TypeVar("FeaturesT")


@dataclass(frozen=True)
class LatestFrame(Generic[FeaturesT]):
    """Gives the features of the latest frame. A stream cannot encode an earlier one again."""

    index: int
    features: FeaturesT

    def __call__(self, frame: int) -> FeaturesT:
        """The features of this frame."""
        if frame != self.index:
            raise ConfigError(
                f"the memory policy reads frame {frame} in frame {self.index} of a stream, which no longer has its "
                "memory map: expected only frames that its keeps() returned"
            )
        return self.features


def check_stream(policy: object, fps: float) -> float:
    """Check what a stream is made with, and return its frames per second.

    Raises:
        PromptError: ``fps`` is no rate; the policy keeps all prompted frames.
    """
    fps = real_number("fps", fps, PromptError, least=MIN_FPS, most=MAX_FPS)
    if isinstance(policy, PaperPolicy) and policy.max_prompted is None:
        raise PromptError("max_prompted is None: a stream has no end, so expected a number of prompted frames")
    return fps


def time_of_frame(index: int, time: float | None, *, fps: float, previous: float) -> float:
    """Seconds of a frame since the first one.

    Args:
        index: The frame.
        time: What the caller gave; None to count frames.
        fps: Frames per second.
        previous: Time of the frame before.

    Raises:
        PromptError: ``time`` is not a number, or not later than ``previous``.
    """
    time = index / fps if time is None else real_number("time", time, PromptError)
    if index and time <= previous:
        raise PromptError(
            f"frame {index} is at {time:g} s, and the frame before it at {previous:g} s: expected increasing times in "
            "seconds, given for every frame or for none"
        )
    return time


def check_frame_size(size_hw: SizeHW, expected_hw: SizeHW, frame: int) -> None:
    """Raise an ImageError if a frame has another size than those before it."""
    if size_hw != expected_hw:
        raise ImageError(
            f"frame {frame} is {width_by_height(size_hw)}, the frames before it {width_by_height(expected_hw)}: "
            "expected one size throughout. Resize the frames, or start a new video where the size changes"
        )
