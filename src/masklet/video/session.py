"""A video: prompt, track, correct, go back."""

from __future__ import annotations

import itertools
import math
import os
import sys
from collections import OrderedDict
from collections.abc import Generator, Hashable
from contextlib import suppress
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from typing_extensions import Self

from masklet.engine import Engine
from masklet.errors import PromptError, SessionError, VideoError
from masklet.everything.generator import everything
from masklet.everything.options import EverythingOptions
from masklet.model.neck import Features
from masklet.processing import Sam2ImageProcessor
from masklet.results import Masks
from masklet.results.visualisation import notebook_html, notebook_png
from masklet.video.decoder import Frame
from masklet.video.discovery import Discovery
from masklet.video.frames import Video, VideoSource, width_by_height
from masklet.video.memory import MemoryPolicy
from masklet.video.outputs import open_writers, output_kind, refuse_to_overwrite
from masklet.video.saved import autosaving, check_names, read_saved, save_session
from masklet.video.spool import Spool
from masklet.video.tracks import FrameResult, Tracks

Direction = Literal["forward", "backward", "both"]

FRAMES_SHOWN = 4
"""In a notebook."""
FEATURES_KEPT = 2
"""Encoded frames at hand: the one that is tracked, and one that is looked at or prompted beside it."""


class VideoSession:
    """A video and the objects that are followed through it. Made by ``Segmenter.video``."""

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
        )
        self._features: OrderedDict[int, Features] = OrderedDict()
        self._times: dict[int, float] = {}  # of frames that were tracked
        self._ahead: list[range] = []  # frames that tracking has yet to go through

    @classmethod
    def resume(
        cls,
        engine: Engine,
        processor: Sam2ImageProcessor,
        path: str | os.PathLike[str],
        video: VideoSource | None = None,
    ) -> Self:
        """See ``Segmenter.resume``."""
        saved = read_saved(path)
        saved.check_model(engine.model)
        processor, opened = processor.with_size(saved.input_hw), saved.open_video(video)
        session = cls(engine, processor, opened, saved.policy, max_objects=saved.max_objects)
        session._times, session._ahead = saved.restore(session._tracks), saved.ahead
        return session

    def __repr__(self) -> str:
        frames = "frames" if self.video.count is None else f"{self.video.count} frame{'s' * (self.video.count != 1)}"
        objects = f"{len(self.object_ids) or 'no'} object{'s' * (len(self.object_ids) != 1)}"
        return f"VideoSession({self.video.name}, {frames} of {width_by_height(self.video.size_hw)}, {objects})"

    def _repr_png_(self) -> bytes | None:
        """What a notebook shows: a few frames side by side with the masks they have; of a video that passes nothing."""
        if self.video.count is None:
            return None
        banks = [track.bank for track in self._tracks.objects.values()]
        frames = sorted({frame for bank in banks for frame in bank.prompted | bank.tracked}) or range(self.video.count)
        few = np.unique(np.linspace(0, len(frames) - 1, FRAMES_SHOWN).round().astype(int))
        results = [
            self._tracks.result(index, 0.0, self._tracks.seen(index), self.video[index].image)
            for index in (frames[place] for place in few)
        ]
        return notebook_png(Image.fromarray(np.concatenate([result.masks.overlay() for result in results], axis=1)))

    def _repr_html_(self) -> str:
        """The same, with where each object was shown and followed."""
        rows = [
            (name, ", ".join(map(str, sorted(track.bank.prompted))), f"{len(track.passed)} frames")
            for name, track in self._tracks.objects.items()
        ]
        headings = ("object", "shown in frame", "followed in")
        return notebook_html(self._repr_png_(), repr(self), [headings, *rows] if rows else [])

    @property
    def object_ids(self) -> tuple[Hashable, ...]:
        """Names of the objects."""
        return tuple(self._tracks.objects)

    @property
    def tracked(self) -> tuple[int, ...]:
        """Frames that an object was tracked in, from first to last."""
        return tuple(sorted({frame for track in self._tracks.objects.values() for frame in track.passed}))

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
        """Show an object in a frame; on a frame that was tracked, correct it there.

        All clicks of a frame add up; a new box or mask takes the place of an earlier one. The frame keeps this result
        when the video is tracked again, and steers the frames around it. Other objects are not touched.

        Args:
            frame: Its number, from 0.
            object: The object's name, anything hashable.
            points: [(x, y), …] on the object; (x, y, 0) is beside it. Pixels of the video, x right and y down.
            labels: 1 on the object, 0 beside it; all 1 if None.
            box: (x0, y0, x1, y1) around it.
            mask: Its mask, (height, width), taken as it is.

        Returns:
            The object's mask in this frame.

        Raises:
            PromptError: The prompt makes no sense.
            VideoError: The video has no such frame.
        """
        prompts = {"points": points, "labels": labels, "box": box, "mask": mask}
        if frame < 0:
            raise VideoError(f"there is no frame {frame} in {self.video.name}: frames count from 0")
        seen = self._tracks.prompt(object, frame, self._features_of, self._tracks.read(**prompts))
        return self._tracks.result(frame, 0.0, {object: seen}, None).masks

    def remove(self, object: Hashable, frame: int | None = None) -> None:
        """Follow an object no longer, or take back its prompt in one frame. Other objects are not touched.

        The frame of a prompt that is taken back has no result until it is tracked again.

        Raises:
            PromptError: No such object or prompt, or the only prompt the object has.
        """
        if frame is None:
            self._tracks.remove(object)
        else:
            self._tracks.remove_prompt(object, frame)

    def reset(self) -> None:
        """Forget all objects."""
        for name in self.object_ids:
            self._tracks.remove(name)

    def track(
        self,
        start: int | None = None,
        end: int | None = None,
        direction: Direction = "forward",
        *,
        every: int = 1,
        autosave: float | None = None,
        autosave_to: str | os.PathLike[str] | None = None,
    ) -> Generator[FrameResult]:
        """Follow all objects through the video, yielding each frame as it is done.

        Args:
            start: First frame; the first that was prompted if None, or the last one when going backward.
            end: Last frame, included; the video's end if None, or its beginning when going backward.
            direction: ``"forward"``, ``"backward"``, or ``"both"``: first forward from ``start``, then backward.
            every: Step from each frame to the one so many frames further; those between are left out.
            autosave: ``save`` to ``autosave_to`` once in so many seconds, and when tracking ends or is broken off.
            autosave_to: Where to. After a crash, ``sam.resume`` it and ``track_on``.

        Raises:
            PromptError: Nothing was prompted.
            VideoError: There is no such frame.
            SessionError: It cannot be saved.
        """
        self._ahead = self.plan(start, end, direction, every=every)
        yield from self.track_on(autosave=autosave, autosave_to=autosave_to)

    def track_on(
        self, *, autosave: float | None = None, autosave_to: str | os.PathLike[str] | None = None
    ) -> Generator[FrameResult]:
        """Go on with what the last ``track`` had yet to do: it was broken off, here or in a session that was resumed.

        Args:
            autosave: As in ``track``.
            autosave_to: As in ``track``.

        Raises:
            SessionError: It cannot be saved.
        """
        if (autosave is None) != (autosave_to is None):
            raise SessionError("autosave=seconds and autosave_to=path go together: expected both, or none of them")
        if autosave is None or autosave_to is None:
            yield from self._go()
        else:
            check_names(self._tracks)
            yield from autosaving(self._go(), partial(self.save, autosave_to), autosave)

    def everything(
        self, *, every: int = 30, same_iou: float = 0.5, min_object: int = 100, patience: int = 100, **options: Any
    ) -> Generator[FrameResult]:
        """Find objects without being told where, and follow them all forward, yielding each frame as it is done.

        Every n-th frame from 0 on is looked at as ``Segmenter.everything`` does. What is found there is an object that
        is known, or a new one. New objects are called 1, 2, 3 …: an object keeps its name, and no name is given twice.
        Objects that were shown before are followed with them. Afterwards ``write``, ``track`` and corrections work as
        after ``track``; when it is broken off, ``track_on`` follows what was found through the rest.

        Args:
            every: Frames from one that is looked at to the next.
            same_iou: A mask is that of a known object if their IoU is at least this.
            min_object: A mask of fewer pixels is no object.
            patience: An object that was out of sight for more frames is followed no longer; seen again, it is new.
            options: What to look for, as in ``Segmenter.everything``.

        Raises:
            ConfigError: An option that makes no sense.
        """
        what = EverythingOptions.for_model(self.engine.config, options, "every", "same_iou", "min_object", "patience")
        discovery = Discovery(every=every, same_iou=same_iou, min_object=min_object, patience=patience, options=what)
        return self._discover(discovery)

    def plan(
        self, start: int | None = None, end: int | None = None, direction: Direction = "forward", *, every: int = 1
    ) -> list[range]:
        """The frames that ``track`` goes through with the same arguments, in its order.

        Raises:
            PromptError: Nothing was prompted; ``every`` or ``direction`` makes no sense.
            VideoError: There is no such frame.
        """
        if direction not in ("forward", "backward", "both"):
            raise PromptError(f"direction is {direction!r}: expected forward, backward or both")
        if every < 1:
            raise PromptError(f"every is {every}: expected 1 for all frames, 2 for every other one, and so on")
        prompted = {frame for track in self._tracks.objects.values() for frame in track.bank.prompted}
        if not prompted:
            raise PromptError("nothing to track: show an object first, video.prompt(frame=0, points=[(x, y)])")
        count = sys.maxsize if self.video.count is None else self.video.count
        for name, frame in (("start", start), ("end", end)):
            if frame is not None and (frame < 0 or (name == "start" and frame >= count)):
                raise VideoError(f"{name} is {frame}: {self.video.name} has no such frame, they count from 0")
        first = (max(prompted) if direction == "backward" else min(prompted)) if start is None else start
        last = count - 1 if end is None else min(end, count - 1)
        forward = range(first, last + 1, every)
        if direction == "forward":
            return [forward]
        if direction == "backward":
            return [range(first, (end or 0) - 1, -every)]
        return [forward, range(first - every, -1, -every)]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Keep the session in a file, for ``Segmenter.resume`` to go on with. The video is not in it.

        Raises:
            SessionError: It cannot be written, or names of objects are neither text nor whole numbers; an older file
                there is as it was.
        """
        save_session(path, self._tracks, self.video, self._times, self._ahead)

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write what was tracked, in the video's order; nothing is tracked again.

        A video of every n-th frame shows so many fewer a second, and is as long.

        Args:
            path: By its suffix a video with the masks painted over it (``.mp4``, ``.mkv`` …), a line of JSON for each
                frame (``.jsonl``), or, without suffix, a folder of PNGs as DAVIS has them. See ``video.outputs``.

        Raises:
            VideoError: Another suffix; it cannot be written; it is the video itself; a video that came frame by frame
                cannot be read again.
            PromptError: Nothing was tracked yet.
        """
        kind = output_kind(path)
        refuse_to_overwrite(self.video, path)
        if not self.tracked:
            raise PromptError("nothing to write: track first, for result in video.track(): ...")
        stride = math.gcd(*(after - before for before, after in itertools.pairwise(self.tracked))) or 1
        with open_writers(**kind, fps=self.video.fps / stride, size_hw=self.video.size_hw) as writers:
            for result in self._stored_results(with_images="overlay" in kind, stride=stride):
                writers.write(result)

    def _stored_results(self, *, with_images: bool, stride: int = 1) -> Generator[FrameResult]:
        tracked = self.tracked
        if not with_images:
            for index in tracked:
                yield self._tracks.result(index, self._times[index], self._tracks.seen(index), None)
            return
        wanted = set(tracked)
        for frame in self.video.frames(tracked[0], tracked[-1] + 1, stride):
            if frame.index in wanted:
                yield self._tracks.result(frame.index, frame.time, self._tracks.seen(frame.index), frame.image)

    def _go(self) -> Generator[FrameResult]:
        while self._ahead:
            stretch, *others = self._ahead
            if not stretch:
                self._ahead = others
                continue
            for frame in self.video.frames(stretch.start, stretch.stop, stretch.step):
                seen = self._tracks.advance(frame.index, partial(self._features_of, at_hand=frame), stretch.step)
                self._times[frame.index] = frame.time
                self._ahead = [range(frame.index + stretch.step, stretch.stop, stretch.step), *others]
                yield self._tracks.result(frame.index, frame.time, seen, frame.image)
            self._ahead = others

    def _discover(self, discovery: Discovery) -> Generator[FrameResult]:
        tracks = self._tracks
        last_seen: dict[Hashable, int] = {}  # objects that are yet to come have none
        count = sys.maxsize if self.video.count is None else self.video.count
        new_names = itertools.count(1)
        for frame in self.video.frames():
            index, features_of = frame.index, partial(self._features_of, at_hand=frame)
            lost = {name for name in self.object_ids if index - last_seen.get(name, index) > discovery.patience}
            for name in lost:
                tracks.objects[name].bank.drop_maps(set())
            seen = tracks.advance(index, features_of, 1, [name for name in self.object_ids if name not in lost])
            if index % discovery.every == 0:
                known = tracks.result(index, frame.time, seen, None).masks
                features = features_of(index)
                found = everything(
                    self.engine, self.processor, frame.image, discovery.options, features=features, packed=True
                )
                for mask in discovery.new_masks(found, known):
                    name = next(name for name in new_names if name not in tracks.objects)
                    with suppress(PromptError):  # too small for the network to see
                        seen[name] = tracks.prompt(name, index, features_of, tracks.read(mask=mask))
                        tracks.objects[name].passed[index] = 1  # tracking is here, and ``advance`` has been
            self._times[index] = frame.time
            self._ahead = [range(index + 1, count)]
            result = tracks.result(index, frame.time, seen, frame.image)
            last_seen |= dict.fromkeys(itertools.compress(result.object_ids, result.visible), index)
            yield result
        self._ahead = []

    def _features_of(self, index: int, at_hand: Frame | None = None) -> Features:
        if index not in self._features:
            frame = at_hand if at_hand is not None and at_hand.index == index else self.video[index]
            with torch.inference_mode():
                self._features[index] = self.engine.encode(self.processor.frame_values(frame.image))
        self._features.move_to_end(index)
        while len(self._features) > FEATURES_KEPT:
            self._features.popitem(last=False)
        return self._features[index]
