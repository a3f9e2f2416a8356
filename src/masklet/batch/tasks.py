"""What is done to each image or video."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from masklet.batch.prompt_files import ObjectPrompt
from masklet.errors import ConfigError, PromptError
from masklet.video.policies import check_policy

if TYPE_CHECKING:
    from masklet.results import Masks
    from masklet.segmenter import Segmenter
    from masklet.video.frame_result import FrameResult
    from masklet.video.session import VideoSession

TASKS = ("everything", "prompts", "track", "discover")
"""Automatic masks of images, prompted objects in images, prompted objects in videos, automatic objects in videos."""


@dataclass(frozen=True)
class ImageTask(ABC):
    """Segments images."""

    name: ClassVar[str]
    kind: ClassVar[str] = "image"
    needs_prompts: ClassVar[bool] = False
    pixels: Mapping[str, Any] = field(default_factory=dict)
    """How values become colours, see ``Segmenter.image``."""

    @abstractmethod
    def segment(self, sam: Segmenter, image: Any, prompts: Sequence[ObjectPrompt]) -> tuple[Masks, list[Any]]:
        """The masks of an image as run lengths, and the ids of their objects."""


@dataclass(frozen=True)
class Everything(ImageTask):
    """All masks of each image."""

    name: ClassVar[str] = "everything"
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options of ``Segmenter.everything``."""

    def segment(self, sam: Segmenter, image: Any, prompts: Sequence[ObjectPrompt]) -> tuple[Masks, list[Any]]:  # noqa: D102
        masks = sam.everything(image, packed=True, **self.options, **self.pixels)
        return masks, masks.object_ids.tolist()


@dataclass(frozen=True)
class Prompted(ImageTask):
    """Prompted objects of each image. One without prompts has no masks."""

    name: ClassVar[str] = "prompts"
    needs_prompts: ClassVar[bool] = True

    def segment(self, sam: Segmenter, image: Any, prompts: Sequence[ObjectPrompt]) -> tuple[Masks, list[Any]]:  # noqa: D102
        encoded = sam.image(image, **self.pixels)
        ids = [prompt.object for prompt in prompts]
        if all(prompt.box is not None and not prompt.points and prompt.mask is None for prompt in prompts):
            boxes = np.array([prompt.box for prompt in prompts], float).reshape(-1, 4)
            return encoded.predict(boxes=boxes, packed=True), ids
        parts = [encoded.predict(**prompt.keywords(), packed=True) for prompt in prompts]
        from masklet.results import Masks

        runs = [run for part in parts for run in part.to_rle()]
        scores = np.concatenate([part.iou_scores for part in parts])
        return Masks.from_rle(runs, encoded.size_hw, scores, np.arange(len(runs))), ids


@dataclass(frozen=True)
class VideoTask(ABC):
    """Tracks objects through videos."""

    name: ClassVar[str]
    kind: ClassVar[str] = "video"
    needs_prompts: ClassVar[bool] = False
    can_continue: ClassVar[bool] = True
    """Whether a saved session may be continued with the same results."""
    pixels: Mapping[str, Any] = field(default_factory=dict)
    policy: str = "paper"
    """Name of the memory policy. The results are those at the moment, also of a policy that decides late."""

    def __post_init__(self) -> None:
        check_policy(self.policy)

    def open(self, sam: Segmenter, video: Path) -> VideoSession:
        """A session of a video."""
        return sam.video(video, policy=self.policy, **self.pixels)

    def frames(self, session: VideoSession) -> int:
        """About how many frames have results."""
        return len(session.video)

    @abstractmethod
    def start(self, session: VideoSession, prompts: Sequence[ObjectPrompt]) -> Generator[FrameResult]:
        """The results of all frames, as run lengths."""


@dataclass(frozen=True)
class Track(VideoTask):
    """Prompted objects of each video, from the first prompted frame to the end, or in both directions."""

    name: ClassVar[str] = "track"
    needs_prompts: ClassVar[bool] = True
    direction: str = "forward"
    every: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.direction not in ("forward", "backward", "both"):
            raise ConfigError(f"direction is {self.direction!r}: expected forward, backward or both")

    def frames(self, session: VideoSession) -> int:  # noqa: D102
        return math.ceil(len(session.video) / self.every)

    def start(self, session: VideoSession, prompts: Sequence[ObjectPrompt]) -> Generator[FrameResult]:  # noqa: D102
        if not prompts:
            raise PromptError("there are no prompts for it")
        for prompt in prompts:
            session.prompt(prompt.frame, prompt.object, **prompt.keywords())
        return session.track(direction=self.direction, every=self.every, packed=True)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Discover(VideoTask):
    """Objects that are found in each video without prompts, and tracked."""

    name: ClassVar[str] = "discover"
    can_continue: ClassVar[bool] = False  # a continued session tracks what was found, and looks for nothing new
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options of ``VideoSession.everything``."""

    def start(self, session: VideoSession, prompts: Sequence[ObjectPrompt]) -> Generator[FrameResult]:  # noqa: D102
        return session.everything(packed=True, **self.options)


Task = ImageTask | VideoTask


def make_task(
    name: str, options: Mapping[str, Any] | None = None, pixels: Mapping[str, Any] | None = None, **tracking: Any
) -> Task:
    """A task by its name.

    Args:
        name: One of ``TASKS``.
        options: Options of automatic masks.
        pixels: How values become colours.
        tracking: ``direction``, ``every`` and ``policy`` of "track"; ``every`` and ``policy`` of "discover".

    Raises:
        ConfigError: There is no such task or policy, or the task takes no such option.
    """
    pixels, options = dict(pixels or {}), dict(options or {})
    if name not in TASKS:
        raise ConfigError(f"task is {name!r}: expected one of {', '.join(TASKS)}")
    if options and name not in ("everything", "discover"):
        raise ConfigError(f"{min(options)} is for automatic masks: expected the task everything or discover")
    known = {"track": {"direction", "every", "policy"}, "discover": {"every", "policy"}}
    if extra := tracking.keys() - known.get(name, set()):
        raise ConfigError(f"{min(extra)} is not an option of the task {name}")
    if name == "everything":
        return Everything(pixels, options)
    if name == "prompts":
        return Prompted(pixels)
    if name == "track":
        return Track(pixels, **tracking)
    policy = tracking.pop("policy", "paper")
    return Discover(pixels, policy, options=options | tracking)
