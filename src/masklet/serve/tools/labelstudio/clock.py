"""Frames as Label Studio's page counts them: from 1, at a rate that need not be the video's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from masklet.serve.tools.labelstudio.prompts import value_of
from masklet.video.frames import Video


@dataclass(frozen=True)
class Clock:
    """Converts frames through their times, so that rounded rates do not add up."""

    page_rate: float
    """Frames per second that the page counts with."""
    video_rate: float
    count: int
    """Frames of the video."""

    @classmethod
    def of(cls, video: Video, regions: Iterable[Mapping[str, Any]] = (), stated: float | None = None) -> Clock:
        """The clock of a page.

        Args:
            video: The video.
            regions: Those of the page: they state its number of frames and its duration.
            stated: The rate in the labelling configuration.
        """
        rates = (page_rate(value_of(region)) for region in regions)
        rate = next((rate for rate in rates if rate is not None), None) or stated or float(video.fps)
        return cls(rate, float(video.fps), len(video))

    def index(self, number: float) -> int:
        """The video's frame, from 0, for a frame of the page."""
        return self.index_at((number - 1) / self.page_rate)

    def index_at(self, seconds: float) -> int:
        """The video's frame at a time."""
        return min(max(round(seconds * self.video_rate), 0), self.count - 1)

    def number(self, seconds: float) -> int:
        """The page's frame at a time."""
        return round(seconds * self.page_rate) + 1


def page_rate(value: Mapping[str, Any]) -> float | None:
    """Frames per second of a page, if the region states them."""
    count, duration = value.get("framesCount"), value.get("duration")
    if isinstance(count, int | float) and isinstance(duration, int | float) and count > 0 and duration > 0:
        return count / duration
    return None
