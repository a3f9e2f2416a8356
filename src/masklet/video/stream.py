"""Live frames: they arrive one at a time, without a known end, and memory does not grow."""

from __future__ import annotations

import copy
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np

from masklet.config import SizeHW
from masklet.engine import Engine
from masklet.errors import PromptError
from masklet.image import EncodedImage
from masklet.images.options import DEFAULT, ImageOptions
from masklet.images.reading import pixels_of, resolved_for
from masklet.images.values import to_rgb8
from masklet.model.neck import Features
from masklet.processing import ImageProcessor
from masklet.video.encoded_frames import encode_frame
from masklet.video.frame_prompts import checked_prompts
from masklet.video.frame_result import FrameResult
from masklet.video.policy import MemoryPolicy
from masklet.video.stream_frames import LatestFrame, check_stream, time_of_frame
from masklet.video.track import check_can_track
from masklet.video.tracks import Tracks


class VideoStream:
    """Tracks objects through frames as they arrive. Made by ``Segmenter.stream``.

    A stream is not thread-safe: use it from one thread at a time. Streams in several threads may share a ``Segmenter``.
    """

    def __init__(
        self,
        engine: Engine,
        processor: ImageProcessor,
        policy: MemoryPolicy,
        *,
        max_objects: int,
        fps: float,
        image_options: ImageOptions = DEFAULT,
    ) -> None:
        max_objects = check_can_track(engine, max_objects, processor.input_hw)
        self.engine = engine
        self.processor = processor
        self.policy = policy
        self.max_objects = max_objects
        self.fps = check_stream(policy, fps)
        self.image_options = image_options
        """How frames are read; ``value_range="auto"`` becomes the range of the first frame."""
        self.count = 0
        """Frames pushed so far."""
        self._tracks: Tracks | None = None
        self._features: Features | None = None
        self._image: np.ndarray | None = None
        self._time = 0.0

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
        time: float | None = None,
        packed: bool = False,
    ) -> FrameResult:
        """Track all objects into the next frame.

        Args:
            frame: An image, of the same size each time: see ``masklet.images.reading.read_image``. Or what ``encode``
                made of it, here or in another stream of the same model and settings.
            prompts: Objects to add or to correct in this frame, by id, each with ``points``, ``labels``, ``box`` or
                ``mask`` as ``VideoSession.prompt`` takes them: ``{"cup": {"box": (300, 0, 500, 400)}}``.
            time: Seconds since the first frame, for the result, as ``LiveVideo`` gives it. If None, the number of
                frames before this one, divided by ``fps``.
            packed: As in ``VideoSession.track``.

        Returns:
            All objects in this frame.

        Raises:
            PromptError: A prompt is invalid; ``time`` is not a number, or not later than that of the last frame.
            ImageError: The frame is not an image, or differs in size from those before. After any error the stream is
                as before the call, so the frame may be pushed again.
        """
        encoded, options = (frame, self.image_options) if isinstance(frame, EncodedImage) else self._encode(frame)
        size_hw, features, image = encoded.size_hw, encoded.features, encoded.image
        index = self.count
        time = time_of_frame(index, time, fps=self.fps, previous=self._time)
        # A copy, so that an error leaves the stream as it was.
        tracks = self._first_tracks(size_hw) if self._tracks is None else self._tracks.copy()
        tracks.check_size(size_hw, index)
        read = {object_id: tracks.read(**prompt) for object_id, prompt in checked_prompts(prompts).items()}
        latest = LatestFrame(index, features)
        for object_id, prompt in read.items():
            tracks.prompt(object_id, index, latest, prompt)
        results = tracks.advance(index, latest, step=1)
        tracks.forget_before(index)
        result = tracks.frame_result(index, time, results, image, packed=packed)
        self._tracks, self._features, self._image, self.count = tracks, features, image, index + 1
        self._time, self.image_options = time, options
        return result

    def encode(self, frame: Any) -> EncodedImage:
        """Encodes a frame for ``push``, so that several streams can share it.

        Args:
            frame: As in ``push``.

        Raises:
            ImageError: The frame is not an image.
        """
        return self._encode(frame)[0]

    def copy(self) -> VideoStream:
        """An independent copy: frames pushed to one do not change the other."""
        copied = copy.copy(self)
        copied._tracks = None if self._tracks is None else self._tracks.copy()
        return copied

    def memory_bytes(self) -> int:
        """About what the stream takes in memory: its last frame with features, and memory maps."""
        tracks = () if self._tracks is None else self._tracks.objects.values()
        features = sum(tensor.untyped_storage().nbytes() for tensor in self._features or ())
        pixels = 0 if self._image is None else self._image.nbytes
        return features + pixels + sum(bank.tensor_bytes() for track in tracks for bank in track.banks)

    def _encode(self, frame: Any) -> tuple[EncodedImage, ImageOptions]:
        """The encoded frame, and the options that it was read with."""
        pixels = pixels_of(frame, self.image_options)
        options = self.image_options if self.count else resolved_for([pixels], self.image_options)
        image = to_rgb8(pixels, options)
        features = encode_frame(self.engine, self.processor, image)
        return EncodedImage(self.engine, features, (image.shape[0], image.shape[1]), image), options

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
        self._tracks.prompt(
            object, self.count - 1, latest, self._tracks.read(**checked_prompts({object: prompt})[object])
        )
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
        return tracks.frame_result(index, self._time, tracks.results_in(index), self._image)
