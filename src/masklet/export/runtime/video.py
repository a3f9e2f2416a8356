"""Videos and live frames without torch: see ``masklet.video.session`` and ``masklet.video.stream``."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Generator, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from masklet.errors import ConfigError, ImageError, PromptError, SessionError, VideoError
from masklet.export.runtime.image import masks_of
from masklet.export.runtime.network import ImageFeatures, OnnxNetwork
from masklet.export.runtime.processing import ArrayProcessor
from masklet.export.runtime.tracking import ArrayTracks, ObjectResult
from masklet.images.options import ImageOptions
from masklet.images.reading import pixels_of, resolved_for
from masklet.images.values import to_rgb8
from masklet.masks import join_chunks
from masklet.numbers import real_number, whole_number
from masklet.results import Masks
from masklet.video.exporters import TrackFormat, write_tracks
from masklet.video.frame_prompts import checked_prompts
from masklet.video.frame_result import FrameResult
from masklet.video.frames import Video, width_by_height
from masklet.video.outputs import open_writers, output_kind, refuse_to_overwrite, step_between
from masklet.video.plan import Direction, plan_frames
from masklet.video.policy import PaperPolicy
from masklet.video.readers import Frame
from masklet.video.spool import Spool
from masklet.video.tracking_lock import TrackingLock

MAX_ENCODED = 2
"""Frames whose features are kept: the one that is tracked, and one that is prompted beside it."""


class OnnxVideo:
    """A video, and the objects that are tracked through it. Made by ``OnnxSegmenter.video``.

    It behaves as ``masklet.VideoSession``. It cannot be saved and resumed, and finds no objects on its own.
    """

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
        self._times: dict[int, float] = {}
        self._remaining: list[range] = []
        self._tracking = TrackingLock()

    def __repr__(self) -> str:
        return f"OnnxVideo({self.video.name}, {width_by_height(self.video.size_hw)}, {len(self.object_ids)} objects)"

    @property
    def object_ids(self) -> tuple[Hashable, ...]:
        """The ids that the objects were prompted with."""
        return tuple(self._tracks.objects)

    @property
    def tracked_frames(self) -> tuple[int, ...]:
        """Frames that an object was tracked through, from first to last."""
        return tuple(sorted({frame for track in self._tracks.objects.values() for frame in track.tracked_steps}))

    @property
    def decides_late(self) -> bool:
        """Whether the best of several hypotheses is known only later: never with the paper's memory policy."""
        return False

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
        return frame_result(self._tracks, frame, 0.0, {object: result}, image).masks

    def remove(self, object: Hashable, frame: int | None = None) -> None:
        """Removes an object, or undoes its prompts in one frame: see ``VideoSession.remove``."""
        if frame is None:
            self._tracks.remove(object)
        else:
            self._tracks.remove_prompt(object, whole_number("frame", frame, PromptError))

    def reset(self) -> None:
        """Removes all objects."""
        for object_id in self.object_ids:
            self._tracks.remove(object_id)

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

    def write(self, path: str | os.PathLike[str]) -> None:
        """Writes the results of all tracked frames: see ``VideoSession.write``."""
        kind = output_kind(path)
        refuse_to_overwrite(self.video, path)
        if not (frames := self.tracked_frames):
            raise PromptError("nothing to write: track first, for result in video.track(): ...")
        stride = step_between(frames)
        with open_writers(**kind, fps=self.video.fps / stride, size_hw=self.video.size_hw) as writers:
            for result in self._stored_results(with_images="overlay" in kind, stride=stride, packed="jsonl" in kind):
                writers.write(result)

    def export(
        self,
        path: str | os.PathLike[str],
        format: TrackFormat | None = None,
        *,
        categories: str | Mapping[Hashable, str] | None = None,
        names: Sequence[str] | None = None,
        tolerance: float = 0.0,
    ) -> None:
        """Writes all tracks for CVAT, or as MOT or MOTS: see ``VideoSession.export``."""
        refuse_to_overwrite(self.video, path)
        if not self.tracked_frames:
            raise PromptError("nothing to export: track first, for result in video.track(): ...")
        write_tracks(
            path,
            self._stored_results(with_images=False),
            format,
            categories=categories,
            names=names,
            tolerance=tolerance,
            every=step_between(self.tracked_frames),
            count=self.video.count,
        )

    def _stored_results(self, *, with_images: bool, stride: int = 1, packed: bool = False) -> Generator[FrameResult]:
        frames = self.tracked_frames
        if not with_images:
            for index in frames:
                yield self._stored(index, self._times[index], None, packed)
            return
        for frame in self.video.frames(frames[0], frames[-1] + 1, stride):
            if frame.index in frames:
                yield self._stored(frame.index, frame.time, frame.image, packed)

    def _stored(self, index: int, time: float, image: np.ndarray | None, packed: bool) -> FrameResult:
        tracks = self._tracks.objects.items()
        results = {name: track.results[index] for name, track in tracks if index in track.results}
        return frame_result(self._tracks, index, time, results, image, packed=packed)

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
                    yield frame_result(self._tracks, frame.index, frame.time, results, frame.image, packed=packed)
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


@dataclass(frozen=True)
class LatestFrame:
    """Gives the features of the latest frame. A stream cannot encode an earlier one again."""

    index: int
    features: ImageFeatures

    def __call__(self, frame: int) -> ImageFeatures:
        """See ``tracking.FeaturesOf``."""
        if frame != self.index:
            raise ConfigError(f"the memory policy reads frame {frame} of a stream, which no longer has its memory map")
        return self.features


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
        self.fps = real_number("fps", fps, PromptError, least=1e-6, most=1e6)
        self.image_options = image_options
        self.count = 0
        """Frames pushed so far."""
        self._time = 0.0
        self._processor = ArrayProcessor(network.manifest)
        self._tracks: ArrayTracks | None = None

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
        index, seconds = self.count, self._time_of(time)
        tracks = self._tracks_for((image.shape[0], image.shape[1]))
        read = {name: tracks.read(**prompt) for name, prompt in checked_prompts(prompts).items()}
        latest = LatestFrame(index, self.network.encode(self._processor.frame_values(image)))
        for name, prompt in read.items():
            tracks.prompt(name, index, latest, prompt)
        results = tracks.advance(index, latest, step=1)
        tracks.forget_before(index)
        result = frame_result(tracks, index, seconds, results, image, packed=packed)
        self._tracks, self.count, self._time, self.image_options = tracks, index + 1, seconds, options
        return result

    def remove(self, object: Hashable) -> None:
        """Removes an object.

        Raises:
            PromptError: There is no such object.
        """
        if self._tracks is None:
            raise PromptError(f"no object {object!r}: none was prompted yet")
        self._tracks.remove(object)

    def _time_of(self, time: float | None) -> float:
        seconds = self.count / self.fps if time is None else real_number("time", time, PromptError)
        if self.count and seconds <= self._time:
            raise PromptError(f"time is {seconds:g}: expected more than that of the frame before, {self._time:g}")
        return seconds

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
        if size_hw != self._tracks.size_hw:
            raise ImageError(
                f"frame {self.count} is {width_by_height(size_hw)}, the frames before it "
                f"{width_by_height(self._tracks.size_hw)}: expected one size throughout"
            )
        return self._tracks.copy()


def frame_result(
    tracks: ArrayTracks,
    index: int,
    time: float,
    results: Mapping[Hashable, ObjectResult],
    image: np.ndarray | None,
    *,
    packed: bool = False,
) -> FrameResult:
    """What callers get of a frame: the masks of its objects at the video's size."""
    found = list(results.values())
    logits = np.stack([one.logits for one in found]) if found else np.zeros((0, *tracks.logits_hw), np.float32)
    masks: Any = join_chunks(masks_of(logits, tracks.size_hw), len(found), tracks.size_hw, packed=packed)
    numbers = np.array([tracks.objects[name].number for name in results], int)
    scores = np.array([one.iou_score for one in found], np.float32)
    kept = np.zeros((len(found), 0, 0), np.float32) if packed else logits
    return FrameResult(
        index,
        time,
        tuple(results),
        Masks(masks, kept, scores, numbers, image),
        np.array([one.object_score for one in found], np.float32),
    )
