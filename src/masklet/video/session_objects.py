"""The objects of a session, and their results again and as files. Runs without torch."""

from __future__ import annotations

import os
from collections.abc import Generator, Hashable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from masklet.errors import PromptError
from masklet.numbers import whole_number
from masklet.video.exporters import TrackFormat, write_tracks
from masklet.video.frame_column import FrameColumn
from masklet.video.frame_result import FrameResult
from masklet.video.frames import Video, width_by_height
from masklet.video.outputs import open_writers, output_kind, refuse_to_overwrite, step_between


class SessionTrack(Protocol):
    """One object, as far as it matters here."""

    @property
    def tracked_steps(self) -> Mapping[int, int]:
        """Frames that tracking has reached."""


class SessionTracks(Protocol):
    """The objects of a session: ``Tracks``, or ``ArrayTracks`` without torch."""

    @property
    def objects(self) -> Mapping[Hashable, SessionTrack]:
        """The objects by id."""

    @property
    def policy(self) -> Any:
        """The memory policy."""

    def remove(self, object_id: Hashable) -> None:
        """Forget an object."""

    def remove_prompt(self, object_id: Hashable, frame: int) -> None:
        """Undo the prompts for an object in one frame."""

    def results_in(self, frame: int) -> Mapping[Hashable, Any]:
        """The results of a frame, by object."""

    def frame_result(
        self, frame: int, time: float, results: Any, image: np.ndarray | None, *, packed: bool = False
    ) -> FrameResult:
        """What callers get of a frame."""


class SessionObjects:
    """What sessions with torch and without have in common. ``VideoSession`` and ``OnnxVideo`` derive from it."""

    video: Video
    _tracks: SessionTracks
    _times: FrameColumn[float]

    def __repr__(self) -> str:
        frames = "frames" if self.video.count is None else f"{self.video.count} frame{'s' * (self.video.count != 1)}"
        objects = f"{len(self.object_ids) or 'no'} object{'s' * (len(self.object_ids) != 1)}"
        name = type(self).__name__
        return f"{name}({self.video.name}, {frames} of {width_by_height(self.video.size_hw)}, {objects})"

    @property
    def object_ids(self) -> tuple[Hashable, ...]:
        """The ids that the objects were prompted with."""
        return tuple(self._tracks.objects)

    def remove(self, object: Hashable, frame: int | None = None) -> None:
        """Remove an object, or undo its prompts in one frame. Other objects do not change.

        A frame whose prompts are undone has no result until it is tracked again.

        Raises:
            PromptError: No such object or prompt, or the only prompt of the object.
        """
        if frame is None:
            self._tracks.remove(object)
        else:
            self._tracks.remove_prompt(object, whole_number("frame", frame, PromptError))

    def reset(self) -> None:
        """Remove all objects."""
        for object_id in self.object_ids:
            self._tracks.remove(object_id)

    @property
    def tracked_frames(self) -> tuple[int, ...]:
        """Frames that an object was tracked through, from first to last."""
        return tuple(sorted({frame for track in self._tracks.objects.values() for frame in track.tracked_steps}))

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the results of all tracked frames, in the video's order. Nothing is tracked again.

        Frames of a written video keep the intervals of their times, also where frames were not tracked: if every n-th
        frame was, it is as long. It begins with the first tracked frame.

        Args:
            path: Its suffix chooses a video with the masks painted over it (``.mp4``, ``.mkv`` …, or an animation,
                ``.gif``, ``.webp``), a line of JSON for each frame (``.jsonl``), or, without suffix, a folder of PNGs
                as in DAVIS. See ``video.outputs``.

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
        stride = step_between(frames)
        with open_writers(**kind, fps=self.video.fps / stride, size_hw=self.video.size_hw) as writers:
            for result in self.results(with_images="overlay" in kind, packed="jsonl" in kind):
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
        """Write all tracks for CVAT (.xml), or as text (.txt) in the format "mot" (boxes) or "mots" (masks).

        Args:
            path: The file; see ``video.exporters.write_tracks``.
            format: "cvat", "mot" or "mots"; .xml is "cvat" anyway.
            categories: The classes: one name for all objects, or {object id: name}. By default all are "object".
            names: All classes in the order of their numbers; by default those of ``categories`` in their order.
            tolerance: Leaves out points of CVAT's polygons, see ``Masks.to_polygons``.

        Raises:
            VideoError: Another suffix or format; it cannot be written.
            PromptError: Nothing was tracked yet.
            ValueError: An object has no class; ``tolerance`` is invalid, or not for this format.
        """
        refuse_to_overwrite(self.video, path)
        if not self.tracked_frames:
            raise PromptError("nothing to export: track first, for result in video.track(): ...")
        write_tracks(
            path,
            self.results(),
            format,
            categories=categories,
            names=names,
            tolerance=tolerance,
            every=step_between(self.tracked_frames),
            count=self.video.count,
        )

    def results(self, *, with_images: bool = False, packed: bool = False) -> Generator[FrameResult]:
        """The results of all tracked frames again, in the video's order. Nothing is tracked.

        Where the memory policy decides late ("sam2long"), they are those of the hypothesis that is best at the end of
        what was tracked, and may differ from what ``track`` yielded. ``write`` and ``export`` write these.

        Args:
            with_images: Read the video again, so that masks have an image to paint on.
            packed: As in ``track``.
        """
        tracks, frames = self._tracks, self.tracked_frames
        if not with_images or not frames:
            for index in frames:
                yield tracks.frame_result(index, self._times[index], tracks.results_in(index), None, packed=packed)
            return
        wanted = set(frames)
        for frame in self.video.frames(frames[0], frames[-1] + 1, step_between(frames)):
            if frame.index in wanted:
                yield tracks.frame_result(
                    frame.index, frame.time, tracks.results_in(frame.index), frame.image, packed=packed
                )

    @property
    def decides_late(self) -> bool:
        """Whether the memory policy has several hypotheses, of which the best one is known later: see ``results``."""
        return self._tracks.policy.hypotheses > 1
