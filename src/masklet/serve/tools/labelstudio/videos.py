"""The open videos of Label Studio's tasks."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

from masklet.serve.runtime import Runtime
from masklet.serve.tools.labelstudio.video_boxes import BoxVideo
from masklet.serve.tools.labelstudio.video_events import EventObject, Tracking

MAX_OPEN = 256
"""Videos, and objects of interactive ones; the least recently used one is closed for the next."""


@dataclass(frozen=True)
class Place:
    """Where a video is shown: an object of it, or all boxes."""

    user: str
    project: str
    task: str
    address: str
    object_id: str | None = None


class Videos:
    """What is open. Its methods may be called from any thread.

    Args:
        runtime: Opens and closes videos.
    """

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self._boxes: OrderedDict[Place, BoxVideo] = OrderedDict()
        self._objects: OrderedDict[Place, EventObject] = OrderedDict()
        self._lock = threading.Lock()

    def boxes(self, place: Place, path: Path) -> BoxVideo:
        """The video at a place, whose boxes are tracked."""
        with self._lock:
            if place not in self._boxes:
                self._boxes[place] = BoxVideo(self.runtime.open_video(place.user, path))
            self._boxes.move_to_end(place)
            while len(self._boxes) > MAX_OPEN:
                self.runtime.close_video(self._boxes.popitem(last=False)[1].opened)
            return self._boxes[place]

    def object(self, place: Place, path: Path) -> EventObject:
        """The object at a place."""
        with self._lock:
            if place not in self._objects:
                self._objects[place] = EventObject(self.runtime.open_video(place.user, path))
            self._objects.move_to_end(place)
            idle = [key for key, one in self._objects.items() if not one.is_busy]
            for key in idle[: max(0, len(self._objects) - MAX_OPEN)]:
                self.runtime.close_video(self._objects.pop(key).opened)
            return self._objects[place]

    def forget_boxes(self, place: Place) -> None:
        """Start a video again at its next use, after an error."""
        with self._lock:
            if (video := self._boxes.pop(place, None)) is not None:
                self.runtime.close_video(video.opened)

    def tracking(self, user: str, tracking_id: str) -> Tracking | None:
        """The tracking of this user with this id."""
        with self._lock:
            for place, one in self._objects.items():
                if place.user == user and one.tracking is not None and one.tracking.id == tracking_id:
                    return one.tracking
        return None

    def release(self, user: str, project: str, task: str, object_id: str | None) -> None:
        """Forget an object, or all objects of a task."""
        with self._lock:
            places = [
                place
                for place in self._objects
                if (place.user, place.project, place.task) == (user, project, task)
                and object_id in (None, place.object_id)
            ]
            objects = [self._objects.pop(place) for place in places]
        for one in objects:
            if one.tracking is not None and one.tracking.job is not None:
                one.tracking.job.cancel()
                one.tracking.job.ended.wait()
            self.runtime.close_video(one.opened)
