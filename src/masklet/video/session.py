"""A video: prompt objects, track them, correct them, go back."""

from __future__ import annotations

import itertools
import math
import os
import sys
from collections.abc import Generator, Hashable, Iterator
from contextlib import contextmanager
from functools import partial
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from masklet.engine import Engine
from masklet.errors import PromptError, SessionError, VideoError
from masklet.everything.options import EverythingKeywords, EverythingOptions
from masklet.model.neck import Features
from masklet.processing import Sam2ImageProcessor
from masklet.results import Masks
from masklet.results.visualisation import notebook_html, notebook_png
from masklet.video.autosave import autosaving
from masklet.video.discovery import Discovery, ObjectFinder
from masklet.video.encoded_frames import EncodedFrames
from masklet.video.frame_column import FrameColumn
from masklet.video.frame_result import FrameResult
from masklet.video.frames import Video, VideoSource, width_by_height
from masklet.video.outputs import open_writers, output_kind, refuse_to_overwrite
from masklet.video.plan import Direction, plan_frames, whole_number
from masklet.video.policy import MemoryPolicy
from masklet.video.readers import Frame
from masklet.video.saved import check_can_save, read_saved, save_session
from masklet.video.spool import Spool
from masklet.video.tracks import Tracks

if TYPE_CHECKING:
    from typing_extensions import Unpack

NOTEBOOK_FRAMES = 4
"""Frames that a notebook shows of a video."""
STILL_TRACKING = (
    "this session is being tracked already: finish the loop over its track(), resume_tracking() or everything(), or "
    "call close() on what it returned, before starting another"
)


class VideoSession:
    """A video, and the objects that are tracked through it. Made by ``Segmenter.video``.

    Prompts and corrections may come before, between and during the steps of one ``track``; a second ``track``,
    ``resume_tracking`` or ``everything`` may start only when the first has ended or was closed.

    A session is not thread-safe: use it, and the generators it returns, from one thread at a time. Sessions in several
    threads may share a ``Segmenter``.
    """

    def __init__(
        self, engine: Engine, processor: Sam2ImageProcessor, video: Video, policy: MemoryPolicy, *, max_objects: int
    ) -> None:
        self.engine = engine
        self.processor = processor
        self.video = video
        self._tracks = Tracks(
            engine,
            policy,
            max_objects=max_objects,
            size_hw=video.size_hw,
            input_hw=processor.input_hw,
            spool=Spool(),
            can_rewind=video.count is not None,
        )
        self._encoded = EncodedFrames(engine, processor, video)
        self._times: FrameColumn[float] = FrameColumn("d")  # of tracked frames
        self._remaining: list[range] = []  # frames that are still to be tracked
        self._tracking = Lock()

    @classmethod
    def resume(
        cls,
        engine: Engine,
        processor: Sam2ImageProcessor,
        path: str | os.PathLike[str],
        video: VideoSource | None = None,
    ) -> VideoSession:
        """See ``Segmenter.resume``."""
        saved = read_saved(path)
        saved.check_model(engine.model)
        processor, opened = processor.with_size(saved.input_hw), saved.open_video(video)
        session = cls(engine, processor, opened, saved.policy, max_objects=saved.max_objects)
        session._times, session._remaining = saved.restore(session._tracks), saved.remaining
        return session

    def __repr__(self) -> str:
        frames = "frames" if self.video.count is None else f"{self.video.count} frame{'s' * (self.video.count != 1)}"
        objects = f"{len(self.object_ids) or 'no'} object{'s' * (len(self.object_ids) != 1)}"
        return f"VideoSession({self.video.name}, {frames} of {width_by_height(self.video.size_hw)}, {objects})"

    def _repr_png_(self) -> bytes | None:
        """Notebooks show a few frames side by side with their masks, and nothing of a video that is read only once."""
        if self.video.count is None:
            return None
        tracks = self._tracks
        frames = sorted({f for track in tracks.objects.values() for f in track.bank.frames}) or range(self.video.count)
        few = np.unique(np.linspace(0, len(frames) - 1, NOTEBOOK_FRAMES).round().astype(int))
        results = [
            tracks.frame_result(index, 0.0, tracks.results_in(index), self.video[index].image)
            for index in (frames[place] for place in few)
        ]
        return notebook_png(Image.fromarray(np.concatenate([result.masks.overlay() for result in results], axis=1)))

    def _repr_html_(self) -> str:
        """The same, with a table of the objects."""
        rows = [
            (object_id, ", ".join(map(str, sorted(track.bank.prompted))), f"{len(track.tracked_steps)} frames")
            for object_id, track in self._tracks.objects.items()
        ]
        headings = ("object", "prompted in frame", "tracked through")
        return notebook_html(self._repr_png_(), repr(self), [headings, *rows] if rows else [])

    @property
    def object_ids(self) -> tuple[Hashable, ...]:
        """The ids that the objects were prompted with."""
        return tuple(self._tracks.objects)

    @property
    def tracked_frames(self) -> tuple[int, ...]:
        """Frames that an object was tracked through, from first to last."""
        return tuple(sorted({frame for track in self._tracks.objects.values() for frame in track.tracked_steps}))

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
        """Prompt an object in a frame. In a frame that was tracked, this corrects the object there.

        All points of a frame add up; a new box or mask replaces an earlier one. The frame keeps this result when the
        video is tracked again, and guides the frames around it. Other objects do not change.

        Args:
            frame: Its number, from 0.
            object: The object's id, anything hashable.
            points: [(x, y), …] on the object; (x, y, 0) is beside it. Pixels of the video, x right and y down.
            labels: 1 on the object, 0 beside it; all 1 if None.
            box: (x0, y0, x1, y1) around it.
            mask: Its mask, (height, width), taken as it is.

        Returns:
            The object's mask in this frame.

        Raises:
            PromptError: The prompt is invalid.
            VideoError: The video has no such frame.
        """
        if (frame := whole_number("frame", frame)) < 0:
            raise VideoError(f"there is no frame {frame} in {self.video.name}: frames count from 0")
        prompt = self._tracks.read(points=points, labels=labels, box=box, mask=mask)
        result = self._tracks.prompt(object, frame, self._features_of, prompt)
        return self._tracks.frame_result(frame, 0.0, {object: result}, self._encoded.image(frame)).masks

    def remove(self, object: Hashable, frame: int | None = None) -> None:
        """Remove an object, or undo its prompts in one frame. Other objects do not change.

        A frame whose prompts are undone has no result until it is tracked again.

        Raises:
            PromptError: No such object or prompt, or the only prompt of the object.
        """
        if frame is None:
            self._tracks.remove(object)
        else:
            self._tracks.remove_prompt(object, whole_number("frame", frame))

    def reset(self) -> None:
        """Remove all objects."""
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
        autosave: float | None = None,
        autosave_to: str | os.PathLike[str] | None = None,
    ) -> Generator[FrameResult]:
        """Track all objects through the video, and yield each frame as it is done.

        Args:
            start: First frame; the first prompted frame if None, or the last one when going backward.
            end: Last frame, included; the video's end if None, or its beginning when going backward.
            direction: ``"forward"``, ``"backward"``, or ``"both"``: first forward from ``start``, then backward.
            every: Step from each frame to the next; the frames between are skipped.
            packed: Yield masks as run lengths (``masklet.masks.PackedMasks``), without logits: for hundreds of objects
                in a large video, which do not fit in memory otherwise.
            autosave: ``save`` to ``autosave_to`` at intervals of so many seconds, and when tracking ends or is
                interrupted.
            autosave_to: The file. After a crash, open it with ``sam.resume`` and call ``resume_tracking``.

        Raises:
            PromptError: Nothing was prompted; an argument is invalid.
            VideoError: There is no such frame.
            SessionError: It cannot be saved; another generator of this session is still tracking.
        """
        plan = self.plan(start, end, direction, every=every)
        return self._autosaved(self._track(plan, packed), autosave, autosave_to)

    def resume_tracking(
        self,
        *,
        packed: bool = False,
        autosave: float | None = None,
        autosave_to: str | os.PathLike[str] | None = None,
    ) -> Generator[FrameResult]:
        """Continue the last ``track`` or ``everything``, which was interrupted here or in the session that was resumed.

        Args:
            packed: As in ``track``.
            autosave: As in ``track``.
            autosave_to: As in ``track``.

        Raises:
            SessionError: It cannot be saved; another generator of this session is still tracking.
        """
        return self._autosaved(self._track(None, packed), autosave, autosave_to)

    def everything(
        self,
        *,
        every: int = 30,
        same_iou: float = 0.5,
        min_object: int = 100,
        patience: int = 100,
        packed: bool = False,
        **options: Unpack[EverythingKeywords],
    ) -> Generator[FrameResult]:
        """Find objects without prompts and track them all forward, yielding each frame as it is done.

        Every n-th frame from 0 on is segmented as ``Segmenter.everything`` does it. A mask found there belongs to a
        known object, or to a new one. New objects have the ids 1, 2, 3 …: an object keeps its id, and no id is used
        twice. Objects that were prompted before are tracked with them. Afterwards ``write``, ``track`` and corrections
        work as after ``track``; after an interruption, ``resume_tracking`` tracks what was found through the rest.

        Args:
            every: Step from one frame that is searched for objects to the next.
            same_iou: A mask belongs to a known object if their IoU is at least this.
            min_object: Masks of fewer pixels are ignored.
            patience: Frames for which an object may be out of sight. Then it is not tracked any more, unless it is
                prompted again; what is found in its place is a new object.
            packed: As in ``track``.
            options: As in ``Segmenter.everything``.

        Raises:
            ConfigError: An option is invalid.
            SessionError: Another generator of this session is still tracking.
        """
        what = EverythingOptions.for_model(
            self.engine.config, options, "every", "same_iou", "min_object", "patience", "packed"
        )
        discovery = Discovery(every=every, same_iou=same_iou, min_object=min_object, patience=patience, options=what)
        self._refuse_second_tracking()
        return self._discover(discovery, packed)

    def plan(
        self, start: int | None = None, end: int | None = None, direction: Direction = "forward", *, every: int = 1
    ) -> list[range]:
        """The frames that ``track`` goes through with the same arguments, in its order.

        Raises:
            PromptError: Nothing was prompted; an argument is invalid.
            VideoError: There is no such frame.
        """
        prompted = {frame for track in self._tracks.objects.values() for frame in track.bank.prompted}
        return plan_frames(self.video, prompted, start, end, direction, every=every)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Save the session so that ``Segmenter.resume`` can continue it. The video itself is not saved.

        Raises:
            SessionError: The file cannot be written, or an object's id is neither text nor a whole number; an older
                file is left as it was.
        """
        save_session(path, self._tracks, self.video, self._times, self._remaining)

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the results of all tracked frames, in the video's order. Nothing is tracked again.

        If every n-th frame was tracked, the written video shows so many fewer frames a second, and is as long.

        Args:
            path: Its suffix chooses a video with the masks painted over it (``.mp4``, ``.mkv`` …), a line of JSON for
                each frame (``.jsonl``), or, without suffix, a folder of PNGs as in DAVIS. See ``video.outputs``.

        Raises:
            VideoError: Another suffix; it cannot be written; it is the video itself; a video that came frame by frame
                cannot be read again.
            PromptError: Nothing was tracked yet.
        """
        kind = output_kind(path)
        refuse_to_overwrite(self.video, path)
        frames = self.tracked_frames
        if not frames:
            raise PromptError("nothing to write: track first, for result in video.track(): ...")
        stride = math.gcd(*(after - before for before, after in itertools.pairwise(frames))) or 1
        with open_writers(**kind, fps=self.video.fps / stride, size_hw=self.video.size_hw) as writers:
            for result in self._stored_results(with_images="overlay" in kind, stride=stride):
                writers.write(result)

    def _stored_results(self, *, with_images: bool, stride: int = 1) -> Generator[FrameResult]:
        tracks, frames = self._tracks, self.tracked_frames
        if not with_images:
            for index in frames:
                yield tracks.frame_result(index, self._times[index], tracks.results_in(index), None)
            return
        wanted = set(frames)
        for frame in self.video.frames(frames[0], frames[-1] + 1, stride):
            if frame.index in wanted:
                yield tracks.frame_result(frame.index, frame.time, tracks.results_in(frame.index), frame.image)

    def _autosaved(
        self, results: Generator[FrameResult], seconds: float | None, path: str | os.PathLike[str] | None
    ) -> Generator[FrameResult]:
        self._refuse_second_tracking()
        if (seconds is None) != (path is None):
            raise SessionError("autosave=seconds and autosave_to=path go together: expected both, or none of them")
        if seconds is None or path is None:
            return results
        check_can_save(self._tracks)
        return autosaving(results, partial(self.save, path), seconds)

    def _refuse_second_tracking(self) -> None:
        if self._tracking.locked():
            raise SessionError(STILL_TRACKING)

    @contextmanager
    def _tracking_alone(self) -> Iterator[None]:
        """Own the session's plan until the generator ends, is closed or is garbage-collected."""
        if not self._tracking.acquire(blocking=False):
            raise SessionError(STILL_TRACKING)
        try:
            yield
        finally:
            self._tracking.release()

    def _track(self, plan: list[range] | None, packed: bool) -> Generator[FrameResult]:
        """Track through the plan, or through what remains of the last one."""
        with self._tracking_alone():
            self._remaining = self._remaining if plan is None else plan
            while self._remaining:
                frames, *others = self._remaining
                for frame in self.video.frames(frames.start, frames.stop, frames.step) if frames else ():
                    results = self._tracks.advance(frame.index, partial(self._features_of, at_hand=frame), frames.step)
                    self._times[frame.index] = frame.time
                    self._remaining = [range(frame.index + frames.step, frames.stop, frames.step), *others]
                    yield self._tracks.frame_result(frame.index, frame.time, results, frame.image, packed=packed)
                self._remaining = others

    def _discover(self, discovery: Discovery, packed: bool) -> Generator[FrameResult]:
        with self._tracking_alone():
            finder = ObjectFinder(self._tracks, self.processor, discovery)
            count = sys.maxsize if self.video.count is None else self.video.count
            for frame in self.video.frames():
                results = finder.advance(frame, partial(self._features_of, at_hand=frame))
                self._times[frame.index] = frame.time
                self._remaining = [range(frame.index + 1, count)]
                result = self._tracks.frame_result(frame.index, frame.time, results, frame.image, packed=packed)
                finder.sightings.add(result)
                yield result
            self._remaining = []

    def _features_of(self, index: int, at_hand: Frame | None = None) -> Features:
        return self._encoded.features(index, at_hand)
