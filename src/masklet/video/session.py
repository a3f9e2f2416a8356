"""A video: prompt objects, track them, correct them, go back."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Generator, Hashable
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

from masklet.detection import DEFAULT_THRESHOLD, Detector, Words
from masklet.engine import Engine
from masklet.errors import PromptError, SessionError, VideoError
from masklet.everything.options import EverythingKeywords
from masklet.model.neck import Features
from masklet.numbers import real_number, whole_number
from masklet.processing import ImageProcessor
from masklet.results import Masks
from masklet.results.visualisation import notebook_html
from masklet.video.autosave import autosaving
from masklet.video.discovery import Discovery, ObjectFinder, prompt_detections, search_for
from masklet.video.encoded_frames import EncodedFrames
from masklet.video.frame_column import FrameColumn
from masklet.video.frame_result import FrameResult
from masklet.video.frames import Video, VideoSource
from masklet.video.notebooks import frames_png, rows_of_objects
from masklet.video.plan import Direction, plan_frames
from masklet.video.policy import MemoryPolicy
from masklet.video.readers import Frame
from masklet.video.saved import check_can_save, read_saved, save_session
from masklet.video.session_objects import SessionObjects
from masklet.video.spool import Spool
from masklet.video.tracking_lock import TrackingLock
from masklet.video.tracks import Tracks

if TYPE_CHECKING:
    from typing_extensions import Unpack


class VideoSession(SessionObjects):
    """A video, and the objects that are tracked through it. Made by ``Segmenter.video``.

    Prompts and corrections may come before, between and during the steps of one ``track``; a second ``track``,
    ``resume_tracking`` or ``everything`` may start only when the first has ended or was closed.

    A session is not thread-safe: use it, and the generators it returns, from one thread at a time. Sessions in several
    threads may share a ``Segmenter``.
    """

    _tracks: Tracks

    def __init__(
        self, engine: Engine, processor: ImageProcessor, video: Video, policy: MemoryPolicy, *, max_objects: int
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
        self._tracking = TrackingLock()

    @classmethod
    def resume(
        cls,
        engine: Engine,
        processor: ImageProcessor,
        path: str | os.PathLike[str],
        video: VideoSource | None = None,
        policy: MemoryPolicy | None = None,
    ) -> VideoSession:
        """See ``Segmenter.resume``."""
        saved = read_saved(path)
        saved.check_model(engine.model)
        processor, opened = processor.with_size(saved.input_hw), saved.open_video(video)
        session = cls(engine, processor, opened, saved.policy(policy), max_objects=saved.max_objects)
        session._times, session._remaining = saved.restore(session._tracks), saved.remaining
        return session

    def __reduce__(self) -> NoReturn:
        raise TypeError("a session has open files and cannot be copied or pickled: save(path), then sam.resume(path)")

    def _repr_png_(self) -> bytes | None:
        return frames_png(self.video, self._tracks)

    def _repr_html_(self) -> str:
        return notebook_html(self._repr_png_(), repr(self), rows_of_objects(self._tracks))

    def prompt(
        self,
        frame: int,
        object: Hashable = 1,
        *,
        points: Any = None,
        labels: Any = None,
        box: Any = None,
        mask: Any = None,
        text: Words | None = None,
        detector: Any = None,
        detection_threshold: float = DEFAULT_THRESHOLD,
    ) -> Masks:
        """Prompt an object in a frame. In a frame that was tracked, this corrects the object there.

        All points of a frame add up, and a new box replaces an earlier one. A new mask replaces everything that came
        before it in this frame; points and a box that come with it, or later, refine it. The frame keeps this result
        when the video is tracked again, and guides the frames around it. Other objects do not change.

        Args:
            frame: Its number, from 0.
            object: The object's id, anything hashable.
            points: [(x, y), …] on the object; (x, y, 0) is beside it. Pixels of the video, x right and y down.
            labels: 1 on the object, 0 beside it; all 1 if None.
            box: (x0, y0, x1, y1) around it.
            mask: Its mask, (height, width): alone it is taken as it is. A soft mask (floats from 0 to 1, or grey values
                in uint8) is cut at one half, and logits at 0.
            text: Words, to prompt every object that a detector finds in this frame, with a new id from 1 on. Objects
                keep their words as labels.
            detector: As in ``EncodedImage.predict``.
            detection_threshold: As in ``EncodedImage.predict``.

        Returns:
            The object's mask in this frame; with ``text``, those of the objects that were found. There may be none.

        Raises:
            PromptError: The prompt is invalid.
            VideoError: The video has no such frame.
            DetectorError: As in ``EncodedImage.predict``.
        """
        if (frame := whole_number("frame", frame, PromptError)) < 0:
            raise VideoError(f"there is no frame {frame} in {self.video.name}: frames count from 0")
        if text is not None or detector is not None:
            if object != 1 or any(value is not None for value in (points, labels, box, mask)):
                raise PromptError("text came with another prompt or an object's id: expected words and a frame alone")
            find = Detector(detector, [] if text is None else text, threshold=detection_threshold)
            image = self._encoded.image(frame)
            results = prompt_detections(self._tracks, frame, self._features_of, find(image))
            return self._tracks.frame_result(frame, 0.0, results, image).masks
        prompt = self._tracks.read(points=points, labels=labels, box=box, mask=mask)
        result = self._tracks.prompt(object, frame, self._features_of, prompt)
        return self._tracks.frame_result(frame, 0.0, {object: result}, self._encoded.image(frame)).masks

    def memory_bytes(self) -> int:
        """What the session takes in memory: features and pixels of frames, memory maps, and results in its spool."""
        banks = [bank for track in self._tracks.objects.values() for bank in track.banks]
        spool = 0 if self._tracks.spool is None else self._tracks.spool.memory_bytes
        return self._encoded.memory_bytes() + sum(bank.tensor_bytes() for bank in banks) + spool

    def preload(self, frame: int) -> None:
        """Read and encode a frame that will be prompted soon. A few frames are kept.

        Raises:
            VideoError: The video has no such frame.
        """
        self._features_of(frame)

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
            SessionError: Nothing was ever tracked; it cannot be saved; another generator of this session is still
                tracking.
            PromptError: ``autosave`` is not a number.
        """
        if not self._times and not self._remaining:
            raise SessionError(
                "nothing to continue: no frame was tracked in this session. Call track() or everything()"
            )
        return self._autosaved(self._track(None, packed), autosave, autosave_to)

    def everything(
        self,
        *,
        every: int = 30,
        same_iou: float = 0.5,
        min_object: int = 100,
        patience: int = 100,
        packed: bool = False,
        text: Words | None = None,
        detector: Any = None,
        detection_threshold: float = DEFAULT_THRESHOLD,
        **options: Unpack[EverythingKeywords],
    ) -> Generator[FrameResult]:
        """Find objects without prompts, or by words, and track them all forward, yielding each frame as it is done.

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
            text: Words, to find only what they name: a detector looks at every n-th frame. Objects keep their words as
                labels.
            detector: As in ``EncodedImage.predict``.
            detection_threshold: As in ``EncodedImage.predict``.
            options: As in ``Segmenter.everything``.

        Raises:
            ConfigError: An option is invalid.
            SessionError: Another generator of this session is still tracking.
        """
        what = search_for(
            self.engine, self.processor, options, text=text, detector=detector, threshold=detection_threshold
        )
        discovery = Discovery(every=every, same_iou=same_iou, min_object=min_object, patience=patience, search=what)
        self._tracking.check()
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

    def _autosaved(
        self, results: Generator[FrameResult], seconds: float | None, path: str | os.PathLike[str] | None
    ) -> Generator[FrameResult]:
        self._tracking.check()
        if (seconds is None) != (path is None):
            raise SessionError("autosave=seconds and autosave_to=path go together: expected both, or none of them")
        if seconds is None or path is None:
            return results
        seconds = real_number("autosave", seconds, PromptError, least=0, most=math.inf)
        check_can_save(self._tracks)
        return autosaving(results, partial(self.save, path), seconds)

    def _track(self, plan: list[range] | None, packed: bool) -> Generator[FrameResult]:
        """Track through the plan, or through what remains of the last one."""
        with self._tracking:
            self._remaining = self._remaining if plan is None else plan
            while self._remaining:
                frames, *others = self._remaining
                for frame, following in self._encoded.reading(frames):
                    results = self._tracks.advance(frame.index, partial(self._features_of, at_hand=frame), frames.step)
                    self._times[frame.index] = frame.time
                    self._remaining = [range(frame.index + frames.step, frames.stop, frames.step), *others]
                    result = self._tracks.start_result(frame.index, frame.time, results, frame.image, packed=packed)
                    if following is not None:
                        self._encoded.start(following)
                    yield result()
                self._remaining = others

    def _discover(self, discovery: Discovery, packed: bool) -> Generator[FrameResult]:
        with self._tracking:
            finder = ObjectFinder(self._tracks, discovery)
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
