"""Videos that X-AnyLabeling sends frame by frame, and what is tracked in them."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from masklet.errors import MaskletError, PromptError
from masklet.results import Masks
from masklet.serve.runtime import OpenVideo, Runtime
from masklet.serve.scheduler import Job
from masklet.serve.tools.xanylabeling.replies import ApiError
from masklet.serve.tools.xanylabeling.shapes import shapes_of
from masklet.video.session import VideoSession

MAX_VIDEOS = 8
"""Videos of one user; the least recently used one makes way for the next."""


@dataclass
class Task:
    """A video that is being tracked."""

    start: int
    end: int
    epsilon: float
    results: dict[int, list[dict[str, Any]]] = field(default_factory=dict)
    """Shapes of each finished frame."""
    job: Job | None = None
    error: str | None = None
    is_done: bool = False
    changed: threading.Condition = field(default_factory=threading.Condition)
    id: str = field(default_factory=lambda: uuid4().hex)

    @property
    def status(self) -> str:
        """The status in one word."""
        if self.error is not None:
            return "error"
        if not self.is_done:
            return "running"
        assert self.job is not None
        return "cancelled" if self.job.cancelled.is_set() else "completed"

    @property
    def masks(self) -> dict[str, dict[str, Any]]:
        """The shapes of all frames done, as X-AnyLabeling reads them."""
        return {str(frame): {"masks": shapes} for frame, shapes in sorted(self.results.items())}

    def steps(self, session: VideoSession) -> Generator[None]:
        """Tracks, and keeps the shapes of each frame."""
        for result in session.track(self.start, self.end):
            visible = result.masks[result.visible]
            ids = [int(number) for number in visible.object_ids]
            with self.changed:
                self.results[result.index] = shapes_of(visible, self.epsilon, [number + 1 for number in ids])
                self.changed.notify_all()
            yield

    def finish(self, error: BaseException | None) -> None:
        """Called at the end."""
        with self.changed:
            if error is not None:
                self.error = str(error) if isinstance(error, MaskletError) else "the server failed: see its log"
            self.is_done = True
            self.changed.notify_all()

    def wait(self, seen: int, seconds: float) -> None:
        """Waits until there are more than ``seen`` frames, or the task has ended."""
        with self.changed:
            self.changed.wait_for(lambda: len(self.results) > seen or self.is_done, seconds)


@dataclass
class Video:
    """A video of one user."""

    opened: OpenVideo
    count: int
    start_frame: int
    first_prompted: dict[int, int] = field(default_factory=dict)
    """Frame of each object's first prompt."""
    prompted: set[tuple[int, int]] = field(default_factory=set)
    """(object, frame)."""
    task: Task | None = None

    def prompt(self, session: VideoSession, object_id: int, frame: int, keywords: dict[str, Any]) -> Masks:
        """Prompts an object; all its points in this frame come together, and replace those before.

        X-AnyLabeling gives all objects one id. So a prompt in the frame of an object's first prompt begins it anew, and
        a prompt in another frame corrects it there.
        """
        if self.first_prompted.get(object_id) == frame:
            session.remove(object_id)
            self.prompted -= {key for key in self.prompted if key[0] == object_id}
        elif (object_id, frame) in self.prompted:
            session.remove(object_id, frame)
        masks = session.prompt(frame, object_id, **keywords)
        self.first_prompted.setdefault(object_id, frame)
        self.prompted.add((object_id, frame))
        return masks


class Videos:
    """The videos of all users. Their frames are files in the process's folder, and are deleted with them."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.folder = runtime.folder / "xanylabeling"
        self._videos: dict[tuple[str, str], Video] = {}
        self._lock = threading.Lock()

    def add(self, user: str, frames: list[bytes], start_frame: int) -> str:
        """A new video. Returns its id.

        Raises:
            PromptError: There are too many frames, or there is no such first frame.
        """
        if len(frames) > (most := self.runtime.settings.limits.frames):
            raise PromptError(f"{len(frames)} frames: expected {most} at most")
        if not 0 <= start_frame < len(frames):
            raise PromptError(f"start_frame_index is {start_frame}: the video has {len(frames)} frames")
        video_id = uuid4().hex
        folder = self.folder / video_id
        folder.mkdir(parents=True)
        for number, content in enumerate(frames):
            (folder / f"{number:06}{suffix_of(content)}").write_bytes(content)
        video = Video(self.runtime.open_video(user, folder), len(frames), start_frame)
        with self._lock:
            self._videos[user, video_id] = video
            mine = [key for key in self._videos if key[0] == user]
        for key in mine[:-MAX_VIDEOS]:
            self.remove(*key)
        return video_id

    def get(self, user: str, video_id: str) -> Video:
        """A video of this user. Raises an ApiError if there is none."""
        with self._lock:
            video = self._videos.pop((user, video_id), None)
            if video is None:
                raise ApiError("SESSION_NOT_FOUND", "this video session has ended: prompt the video again to open it")
            self._videos[user, video_id] = video  # used last
        return video

    def task(self, user: str, task_id: str) -> Task:
        """A task of this user. Raises an ApiError if there is none."""
        with self._lock:
            videos = [video for (owner, _), video in self._videos.items() if owner == user]
        for video in videos:
            if video.task is not None and video.task.id == task_id:
                return video.task
        raise ApiError("TASK_NOT_FOUND", f"no task {task_id[:40]}")

    def track(self, video: Video, start: int | None, end: int | None, epsilon: float) -> Task:
        """Begins to track a video."""
        if not video.first_prompted:
            raise PromptError("nothing to track: click on an object first")
        if video.task is not None and not video.task.is_done:
            raise PromptError("this video is being tracked: wait for the end, or cancel it")
        first = video.start_frame if start is None else start
        last = video.count - 1 if end is None else min(end, video.count - 1)
        if not 0 <= first <= last:
            raise PromptError(f"frames {first} to {last}: the video has {video.count} frames")
        task = Task(first, last, epsilon)
        task.job = self.runtime.track(video.opened, task.steps, task.finish)
        video.task = task
        return task

    def remove(self, user: str, video_id: str) -> bool:
        """Forgets a video; whether there was one."""
        with self._lock:
            video = self._videos.pop((user, video_id), None)
        if video is None:
            return False
        if video.task is not None and video.task.job is not None:
            video.task.job.cancel()
            video.task.job.ended.wait()
        self.runtime.close_video(video.opened)
        shutil.rmtree(video.opened.source, ignore_errors=True)
        return True


def suffix_of(content: bytes) -> str:
    """The suffix of an image file, from its first bytes; of a PNG if they say nothing, which reading will find out."""
    kinds = {b"\xff\xd8\xff": ".jpg", b"BM": ".bmp", b"RIFF": ".webp", b"II*\0": ".tif", b"MM\0*": ".tif"}
    return next((suffix for magic, suffix in kinds.items() if content.startswith(magic)), ".png")
