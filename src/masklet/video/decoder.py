"""Video files: which frames there are, exact seeking, and pixels that stand upright."""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, dropwhile, islice, pairwise
from math import inf
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from masklet.errors import VideoError

FRAMES_AHEAD = 8
BACKWARD_BYTES = 128 * 2**20
"""Of frames kept while reading backward, since every codec runs forward; at least FRAMES_AHEAD of them."""
IMAGES_FPS = Fraction(25)
"""For images, which do not say how fast they follow each other."""


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """One image of a video."""

    index: int
    """From 0, in the order of showing."""
    time: float
    """Seconds since frame 0 was shown."""
    image: np.ndarray
    """(height, width, 3) uint8, red first, upright."""


class VideoFile:
    """A file that PyAV decodes. Its packets tell when each frame is shown, and so which one has been decoded."""

    reads_ahead = True

    def __init__(self, path: Path) -> None:
        self.path = path
        with opened(path) as (container, stream):
            self.fps = Fraction(stream.average_rate or stream.guessed_rate or IMAGES_FPS)
            self._tick = stream.time_base or 1 / self.fps
            self._batch = max(FRAMES_AHEAD, BACKWARD_BYTES // max(3 * stream.width * stream.height, 1))
            packets_suffice = stream.codec_context.name != "vp8"  # it has packets that show nothing
            times, self._keyframes, self.is_incomplete = scan(container, stream)
        with opened(path) as (container, stream):
            frames = islice(decoded(stream, whole_packets(container, stream)), FRAMES_AHEAD)
            packets_suffice &= [frame.pts for frame in frames] == times[:FRAMES_AHEAD].tolist()
        self._times: Sequence[int] = times
        self._is_counted = False
        # Some formats keep no times, and a recording that starts in the middle has packets that no decoder can use.
        if not (packets_suffice and rising(times)):
            with opened(path) as (container, stream):
                shown = [frame.pts for frame in decoded(stream, whole_packets(container, stream))]
            self._times = array("q", [time for time in shown if time is not None])
            if None in shown or not rising(self._times):
                self._is_counted = True
                self._times, self._keyframes, self._tick = range(len(shown)), [], 1 / self.fps
        self.count: int | None = len(self._times)

    def read(self, wanted: range) -> Generator[Frame]:  # noqa: D102
        if wanted.step > 0:
            yield from self._forward(wanted)
            return
        rising_wanted = wanted[::-1]
        for end in range(len(wanted), 0, -self._batch):
            batch = list(self._forward(rising_wanted[max(0, end - self._batch) : end]))
            while batch:
                yield batch.pop()

    def _forward(self, wanted: range) -> Generator[Frame]:
        for time, frame in self._decoded(self._times[wanted[0]]):
            if time is None:
                continue
            index = bisect_left(self._times, time)
            if index in wanted and self._times[index] == time:
                yield Frame(index, float((time - self._times[0]) * self._tick), upright_pixels(frame))
            if index >= wanted[-1]:
                return

    def _decoded(self, start: int) -> Iterator[tuple[int | None, VideoFrame]]:
        """Frames with their times, from the keyframe at or before the time ``start`` on."""
        keyframe = bisect_right(self._keyframes, (start, inf)) - 1
        if keyframe > 0:
            pts, dts = self._keyframes[keyframe]
            with opened(self.path) as (container, stream):
                with suppress(av.FFmpegError):  # a file without an index is read from its beginning
                    container.seek(dts, stream=stream)
                packets = dropwhile(
                    lambda packet: packet.pts != pts and (packet.dts is None or packet.dts <= dts),
                    whole_packets(container, stream),
                )
                frames = dropwhile(lambda frame: frame.pts is None or frame.pts < pts, decoded(stream, packets))
                # Seeking may have gone too far, and from some keyframes the image builds up only slowly.
                if (first := next(frames, None)) is not None and first.pts == pts:
                    yield from ((frame.pts, frame) for frame in chain([first], frames))
                    return
        with opened(self.path) as (container, stream):
            for place, frame in enumerate(decoded(stream, whole_packets(container, stream))):
                yield (place if self._is_counted else frame.pts), frame


@contextmanager
def opened(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    """A video file and the stream of its images."""
    try:
        # An absolute path is never taken for a URL. Titles in forgotten encodings are no reason to refuse a video.
        container = av.open(str(path.absolute()), metadata_errors="replace")
    except av.FFmpegError as error:
        raise VideoError(
            f"{path} is not a video that PyAV can read ({error.strerror}): expected MP4, MOV, MKV, WebM, AVI …, whole. "
            "If its recording or download broke off, repeat that"
        ) from error
    with container:
        if container.format.name == "tty":
            raise VideoError(f"{path} is not a video but text: expected MP4, MOV, MKV, WebM, AVI …")
        streams = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
        if not streams:
            kinds = ", ".join(sorted({stream.type for stream in container.streams})) or "nothing"
            raise VideoError(f"{path} has no video in it, only {kinds}: expected a file with moving images")
        if streams[0].codec_context is None:
            raise VideoError(f"{path} needs a decoder that this PyAV lacks: convert it to H.264 or VP9")
        streams[0].thread_type = "AUTO"
        yield container, streams[0]


def scan(container: InputContainer, stream: VideoStream) -> tuple[array[int], list[tuple[int, int]], bool]:
    """Read all packets: when frames are shown, where decoding can begin (pts, dts), and whether some are missing."""
    times, keyframes = array("q"), []
    packets, end, is_damaged = 0, 0, False
    try:
        for packet in container.demux(stream):
            packets += packet.dts is not None or packet.size > 0  # all but the last, which only says so
            if packet.is_corrupt:
                is_damaged = True
            elif packet.size and not packet.is_discard:
                times.append(-1 << 63 if packet.pts is None else packet.pts)  # no frame has this time: all get decoded
                end = max(end, (packet.pts or 0) + (packet.duration or 0))
                if packet.is_keyframe and packet.pts is not None and packet.dts is not None:
                    keyframes.append((packet.pts, packet.dts))
    except av.FFmpegError:
        is_damaged = True
    times, keyframes = array("q", sorted(times)), sorted(keyframes)
    if stream.frames:
        return times, keyframes, is_damaged or packets < stream.frames
    seconds = float((end - times[0]) * (stream.time_base or 0)) if times else 0.0
    return times, keyframes, is_damaged or seconds + 1 < announced_seconds(stream)


def announced_seconds(stream: VideoStream) -> float:
    """How long the file says its video is; 0 if it does not."""
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    with suppress(ValueError):  # Matroska: 00:01:02.5
        parts = reversed(stream.metadata.get("DURATION", "").split(":"))
        return sum(float(part) * 60**place for place, part in enumerate(parts))
    return 0.0


def rising(times: Sequence[int]) -> bool:
    """Whether times tell frames apart."""
    return all(before < after for before, after in pairwise(times))


def whole_packets(container: InputContainer, stream: VideoStream) -> Iterator[Packet]:
    """Of a video that is cut off, those before the cut."""
    with suppress(av.FFmpegError):  # where a video is cut off
        yield from (packet for packet in container.demux(stream) if packet.size and not packet.is_corrupt)


def decoded(stream: VideoStream, packets: Iterable[Packet]) -> Iterator[VideoFrame]:
    """The frames of packets that begin with a keyframe, in the order of showing."""
    for packet in chain(packets, [None]):  # None: what the decoder still holds
        try:
            frames = stream.decode(packet)
        except av.FFmpegError:  # a damaged frame; those after it may be whole
            continue
        yield from frames


def upright_pixels(frame: VideoFrame) -> np.ndarray:
    """(height, width, 3) uint8, turned and mirrored as the video says."""
    pixels = frame.to_ndarray(format="rgb24")
    matrix: Any = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return pixels
    # A stored pixel (x, y) is shown at (a x + c y, b x + d y), but for an offset.
    a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5].tolist()
    if abs(b) > abs(a):
        pixels, a, d = pixels.swapaxes(0, 1), c, b
    return np.ascontiguousarray(pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])
