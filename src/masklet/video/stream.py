"""Live frames: they arrive one at a time, without a known end, and memory does not grow."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from masklet.config import SizeHW
from masklet.engine import Engine
from masklet.errors import ConfigError, PromptError
from masklet.images.reading import read_image
from masklet.model.neck import Features
from masklet.processing import Sam2ImageProcessor
from masklet.video.frame_result import FrameResult
from masklet.video.policy import MemoryPolicy
from masklet.video.tracks import Tracks, check_can_track


@dataclass(frozen=True)
class LatestFrame:
    """Gives the features of the latest frame. A stream cannot encode an earlier one again."""

    index: int
    features: Features

    def __call__(self, frame: int) -> Features:
        """See ``tracks.FeaturesOf``."""
        if frame != self.index:
            raise ConfigError(
                f"the memory policy reads frame {frame} in frame {self.index} of a stream, which no longer has its "
                "memory map: expected only frames that its keeps() returned"
            )
        return self.features


class VideoStream:
    """Tracks objects through frames as they arrive. Made by ``Segmenter.stream``.

    A stream is not thread-safe: use it from one thread at a time. Streams in several threads may share a ``Segmenter``.
    """

    def __init__(
        self, engine: Engine, processor: Sam2ImageProcessor, policy: MemoryPolicy, *, max_objects: int, fps: float
    ) -> None:
        check_can_track(engine, max_objects)
        if not fps > 0:
            raise PromptError(f"fps is {fps}: expected a positive number of frames per second")
        self.engine = engine
        self.processor = processor
        self.policy = policy
        self.max_objects = max_objects
        self.fps = fps
        self.count = 0
        """Frames pushed so far."""
        self._tracks: Tracks | None = None
        self._features: Features | None = None
        self._image: np.ndarray | None = None

    def __repr__(self) -> str:
        objects = f"{len(self.object_ids) or 'no'} object{'s' * (len(self.object_ids) != 1)}"
        return f"VideoStream({self.count} frame{'s' * (self.count != 1)}, {objects})"

    def _repr_png_(self) -> bytes | None:
        """Notebooks show the last frame with its masks."""
        return None if (last := self._last_result()) is None else last._repr_png_()

    def _repr_html_(self) -> str | None:
        return None if (last := self._last_result()) is None else last._repr_html_()

    def _last_result(self) -> FrameResult | None:
        return None if self._tracks is None else self._result_of_last(self._tracks)

    @property
    def object_ids(self) -> tuple[Hashable, ...]:
        """The ids of the tracked objects."""
        return () if self._tracks is None else tuple(self._tracks.objects)

    def push(
        self,
        frame: Any,
        prompts: Mapping[Hashable, Mapping[str, Any]] | None = None,
        *,
        packed: bool = False,
    ) -> FrameResult:
        """Track all objects into the next frame.

        Args:
            frame: An image, of the same size each time: see ``masklet.images.reading.read_image``.
            prompts: Objects to add or to correct in this frame, by id, each with ``points``, ``labels``, ``box`` or
                ``mask`` as ``VideoSession.prompt`` takes them: ``{"cup": {"box": (300, 0, 500, 400)}}``.
            packed: As in ``VideoSession.track``.

        Returns:
            All objects in this frame.

        Raises:
            PromptError: A prompt is invalid.
            ImageError: The frame is not an image, or has another size than those before.
                After any error the stream is as before the call, so the frame may be pushed again.
        """
        image = read_image(frame)
        size_hw = (image.shape[0], image.shape[1])
        index = self.count
        # A copy, so that an error leaves the stream as it was.
        tracks = self._first_tracks(size_hw) if self._tracks is None else self._tracks.copy()
        tracks.check_size(size_hw, index)
        read = {object_id: tracks.read(**prompt) for object_id, prompt in (prompts or {}).items()}
        with torch.inference_mode():
            features = self.engine.encode(self.processor.frame_values(image))
        latest = LatestFrame(index, features)
        for object_id, prompt in read.items():
            tracks.prompt(object_id, index, latest, prompt)
        results = tracks.advance(index, latest, step=1)
        tracks.forget_before(index)
        result = tracks.frame_result(index, index / self.fps, results, image, packed=packed)
        self._tracks, self._features, self._image, self.count = tracks, features, image, index + 1
        return result

    def correct(self, object: Hashable, **prompt: Any) -> FrameResult:
        """Prompt an object in the last frame, again or for the first time.

        Args:
            object: Its id.
            prompt: As for ``VideoSession.prompt``.

        Returns:
            The new result of that frame.

        Raises:
            PromptError: The prompt is invalid; no frame was pushed yet.
        """
        if self._tracks is None or self._features is None:
            raise PromptError("no frame has been pushed yet: expected one before a correction")
        latest = LatestFrame(self.count - 1, self._features)
        self._tracks.prompt(object, self.count - 1, latest, self._tracks.read(**prompt))
        return self._result_of_last(self._tracks)

    def remove(self, object: Hashable) -> None:
        """Remove an object.

        Raises:
            PromptError: There is no such object.
        """
        if self._tracks is None:
            raise PromptError(f"no object {object!r}: none was prompted yet")
        self._tracks.remove(object)

    def _first_tracks(self, size_hw: SizeHW) -> Tracks:
        return Tracks(
            self.engine,
            self.policy,
            max_objects=self.max_objects,
            size_hw=size_hw,
            input_hw=self.processor.input_hw,
            spool=None,
            can_rewind=False,
        )

    def _result_of_last(self, tracks: Tracks) -> FrameResult:
        index = self.count - 1
        return tracks.frame_result(index, index / self.fps, tracks.results_in(index), self._image)
