"""The thread that receives live video, and connects again when the source fails."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from fractions import Fraction
from time import monotonic

import av
from av.container import InputContainer
from av.packet import Packet
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from masklet.errors import VideoError
from masklet.video.address import Address
from masklet.video.newest_frame import Newest
from masklet.video.pyav import DECODING_ERRORS, as_fraction, open_input
from masklet.video.readers import IMAGES_FPS

logger = logging.getLogger(__name__)

FIRST_PAUSE, LAST_PAUSE = 0.5, 8.0
"""Seconds before connecting again; doubled after each failure."""
MAX_BEHIND = 1.0
"""Seconds without waiting for a packet after which decoding counts as too slow, and packets that piled up are
dropped."""
WAITED = 0.002
"""Seconds after which reading a packet counts as waiting: it was not there yet."""
MAX_DRIFT = 10.0
"""Seconds between the source's clock and ours from which the source's counts as reset."""
MIN_STEP = 1e-3
"""Seconds between two frames, at least."""


class Clock:
    """Gives frames increasing times, in seconds since the first: the source's own, as long as they agree with ours."""

    def __init__(self) -> None:
        self._start: float | None = None
        self._offset: float | None = None
        self._last = -math.inf

    def restart(self) -> None:
        """Notes that the times of the source start again."""
        self._offset = None

    def time_of(self, source_time: float | None, now: float) -> float:
        """The time of a frame that was received at ``now``; ``source_time`` is None if the source gives none."""
        if self._start is None:
            self._start = now
        time = now
        if source_time is not None:
            if self._offset is None or abs(source_time + self._offset - now) > MAX_DRIFT:
                # Not before the last frame, whose clock may have run ahead of ours.
                self._offset = max(now, self._start + self._last + MIN_STEP) - source_time
            time = source_time + self._offset
        self._last = max(time - self._start, self._last + MIN_STEP)
        return self._last


class Connection:
    """The frames of an open source, decoded as they come.

    Raises:
        ValueError: It has no video.
    """

    def __init__(self, container: InputContainer, newest: Newest) -> None:
        streams = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
        if not streams or streams[0].codec_context is None:
            raise ValueError("it has no video that PyAV can decode")
        self.stream: VideoStream = streams[0]
        self.stream.thread_type = "SLICE"  # threads that decode several frames at once would delay each
        fps = as_fraction(self.stream.average_rate) or as_fraction(self.stream.guessed_rate) or IMAGES_FPS
        self.fps = fps if 1 <= fps <= 1000 else IMAGES_FPS  # some streams state the steps of their clock
        self.is_stored = container.duration is not None
        """Whether it is a file, maybe on a server."""
        self._container = container
        self._newest = newest
        self._waited_at = monotonic()

    def frames(self, timeout: float) -> Iterator[VideoFrame]:
        """Decode frames. Packets that pile up before a slow decoder are dropped; they would delay all later frames.

        Raises:
            TimeoutError: Packets come, but no frame for ``timeout`` seconds.
        """
        last_frame_at = monotonic()
        is_dropping = False
        for packet in self._packets():
            is_behind = monotonic() - self._waited_at > MAX_BEHIND
            if is_behind and not is_dropping:
                for _ in self._decoded(None):  # frames that it holds back would come out after the gap
                    self._newest.drop()
                self.stream.codec_context.flush_buffers()
            # Frames between keyframes cannot be decoded alone.
            is_dropping = is_behind or (is_dropping and not packet.is_keyframe)
            if not is_dropping:
                for frame in self._decoded(packet):
                    last_frame_at = monotonic()
                    yield frame
            elif packet.size:  # the last one is empty, and only flushes the decoder
                last_frame_at = monotonic()
                self._newest.drop()
            if monotonic() - last_frame_at > timeout:
                raise TimeoutError(f"no frame for {timeout:g} s")

    def _packets(self) -> Iterator[Packet]:
        """The packets of the video. Those of a file wait for their time."""
        start, first_time = monotonic(), None
        packets = self._container.demux()  # of all streams, so that it returns while there is only sound
        while not self._newest.is_closed:
            self._newest.alive_at = asked = monotonic()
            if (packet := next(packets, None)) is None:
                return
            if packet.stream_index != self.stream.index:
                continue
            if self.is_stored and packet.dts is not None:
                time = float(packet.dts * packet.time_base)
                first_time = time if first_time is None else first_time
                self._newest.pause(start + time - first_time - monotonic())
            if monotonic() - asked > WAITED:
                self._waited_at = monotonic()
            yield packet

    def _decoded(self, packet: Packet | None) -> list[VideoFrame]:
        """The frames that a packet completes, or that the decoder still has if it is None."""
        try:
            return self.stream.decode(packet)
        except DECODING_ERRORS:  # it is damaged, or needs a keyframe from before the connection
            return []


class LiveReader:
    """Receives the frames of a source, until its end, ``Newest.close`` or a failure that lasts."""

    def __init__(self, source: Address, newest: Newest, *, timeout: float, reconnect: float) -> None:
        self.source = source
        self.fps: Fraction = IMAGES_FPS
        self._newest = newest
        self._timeout = timeout
        self._reconnect = reconnect
        self._clock = Clock()
        self._received_at = -math.inf
        self._is_stored = False

    def run(self) -> None:
        """What the thread does. Errors are raised where frames are taken."""
        try:
            self._run()
        except BaseException as error:  # as a Future does
            self._newest.end(error)
        else:
            self._newest.end()

    def _run(self) -> None:
        pause = FIRST_PAUSE
        failure = self._connect()
        if failure and (self._is_stored or not self._newest.received):
            raise VideoError(
                f"cannot receive video from {self.source.name} ({failure}): expected a camera (0, /dev/video0), a URL "
                "(rtsp://…, http://…) or a video file. Check the address, the password and the network"
            )
        while failure and not self._newest.is_closed:
            lost_for = monotonic() - self._received_at
            if lost_for >= self._reconnect:
                raise VideoError(f"{self.source.name} is gone ({failure}): no frame for {lost_for:.0f} s")
            logger.warning("%s is lost (%s): connecting again in %g s", self.source.name, failure, pause)
            self._newest.pause(min(pause, self._reconnect - lost_for))
            received = self._newest.received
            failure = None if self._newest.is_closed else self._connect()
            pause = FIRST_PAUSE if self._newest.received > received else min(2 * pause, LAST_PAUSE)

    def _connect(self) -> str | None:
        """Receive frames. Returns the reason if the connection fails; None if the video is over or closed."""
        self._clock.restart()
        self._newest.alive_at = monotonic()
        # PyAV's error holds the address with its password, so ours must not be raised from it.
        try:
            with open_input(
                self.source.url,
                format=self.source.format,
                options=self.source.options,
                timeout=(self._timeout, self._timeout),
            ) as container:
                return self._receive(Connection(container, self._newest))
        except av.ExitError:
            return f"no answer for {self._timeout:g} s"
        except (av.FFmpegError, ValueError, TimeoutError) as error:
            return getattr(error, "strerror", None) or str(error)

    def _receive(self, connection: Connection) -> str | None:
        """Receive frames from an open source. Returns as ``_connect``."""
        self.fps, self._is_stored = connection.fps, connection.is_stored
        is_first = True
        for frame in connection.frames(self._timeout):
            if is_first and self._newest.received:
                logger.info("%s is connected again", self.source.name)
                self._newest.reconnects += 1
            self._received_at, is_first = monotonic(), False
            base = connection.stream.time_base
            time = None if frame.pts is None or not base else float(frame.pts * base)
            self._newest.put(frame, self._clock.time_of(time, self._received_at))
        if not connection.is_stored:
            return "it has ended"
        return "it has no frame that can be decoded" if is_first and not self._newest.is_closed else None
