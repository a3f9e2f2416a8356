"""Video files: decoding the frames that are asked for, and exact seeking."""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import chain, dropwhile, islice
from math import inf
from pathlib import Path

import av
from av.container import InputContainer
from av.packet import Packet
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from masklet.errors import VideoError
from masklet.video.frame_index import STREAMED_FORMATS, FrameIndex, index_frames, index_places, number_by_order
from masklet.video.holes import Hole, losses
from masklet.video.packets import NO_TIME, Continuity, Kind, Packets, increase, kind_of, scan
from masklet.video.pixels import upright_pixels
from masklet.video.pyav import DECODING_ERRORS, as_fraction, open_input
from masklet.video.readers import IMAGES_FPS, Frame

FRAMES_AHEAD = 8
"""Frames that are read before they are asked for."""
KEYFRAMES_TRIED = 3
"""Keyframes from which decoding is tried before it begins at the first frame."""
BACKWARD_BYTES = 128 * 2**20
"""Size of the frames held while reading backward, since codecs decode forward; at least FRAMES_AHEAD frames."""


class VideoFile:
    """A file that PyAV decodes. Its packets give the time of each frame, which identifies decoded frames.

    In a damaged file, frames keep the numbers and times that they had before the damage, as far as the file states
    them: see ``index_frames``. A frame that cannot be decoded is left out, and so are the frames that depend on it: see
    ``Continuity``.

    Some things cannot be known from the file: damage that the decoder does not notice; how many frames are missing at
    the beginning of a recorded broadcast (MPEG-TS), or where the rate varies; and, except with H.264, whether frames
    are missing from a copy that was made without them, or were dropped by the recorder. Raw streams (``.h264``) store
    neither times nor positions, so their frames are numbered in the order in which they come.
    """

    reads_ahead = True

    def __init__(self, path: Path) -> None:
        self.path = path
        self._is_exact = False  # whether errors of the decoder are raised at the packet that is damaged
        # Of files without times: where a packet is, which frames it makes, and which packets are lost.
        self._place_of: Callable[[int, Packet], int] | None = None
        self._numbers: dict[int, int] | None = None
        self._lost_places: set[int] = set()
        with opened(path) as (container, stream):
            rates = [rate for rate in (as_fraction(stream.average_rate), as_fraction(stream.guessed_rate)) if rate]
            self.fps = rates[0] if rates else IMAGES_FPS
            self._tick = as_fraction(stream.time_base) or 1 / self.fps
            self._batch = max(FRAMES_AHEAD, BACKWARD_BYTES // max(3 * stream.width * stream.height, 1))
            packets = scan(container, stream)
            is_avi = container.format.name == "avi"
            if is_avi and packets.have_chunks() and not stream.codec_context.reorder_depth:
                packets.times, self._place_of = packets.decoding_times, chunk_place
            self._index = index_frames(
                packets,
                stream.codec_context.name,
                [1 / (rate * self._tick) for rate in rates],
                starts_anywhere=not STREAMED_FORMATS.isdisjoint(container.format.name.split(",")),
                announced=announced_keyframes(container, stream),
                losses=self._losses,
            )
        if self._index.step is not None:
            self.fps = 1 / (self._index.step * self._tick)
        if packets.times:
            if is_avi and self._place_of is None and (self._index.lost or self._index.is_cut):
                self._index_places(packets)  # times were derived from the order of packets, and some are missing
            elif not (increase(self._index.times) and self._begins_as_indexed()):
                # Some formats store no times, and some first frames cannot be decoded though nothing is lost. All
                # frames of such a file are decoded now to find their times, or at least their number.
                self._index_decoded(packets)
        self.is_incomplete = self._index.is_cut
        self.count: int | None = len(self._index.times)

    @property
    def lost(self) -> set[int]:
        """Numbers of the frames that cannot be decoded, as far as reading has found them."""
        times = self._index.times
        numbers = {time: bisect_left(times, time) for time in list(self._index.lost)}
        return {number for time, number in numbers.items() if number < len(times) and times[number] == time}

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
        times, lost = self._index.times, self._index.lost
        first = next((index for index in wanted if times[index] not in lost), None)
        last = next((index for index in reversed(wanted) if times[index] not in lost), None)
        if first is None or last is None:
            return
        for time, frame in self._decoded(times[first]):
            index = bisect_left(times, time)
            if index in wanted and times[index] == time:
                yield Frame(index, float((time - times[0]) * self._tick), upright_pixels(frame))
            if index >= last:
                return

    def _decoded(self, start: int) -> Iterator[tuple[int, VideoFrame]]:
        """Decode frames from the time ``start`` on, with their times, which rise.

        A decoder that runs in threads reports damage too late to tell which packet is damaged. At the first error
        threads are no longer used for this file, and reading continues where it was.
        """
        while True:
            try:
                for time, frame in self._decoded_from_keyframe(start):
                    if time is not None and time >= start:
                        yield time, frame
                        start = time + 1
                return
            except av.FFmpegError:
                if self._is_exact:
                    raise
                self._is_exact = True

    def _decoded_from_keyframe(self, start: int) -> Iterator[tuple[int | None, VideoFrame]]:
        """Decode frames beginning at the keyframe at or before the time ``start``, or at the first one."""
        keyframes, lost = self._index.keyframes, self._index.lost
        before = [
            keyframe for keyframe in keyframes[: bisect_right(keyframes, (start, inf))] if keyframe[0] not in lost
        ]
        for pts, dts in reversed(before[1:][-KEYFRAMES_TRIED:]):
            with self._opened() as (container, stream):
                with suppress(av.FFmpegError):  # a file without an index is read from the beginning
                    container.seek(dts, stream=stream)
                packets = from_keyframe(self._packets(container, stream), pts, dts)
                continuity = Continuity(lost, stream.codec_context.name)
                frames = decoded(stream, packets, continuity)
                first = None
                with suppress(av.FFmpegError):
                    first = next(frames, None)
                # Seeking may have missed the keyframe, and after some keyframes the image builds up only gradually.
                if first is not None and first.pts == pts:
                    continuity.may_lose = self._is_exact
                    yield from ((frame.pts, frame) for frame in chain([first], frames))
                    return
        yield from self._decoded_from_beginning()

    def _decoded_from_beginning(self) -> Iterator[tuple[int | None, VideoFrame]]:
        with self._opened() as (container, stream):
            packets = self._packets(container, stream)
            if self._index.begin is not None:
                packets = from_keyframe(packets, self._index.begin)
            lost = self._index.lost if self._numbers is None else self._lost_places
            continuity = Continuity(lost, stream.codec_context.name, may_lose=self._is_exact)
            for frame in decoded(stream, packets, continuity):
                yield (frame.pts if self._numbers is None else self._numbers.get(frame.pts or 0)), frame

    @contextmanager
    def _opened(self) -> Iterator[tuple[InputContainer, VideoStream]]:
        with opened(self.path) as (container, stream):
            if self._is_exact:
                stream.thread_type, stream.codec_context.thread_count = "NONE", 1
            yield container, stream

    def _packets(self, container: InputContainer, stream: VideoStream) -> Iterator[Packet]:
        """The packets from where the file stands. Those of a truncated file end before the cut."""
        with suppress(av.FFmpegError):  # raised at the cut
            for ordinal, packet in enumerate(packet for packet in container.demux(stream) if packet.size):
                if self._place_of is not None:
                    packet.pts = self._place_of(ordinal, packet)
                yield packet

    def _begins_as_indexed(self) -> bool:
        """Whether the first frames that are decoded have the times of the first packets."""
        times, lost = self._index.times, self._index.lost
        if not times:
            return True
        decoded_times = [time for time, _ in islice(self._decoded(times[0]), FRAMES_AHEAD)]
        return decoded_times == list(islice((time for time in times if time not in lost), FRAMES_AHEAD))

    def _losses(self, holes: Sequence[Hole]) -> list[Hole]:
        """The holes between frames in which frames were lost."""
        chunks = self._place_of is chunk_place
        with opened(self.path) as (container, stream):
            return losses(container, stream, holes, lambda packet: packet.dts if chunks else packet.pts)

    def _index_decoded(self, packets: Packets) -> None:
        """Number the frames of a file by decoding it."""
        index = self._index
        index.keyframes, index.begin, keyframes, begin = [], None, index.keyframes, index.begin
        shown = self._decode_all()
        times = array("q", [time for time in shown if time is not None])
        if len(times) == len(shown) and increase(times):
            # A lost first keyframe takes along the frames up to the next one, but the decoder does not always say so.
            first = packets.times[0] if begin is None and packets.kinds[0] & Kind.KEY else times[0]
            index.lost.update(time for time in index.times if NO_TIME < first <= time < times[0])
            index.times, index.keyframes = array("q", sorted({*times, *index.lost})), keyframes
        else:
            self._index_places(packets, skipped=0 if begin is None else packets.first_keyframe())

    def _index_places(self, packets: Packets, skipped: int = 0) -> None:
        """Number the frames of a file without reliable times by decoding it.

        Args:
            packets: Packets of the file.
            skipped: How many of them come before the first frame.
        """
        with opened(self.path) as (container, stream):
            codec, delay = stream.codec_context.name, stream.codec_context.reorder_depth
            self._place_of = chunk_place if container.format.name == "avi" and packets.have_chunks() else ordinal_place
        packets.times = packets.decoding_times if self._place_of is chunk_place else array("q", range(len(packets)))
        self._index = index = index_places(packets, codec, skipped)
        places = [place for place in self._decode_all() if place is not None]
        self._numbers, count = number_by_order(
            places, packets.times[-1] + 1, index.lost, skipped=skipped, delay=delay, is_cut=index.is_cut
        )
        self._index = FrameIndex(
            range(count), set(range(count)).difference(self._numbers.values()), is_cut=index.is_cut
        )
        self._lost_places, self._tick = index.lost, 1 / self.fps

    def _decode_all(self) -> list[int | None]:
        """The times of all frames that can be decoded, in the order in which they are shown."""
        try:
            return [time for time, _ in self._decoded_from_beginning()]
        except av.FFmpegError:
            self._is_exact = True
            return [time for time, _ in self._decoded_from_beginning()]


@contextmanager
def opened(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open a video file and its video stream."""
    try:
        # An absolute path is never taken for a URL.
        container = open_input(str(path.absolute()))
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


def announced_keyframes(container: InputContainer, stream: VideoStream) -> list[int]:
    """Times of keyframes that the index of a Matroska file names, whether they are there or not."""
    if container.format.name != "matroska,webm":
        return []
    with suppress(av.FFmpegError):
        container.seek(0, stream=stream)  # the index is read at the first seeking
    return [entry.timestamp for entry in stream.index_entries]


def from_keyframe(packets: Iterable[Packet], pts: int, dts: int | None = None) -> Iterator[Packet]:
    """The packets from a keyframe on, or from where seeking led if that is after it."""
    later = dropwhile(
        lambda packet: packet.pts != pts and (dts is None or packet.dts is None or packet.dts <= dts), packets
    )
    # Frames that are stored after the keyframe and shown before it may depend on those before it.
    return (packet for packet in later if packet.pts is None or packet.pts >= pts)


def ordinal_place(ordinal: int, packet: Packet) -> int:
    """The place of a packet among all others."""
    return ordinal


def chunk_place(ordinal: int, packet: Packet) -> int:
    """The place of a packet of an AVI, which counts empty ones."""
    return ordinal if packet.dts is None else packet.dts


def decoded(stream: VideoStream, packets: Iterable[Packet], continuity: Continuity) -> Iterator[VideoFrame]:
    """Decode the packets that can be decoded; frames come in the order in which they are shown.

    Raises:
        av.FFmpegError: A packet is damaged, and ``continuity`` is not to note it.
    """
    codec, pending = stream.codec_context.name, set[int]()
    for packet in packets:
        kind, time = kind_of(packet, codec), NO_TIME if packet.pts is None else packet.pts
        if kind & Kind.LOST:
            continuity.lose(time, kind)
        if not continuity.keeps(time, kind):
            continue
        if continuity.restarts:
            yield from remaining(stream, continuity, pending)
            stream.codec_context.flush_buffers()
        try:
            frames = stream.decode(packet)
        except DECODING_ERRORS:
            if not continuity.may_lose:
                raise
            continuity.lose(time, kind)
            continue
        pending.add(time)
        pending.difference_update(frame.pts for frame in frames if frame.pts is not None)
        yield from frames
    yield from remaining(stream, continuity, pending)


def remaining(stream: VideoStream, continuity: Continuity, pending: set[int]) -> list[VideoFrame]:
    """The frames that the decoder still holds. After an error at the end, those ``pending`` are lost."""
    try:
        return stream.decode(None)
    except DECODING_ERRORS:
        if not continuity.may_lose:
            raise
        continuity.lost.update(pending)
        return []
    finally:
        pending.clear()
