"""Videos and live frames without torch: see ``masklet.video.session`` and ``masklet.video.stream``."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Generator, Hashable, Mapping
from typing import Any

import numpy as np

from masklet.errors import PromptError, SessionError, VideoError
from masklet.export.runtime.network import ImageFeatures, OnnxNetwork
from masklet.export.runtime.processing import ArrayProcessor
from masklet.export.runtime.tracking import ArrayTracks
from masklet.images.options import ImageOptions
from masklet.images.reading import pixels_of, resolved_for
from masklet.images.values import to_rgb8
from masklet.numbers import whole_number
from masklet.results import Masks
from masklet.video.frame_column import FrameColumn
from masklet.video.frame_prompts import checked_prompts
from masklet.video.frame_result import FrameResult
from masklet.video.frames import Video
from masklet.video.plan import Direction, plan_frames
from masklet.video.policy import PaperPolicy
from masklet.video.readers import Frame
from masklet.video.session_objects import SessionObjects
from masklet.video.spool import Spool
from masklet.video.stream_frames import LatestFrame, check_frame_size, check_stream, time_of_frame
from masklet.video.tracking_lock import TrackingLock

MAX_ENCODED = 2
"""Frames whose features are kept: the one that is tracked, and one that is prompted beside it."""


class OnnxVideo(SessionObjects):
    """A video, and the objects that are tracked through it. Made by ``OnnxSegmenter.video``.

    It behaves as ``masklet.VideoSession``. It cannot be saved and resumed, and finds no objects on its own.
    """

    _tracks: ArrayTracks

    def __init__(self, network: OnnxNetwork, video: Video, policy: PaperPolicy, *, max_objects: int) -> None:
        self.network = network
        self.video = video
        self._tracks = ArrayTracks(
            network,
            policy,
            max_objects=max_objects,
            size_hw=video.size_hw,
            spool=Spool(),
            can_rewind=video.count is not None,
        )
        self._processor = ArrayProcessor(network.manifest)
        self._encoded: OrderedDict[int, tuple[ImageFeatures, np.ndarray]] = OrderedDict()
        self._times: FrameColumn[float] = FrameColumn("d")
        self._remaining: list[range] = []
        self._tracking = TrackingLock()

    def prompt(
        self,
        frame: int,
        object: Hashable = 1,
        *,
        points: Any = None,
        labels: Any = None,
        box: Any = None,
        mask: Any = None,
    ) -> Masks:
        """Prompts or corrects an object in a frame: arguments, result and errors of ``VideoSession.prompt``."""
        if (frame := whole_number("frame", frame, PromptError)) < 0:
            raise VideoError(f"there is no frame {frame} in {self.video.name}: frames count from 0")
        prompt = self._tracks.read(points=points, labels=labels, box=box, mask=mask)
        result = self._tracks.prompt(object, frame, self._features_of, prompt)
        image = self._encoded[frame][1] if frame in self._encoded else self.video[frame].image
        return self._tracks.frame_result(frame, 0.0, {object: result}, image).masks

    def track(
        self,
        start: int | None = None,
        end: int | None = None,
        direction: Direction = "forward",
        *,
        every: int = 1,
        packed: bool = False,
    ) -> Generator[FrameResult]:
        """Tracks all objects through the video: arguments, results and errors of ``VideoSession.track``."""
        prompted = {frame for track in self._tracks.objects.values() for frame in track.prompted}
        plan = plan_frames(self.video, prompted, start, end, direction, every=every)
        self._tracking.check()
        return self._track(plan, packed)

    def resume_tracking(self, *, packed: bool = False) -> Generator[FrameResult]:
        """Continues the last ``track``, which was interrupted.

        Raises:
            SessionError: Nothing was ever tracked.
        """
        if not self._times and not self._remaining:
            raise SessionError("nothing to continue: no frame was tracked in this session. Call track()")
        self._tracking.check()
        return self._track(None, packed)

    def _track(self, plan: list[range] | None, packed: bool) -> Generator[FrameResult]:
        with self._tracking:
            self._remaining = self._remaining if plan is None else plan
            while self._remaining:
                frames, *others = self._remaining
                for frame in self.video.frames(frames.start, frames.stop, frames.step) if frames else ():
                    self._encode(frame)
                    results = self._tracks.advance(frame.index, self._features_of, frames.step)
                    self._times[frame.index] = frame.time
                    self._remaining = [range(frame.index + frames.step, frames.stop, frames.step), *others]
                    yield self._tracks.frame_result(frame.index, frame.time, results, frame.image, packed=packed)
                self._remaining = others

    def _encode(self, frame: Frame) -> None:
        if frame.index not in self._encoded:
            features = self.network.encode(self._processor.frame_values(frame.image))
            self._encoded[frame.index] = (features, frame.image)
        self._encoded.move_to_end(frame.index)
        while len(self._encoded) > MAX_ENCODED:
            self._encoded.popitem(last=False)

    def _features_of(self, index: int) -> ImageFeatures:
        if index not in self._encoded:
            self._encode(self.video[index])
        return self._encoded[index][0]


class OnnxStream:
    """Tracks objects through frames as they arrive, as ``masklet.VideoStream`` does. Made by ``OnnxSegmenter.stream``.

    It is not thread-safe: use it from one thread at a time.
    """

    def __init__(
        self, network: OnnxNetwork, policy: PaperPolicy, *, max_objects: int, fps: float, image_options: ImageOptions
    ) -> None:
        self.network = network
        self.policy = policy
        self.max_objects = max_objects
        self.fps = check_stream(policy, fps)
        self.image_options = image_options
        self.count = 0
        """Frames pushed so far."""
        self._time = 0.0
        self._processor = ArrayProcessor(network.manifest)
        self._tracks: ArrayTracks | None = None
        self._latest: LatestFrame[ImageFeatures] | None = None
        self._image: np.ndarray | None = None

    def __repr__(self) -> str:
        objects = f"{len(self.object_ids) or 'no'} object{'s' * (len(self.object_ids) != 1)}"
        return f"OnnxStream({self.count} frame{'s' * (self.count != 1)}, {objects})"

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
        """Tracks all objects into the next frame: arguments, result and errors of ``VideoStream.push``."""
        pixels = pixels_of(frame, self.image_options)
        options = self.image_options if self.count else resolved_for([pixels], self.image_options)
        image = to_rgb8(pixels, options)
        index = self.count
        seconds = time_of_frame(index, time, fps=self.fps, previous=self._time)
        tracks = self._tracks_for((image.shape[0], image.shape[1]))
        read = {name: tracks.read(**prompt) for name, prompt in checked_prompts(prompts).items()}
        latest = LatestFrame(index, self.network.encode(self._processor.frame_values(image)))
        for name, prompt in read.items():
            tracks.prompt(name, index, latest, prompt)
        results = tracks.advance(index, latest, step=1)
        tracks.forget_before(index)
        result = tracks.frame_result(index, seconds, results, image, packed=packed)
        self._tracks, self.count, self._time, self.image_options = tracks, index + 1, seconds, options
        self._latest, self._image = latest, image
        return result

    def correct(self, object: Hashable, **prompt: Any) -> FrameResult:
        """Prompts an object in the last frame, again or for the first time: see ``VideoStream.correct``."""
        if self._tracks is None or self._latest is None:
            raise PromptError("no frame has been pushed yet: expected one before a correction")
        index = self._latest.index
        read = self._tracks.read(**checked_prompts({object: prompt})[object])
        self._tracks.prompt(object, index, self._latest, read)
        return self._tracks.frame_result(index, self._time, self._tracks.results_in(index), self._image)

    def remove(self, object: Hashable) -> None:
        """Removes an object.

        Raises:
            PromptError: There is no such object.
        """
        if self._tracks is None:
            raise PromptError(f"no object {object!r}: none was prompted yet")
        self._tracks.remove(object)

    def _tracks_for(self, size_hw: tuple[int, int]) -> ArrayTracks:
        """A copy of the objects, so that an error leaves the stream as it was."""
        if self._tracks is None:
            return ArrayTracks(
                self.network,
                self.policy,
                max_objects=self.max_objects,
                size_hw=size_hw,
                spool=None,
                can_rewind=False,
            )
        check_frame_size(size_hw, self._tracks.size_hw, self.count)
        return self._tracks.copy()
