"""Live frames: one at a time, no end known, memory that does not grow."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch

from masklet.engine import Engine
from masklet.errors import PromptError
from masklet.images.reading import read_image
from masklet.model.neck import Features
from masklet.processing import Sam2ImageProcessor
from masklet.video.memory import MemoryPolicy, ObjectFrame
from masklet.video.tracks import FrameResult, Tracks


class VideoStream:
    """Follows objects through frames as they arrive. Made by ``Segmenter.stream``."""

    def __init__(
        self, engine: Engine, processor: Sam2ImageProcessor, policy: MemoryPolicy, *, max_objects: int, fps: float
    ) -> None:
        self.engine = engine
        self.processor = processor
        self.policy = policy
        self.max_objects = max_objects
        self.fps = fps
        self.count = 0
        """Frames pushed so far."""
        self._tracks: Tracks | None = None
        self._features: Features | None = None
        self._image: Any = None

    def __repr__(self) -> str:
        objects = f"{len(self.object_ids) or 'no'} object{'s' * (len(self.object_ids) != 1)}"
        return f"VideoStream({self.count} frame{'s' * (self.count != 1)}, {objects})"

    def _repr_png_(self) -> bytes | None:
        """What a notebook shows: the frame that came last, with its masks."""
        return None if (last := self._last()) is None else last._repr_png_()

    def _repr_html_(self) -> str | None:
        return None if (last := self._last()) is None else last._repr_html_()

    def _last(self) -> FrameResult | None:
        return None if self._tracks is None else self._result(self._tracks.seen(self.count - 1))

    @property
    def object_ids(self) -> tuple[Hashable, ...]:
        """Names of the objects that are followed."""
        return () if self._tracks is None else tuple(self._tracks.objects)

    def push(self, frame: Any, prompts: Mapping[Hashable, Mapping[str, Any]] | None = None) -> FrameResult:
        """Take the next frame.

        Args:
            frame: An image, of the same size each time: see ``masklet.images.reading.read_image``.
            prompts: Objects to add or to show again on this frame, by name, each with ``points``, ``labels``, ``box``
                or ``mask`` as ``VideoSession.prompt`` takes them: ``{"cup": {"box": (300, 0, 500, 400)}}``.

        Returns:
            All objects in this frame.

        Raises:
            PromptError: A prompt makes no sense.
            ImageError: The frame is no image, or its size is another than before.
                After either the frame has not been taken: push it again.
        """
        image = read_image(frame)
        size_hw = (image.shape[0], image.shape[1])
        tracks = self._tracks
        if tracks is None:
            input_hw = self.processor.input_hw
            tracks = Tracks(
                self.engine, self.policy, max_objects=self.max_objects, size_hw=size_hw, input_hw=input_hw, spool=None
            )
        tracks.check_size(size_hw, self.count)
        told = {name: tracks.read(**prompt) for name, prompt in (prompts or {}).items()}
        with torch.inference_mode():
            self._features = self.engine.encode(self.processor.frame_values(image))
        self._tracks, self._image = tracks, image
        self.count += 1
        for name, prompt in told.items():
            tracks.prompt(name, self.count - 1, self._features_of, prompt)
        seen = tracks.advance(self.count - 1, self._features_of, step=1)
        tracks.forget_before(self.count - 1)
        return self._result(seen)

    def correct(self, name: Hashable, **prompt: Any) -> FrameResult:
        """Show an object again, or for the first time, on the frame that came last; its result is given anew."""
        if self._tracks is None:
            raise PromptError("no frame has been pushed yet: expected one before a correction")
        self._tracks.prompt(name, self.count - 1, self._features_of, self._tracks.read(**prompt))
        return self._result(self._tracks.seen(self.count - 1))

    def remove(self, name: Hashable) -> None:
        """Follow an object no longer."""
        if self._tracks is None:
            raise PromptError(f"no object {name!r}: none has been shown yet")
        self._tracks.remove(name)

    def _result(self, seen: dict[Hashable, ObjectFrame]) -> FrameResult:
        assert self._tracks is not None
        index = self.count - 1
        return self._tracks.result(index, index / self.fps, seen, self._image)

    def _features_of(self, frame: int) -> Features:
        # Maps of the frames that may still be read are never let go, so no other frame is asked for.
        assert frame == self.count - 1
        assert self._features is not None
        return self._features
