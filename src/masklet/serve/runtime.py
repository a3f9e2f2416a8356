"""What endpoints and annotation tools work with: the model, the scheduler and the cache.

All work on the network goes through ``Runtime``. ``work`` functions run in the device's thread, one at a time.
"""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import Callable, Generator, Hashable
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

from fastapi import Request

from masklet.engine import Engine
from masklet.image import EncodedImage
from masklet.images.reading import read_image
from masklet.results import Masks
from masklet.segmenter import Segmenter
from masklet.serve.cache import Cache
from masklet.serve.encoded_files import EncodedFiles
from masklet.serve.scheduler import Job, Scheduler
from masklet.serve.settings import Settings
from masklet.serve.state.leases import new_owner
from masklet.video.session import VideoSession

Result = TypeVar("Result")


class Disconnected(Exception):
    """The client has gone, so nobody waits for the result."""


@dataclass(frozen=True)
class OpenVideo:
    """A video that was opened with ``Runtime.open_video``."""

    user: str
    id: str
    source: Path
    saved: Path
    """Where its session is while it is not in memory."""

    @property
    def key(self) -> Hashable:
        """Key in the cache."""
        return "video", self.user, self.id


class Runtime:
    """One device: the model that is loaded, the scheduler and the cache."""

    def __init__(self, settings: Settings, sam: Segmenter) -> None:
        self.settings = settings
        self.sam = sam
        self.scheduler = Scheduler(settings.limits)
        self.cache = Cache(settings.cache_bytes)
        self.encoded = EncodedFiles(settings.data / "encoded", settings.disk_cache_bytes, sam)
        self.owner = new_owner()
        """The name of this process, among those that share the data folder."""
        self.folder = settings.data / "sessions" / self.owner.replace(":", "~")  # allowed in names everywhere
        """For files that only this process uses. Removed when the process ends."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._is_closing = False

    async def run(
        self, user: str, work: Callable[[], Result], request: Request | None = None, *, is_long: bool = False
    ) -> Result:
        """Runs ``work`` before tracking continues, and returns its result.

        Args:
            user: Users take turns.
            work: A short piece of work, such as a click.
            request: Request of the waiting client: if it disconnects, work that has not begun is not done.
            is_long: See ``run_long``.

        Raises:
            Busy: Too much is waiting.
            Disconnected: The client has gone.
        """
        if request is None:
            return await self.scheduler.run(user, work, is_long=is_long)
        waiting = asyncio.ensure_future(self.scheduler.run(user, work, is_long=is_long))
        gone = asyncio.ensure_future(disconnected(request))
        try:
            await asyncio.wait({waiting, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not waiting.done():
                raise Disconnected
            return waiting.result()
        finally:
            for task in (waiting, gone):
                task.cancel()
                with suppress(asyncio.CancelledError, Exception):
                    await task

    async def run_long(
        self, user: str, work: Callable[[Callable[[], None]], Result], request: Request | None = None
    ) -> Result:
        """Runs work that takes seconds, such as automatic masks, and lets clicks come in between.

        Args:
            user: As in ``run``.
            work: Called with a function to call now and then: it runs waiting clicks, and raises ``Disconnected`` when
                the client has gone.
            request: As in ``run``.

        Raises:
            Busy: Too much is waiting.
            Disconnected: The client has gone.
        """
        gone = threading.Event()

        def pause() -> None:
            if gone.is_set():
                raise Disconnected
            self.scheduler.run_waiting_clicks()

        try:
            return await self.run(user, lambda: work(pause), request, is_long=True)
        finally:
            gone.set()

    async def on_image(
        self, user: str, image: bytes, work: Callable[[EncodedImage], Result], request: Request | None = None
    ) -> Result:
        """Runs ``work`` on an encoded image. The same bytes are encoded once for each user.

        Args:
            user: As in ``run``.
            image: The content of an image file.
            work: Called with the encoded image.
            request: As in ``run``.

        Raises:
            ImageError: It is not an image.
            Busy: Too much is waiting.
            Disconnected: The client has gone.
        """
        key = "image", user, sha256(image).hexdigest()

        def run() -> Result:
            with self.cache.use(key, lambda: self.sam.image(read_image(BytesIO(image))), encoded_bytes) as encoded:
                return work(encoded)

        return await self.run(user, run, request)

    async def everything(self, user: str, image: bytes, request: Request | None = None, **options: Any) -> Masks:
        """Automatic masks of an image. Clicks come in between.

        Args:
            user: As in ``run``.
            image: The content of an image file.
            request: As in ``run``.
            options: Those of ``Segmenter.everything``.

        Raises:
            ImageError: It is not an image.
            Busy: Too much is waiting.
            Disconnected: The client has gone.
        """

        def work(pause: Callable[[], None]) -> Masks:
            return interruptible(self.sam, pause).everything(read_image(BytesIO(image)), packed=True, **options)

        return await self.run_long(user, work, request)

    def open_video(self, user: str, source: Path) -> OpenVideo:
        """A video to prompt and track, without objects. ``close_video`` forgets it.

        Args:
            user: Owner of the video.
            source: A video file or a folder of images, which must stay until the video is closed.
        """
        video_id = uuid4().hex
        return OpenVideo(user, video_id, source, self.folder / f"{video_id}.masklet")

    async def on_video(
        self, video: OpenVideo, work: Callable[[VideoSession], Result], request: Request | None = None
    ) -> Result:
        """Runs ``work``, such as a prompt, on the session of a video. It may come between the frames of ``track``.

        Raises:
            VideoError: It is not a video.
            Busy: Too much is waiting.
            Disconnected: The client has gone.
        """

        def run() -> Result:
            with self.cache.use(video.key, lambda: self._session(video), session_bytes, self._saver(video)) as session:
                return work(session)

        return await self.run(video.user, run, request)

    def track(
        self,
        video: OpenVideo,
        steps: Callable[[VideoSession], Generator[Any, None, None]],
        on_end: Callable[[BaseException | None], None] = lambda error: None,
    ) -> Job:
        """Starts a job on the session of a video, such as tracking. It stays in memory until the job has ended.

        Args:
            video: The video.
            steps: Called with the session; returns a generator such as ``session.track()``, or one of your own around
                it that hands on each result. It runs in the device's thread, a step at a time.
            on_end: As in ``Scheduler.start``.

        Raises:
            Busy: There are too many jobs.
        """

        def run() -> Generator[Any, None, None]:
            with self.cache.use(video.key, lambda: self._session(video), session_bytes, self._saver(video)) as session:
                yield from steps(session)

        return self.scheduler.start(video.user, run(), on_end)

    def close_video(self, video: OpenVideo) -> None:
        """Forgets a video and its session. Jobs must have ended. The source is left alone."""
        self.cache.drop(video.key)
        video.saved.unlink(missing_ok=True)

    def close(self) -> None:
        """Ends all work. Saves encoded images for the next start; all that must not be lost is in the database."""
        self._is_closing = True
        self.scheduler.close()
        self.cache.clear()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _session(self, video: OpenVideo) -> VideoSession:
        if video.saved.exists():
            return self.sam.resume(video.saved, video.source)
        return self.sam.video(video.source)

    def _saver(self, video: OpenVideo) -> Callable[[VideoSession], None]:
        return lambda session: None if self._is_closing else session.save(video.saved)


def encoded_bytes(image: EncodedImage) -> int:
    """What an encoded image takes in memory."""
    pixels = 0 if image.image is None else image.image.nbytes
    return pixels + sum(tensor.untyped_storage().nbytes() for tensor in image.features)


def session_bytes(session: VideoSession) -> int:
    """What an open session takes in memory, its frames, features and memory maps."""
    return session.memory_bytes()


class YieldingEngine:
    """An engine that calls a function before each of its steps, see ``Runtime.run_long``."""

    def __init__(self, engine: Engine, pause: Callable[[], None]) -> None:
        self._engine = engine
        self._pause = pause

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._engine, name)
        if name not in ("encode", "decode", "decode_confident"):
            return value

        def step(*args: Any, **keywords: Any) -> Any:
            self._pause()
            return value(*args, **keywords)

        return step


def interruptible(sam: Segmenter, pause: Callable[[], None]) -> Segmenter:
    """The same model, which calls ``pause`` now and then."""
    engine: Any = YieldingEngine(sam.engine, pause)
    return Segmenter(engine, sam.image_processor)


async def disconnected(request: Request) -> None:
    """Waits until the client of a request, whose body has been read, has gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
