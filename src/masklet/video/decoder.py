"""Video files: finding their frames, exact seeking, and upright pixels."""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
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
from masklet.video.readers import IMAGES_FPS, Frame

FRAMES_AHEAD = 8
"""Frames that are read before they are asked for."""
BACKWARD_BYTES = 128 * 2**20
"""Size of the frames held while reading backward, since codecs decode forward; at least FRAMES_AHEAD frames."""


class VideoFile:
    """A file that PyAV decodes. Its packets give the time of each frame, which identifies decoded frames."""

    reads_ahead = True

    def __init__(self, path: Path) -> None:
        self.path = path
        with opened(path) as (container, stream):
            self.fps = Fraction(stream.average_rate or stream.guessed_rate or IMAGES_FPS)
            self._tick = stream.time_base or 1 / self.fps
            self._batch = max(FRAMES_AHEAD, BACKWARD_BYTES // max(3 * stream.width * stream.height, 1))
            packets_suffice = stream.codec_context.name != "vp8"  # some of its packets hold hidden frames
            times, self._keyframes, self.is_incomplete = scan(container, stream)
        with opened(path) as (container, stream):
            frames = islice(decoded(stream, whole_packets(container, stream)), FRAMES_AHEAD)
            packets_suffice &= [frame.pts for frame in frames] == times[:FRAMES_AHEAD].tolist()
        self._times: Sequence[int] = times
        self._is_counted = False
        # Some formats store no times, and a recording that starts in the middle has packets that cannot be decoded.
        # All frames of such a file are decoded now to find their times, or at least their number.
        if not (packets_suffice and increase(times)):
            with opened(path) as (container, stream):
                decoded_times = [frame.pts for frame in decoded(stream, whole_packets(container, stream))]
            self._times = array("q", [time for time in decoded_times if time is not None])
            if None in decoded_times or not increase(self._times):
                self._is_counted = True
                self._times, self._keyframes, self._tick = range(len(decoded_times)), [], 1 / self.fps
        self.count: int | None = len(self._times)

    def read(self, wanted: range) -> Generator[Frame]:  # noqa: D102
        if wanted.step > 0:
            yield from self._forward(wanted)
            return
        forward = wanted[::-1]
        for end in range(len(wanted), 0, -self._batch):
            batch = list(self._forward(forward[max(0, end - self._batch) : end]))
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
        """Decode frames, with their times, beginning at the keyframe at or before the time ``start``."""
        keyframe = bisect_right(self._keyframes, (start, inf)) - 1
        if keyframe > 0:
            pts, dts = self._keyframes[keyframe]
            with opened(self.path) as (container, stream):
                with suppress(av.FFmpegError):  # a file without an index is read from the beginning
                    container.seek(dts, stream=stream)
                packets = dropwhile(
                    lambda packet: packet.pts != pts and (packet.dts is None or packet.dts <= dts),
                    whole_packets(container, stream),
                )
                frames = dropwhile(lambda frame: frame.pts is None or frame.pts < pts, decoded(stream, packets))
                # Seeking may have missed the keyframe, and after some keyframes the image builds up only gradually.
                if (first := next(frames, None)) is not None and first.pts == pts:
                    yield from ((frame.pts, frame) for frame in chain([first], frames))
                    return
        with opened(self.path) as (container, stream):
            for number, frame in enumerate(decoded(stream, whole_packets(container, stream))):
                yield (number if self._is_counted else frame.pts), frame


@contextmanager
def opened(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open a video file and its video stream."""
    try:
        # An absolute path is never taken for a URL. Metadata in an unknown encoding must not make the video unreadable.
        container = av.open(str(path.absolute()), metadata_errors="replace")
    except av.FFmpegError as error:
        raise VideoError(
            f"{path} is not a video that PyAV can read ({error.strerror}): expected a complete MP4, MOV, MKV, WebM, "
            "AVI … If its recording or download was interrupted, repeat it"
        ) from error
    with container:
        if container.format.name == "tty":
            raise VideoError(f"{path} is a text file, not a video: expected MP4, MOV, MKV, WebM, AVI …")
        streams = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
        if not streams:
            kinds = ", ".join(sorted({stream.type for stream in container.streams})) or "nothing"
            raise VideoError(f"{path} has no video in it, only {kinds}: expected a file with a video stream")
        if streams[0].codec_context is None:
            raise VideoError(f"{path} needs a decoder that this PyAV lacks: convert it to H.264 or VP9")
        streams[0].thread_type = "AUTO"
        yield container, streams[0]


def scan(container: InputContainer, stream: VideoStream) -> tuple[array[int], list[tuple[int, int]], bool]:
    """Read all packets without decoding them.

    Returns:
        The sorted times of all frames, the (pts, dts) of keyframes, and whether packets are missing.
    """
    times, keyframes = array("q"), []
    packets, end, is_damaged = 0, 0, False
    try:
        for packet in container.demux(stream):
            packets += packet.dts is not None or packet.size > 0  # not the last one, which only marks the end
            if packet.is_corrupt:
                is_damaged = True
            elif packet.size and not packet.is_discard:
                times.append(-1 << 63 if packet.pts is None else packet.pts)  # if None, a time that no frame has
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
    """The duration that the file states; 0 if it states none."""
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    with suppress(ValueError):  # Matroska: 00:01:02.5
        parts = reversed(stream.metadata.get("DURATION", "").split(":"))
        return sum(float(part) * 60**power for power, part in enumerate(parts))
    return 0.0


def increase(times: Sequence[int]) -> bool:
    """Whether no two frames have the same time."""
    return all(before < after for before, after in pairwise(times))


def whole_packets(container: InputContainer, stream: VideoStream) -> Iterator[Packet]:
    """The packets that are complete. Those of a truncated file end before the cut."""
    with suppress(av.FFmpegError):  # raised at the cut
        yield from (packet for packet in container.demux(stream) if packet.size and not packet.is_corrupt)


def decoded(stream: VideoStream, packets: Iterable[Packet]) -> Iterator[VideoFrame]:
    """Decode packets that begin with a keyframe; frames come in the order in which they are shown."""
    for packet in chain(packets, [None]):  # None flushes the decoder
        try:
            frames = stream.decode(packet)
        except av.FFmpegError:  # a damaged frame; later ones may be complete
            continue
        yield from frames


def upright_pixels(frame: VideoFrame) -> np.ndarray:
    """(height, width, 3) uint8, rotated and mirrored as the video's metadata state."""
    pixels = frame.to_ndarray(format="rgb24")
    matrix: Any = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return pixels
    # A stored pixel (x, y) is shown at (a x + c y, b x + d y), plus an offset.
    a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5].tolist()
    if abs(b) > abs(a):
        pixels, a, d = pixels.swapaxes(0, 1), c, b
    return np.ascontiguousarray(pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])
