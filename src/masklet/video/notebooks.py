"""What notebooks show of a video and its objects."""

from __future__ import annotations

import numpy as np
from PIL import Image

from masklet.results.visualisation import notebook_png
from masklet.video.frames import Video
from masklet.video.tracks import Tracks

NOTEBOOK_FRAMES = 4
"""Frames that a notebook shows of a video."""


def frames_png(video: Video, tracks: Tracks) -> bytes | None:
    """A PNG of a few frames side by side with their masks; None for a video that is read only once."""
    if video.count is None:
        return None
    frames = sorted({f for track in tracks.objects.values() for f in track.bank.frames}) or range(video.count)
    few = np.unique(np.linspace(0, len(frames) - 1, NOTEBOOK_FRAMES).round().astype(int))
    # In a damaged video, a frame that cannot be read is replaced by the next one.
    shown = [next(video.frames(frames[place]), None) for place in few]
    results = [
        tracks.frame_result(frame.index, 0.0, tracks.results_in(frame.index), frame.image)
        for frame in shown
        if frame is not None
    ]
    return notebook_png(Image.fromarray(np.concatenate([result.masks.overlay() for result in results], axis=1)))


def rows_of_objects(tracks: Tracks) -> list[tuple[object, ...]]:
    """A table of the objects, with headings in the first row; empty without objects."""
    rows = [
        (object_id, ", ".join(map(str, sorted(track.bank.prompted))), f"{len(track.tracked_steps)} frames")
        for object_id, track in tracks.objects.items()
    ]
    return [("object", "prompted in frame", "tracked through"), *rows] if rows else []
