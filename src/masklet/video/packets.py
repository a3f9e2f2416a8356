"""The frames of a video file, found by reading its packets without decoding them, and what is lost of them."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from math import inf
from pathlib import Path

import av
from av.container import InputContainer
from av.packet import Packet
from av.video.stream import VideoStream

NO_TIME = -1 << 63
"""Stands for the time of a packet that has none. No frame has it."""
ZEROS = 32
"""Zero bytes at the beginning of a packet, which show that it is lost."""
TRANSPORT_CELLS = (188, 192, 204)
"""Bytes in which MPEG transport streams are stored: plain, with time stamps, with error correction."""
UNCOMPRESSED = frozenset({"rawvideo", "v210", "v410", "r210", "ayuv", "yuv4", "v308", "v408", "y41p"})
"""Codecs whose packets are pixels, of which zeros are black ones."""
SIMPLE_B_FRAMES = frozenset({"mpeg1video", "mpeg2video", "mpeg4", "vc1", "wmv3"})
"""Codecs in which no frame depends on a B-frame."""


class Kind:
    """Bits for what is known of a packet before it is decoded. Plain numbers, since each packet is asked."""

    KEY = 1
    LOST = 2
    UNREFERENCED = 4
    """No other frame depends on it."""
    HIDDEN = 8
    """Its frame is not shown, and only others depend on it."""


@dataclass(slots=True)
class Packets:
    """The packets of a video stream, in the order in which they are stored."""

    times: array[int] = field(default_factory=lambda: array("q"))
    """Presentation times in ticks, or ``NO_TIME``."""
    decoding_times: array[int] = field(default_factory=lambda: array("q"))
    kinds: array[int] = field(default_factory=lambda: array("B"))
    """Bits of ``Kind``."""
    is_cut: bool = False
    """Whether packets at the end are missing."""

    def __len__(self) -> int:
        return len(self.times)

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        return zip(self.times, self.decoding_times, self.kinds, strict=True)

    def add(self, time: int | None, decoding_time: int | None, kind: int) -> None:
        """Add one packet."""
        self.times.append(NO_TIME if time is None else time)
        self.decoding_times.append(NO_TIME if decoding_time is None else decoding_time)
        self.kinds.append(kind)

    def have_chunks(self) -> bool:
        """Whether decoding times count packets, empty ones included, as those of an AVI do."""
        times = self.decoding_times
        return len(times) > 0 and times[0] != NO_TIME and increase(times) and times[-1] < 4 * len(times)

    def first_keyframe(self) -> int:
        """Its place, or that of a lost packet before it, which may have been one; 0 if there is none."""
        return next((place for place, kind in enumerate(self.kinds) if kind & (Kind.KEY | Kind.LOST)), 0)

    def drop_last(self) -> None:
        """Forget the last packet."""
        for column in (self.times, self.decoding_times, self.kinds):
            column.pop()


def scan(container: InputContainer, stream: VideoStream) -> Packets:
    """Read all packets without decoding them. Those of a truncated file end before the cut."""
    packets, codec = Packets(), stream.codec_context.name
    count, end, is_torn = 0, 0, False
    try:
        for packet in container.demux(stream):
            count += packet.dts is not None or packet.size > 0  # not the last one, which only marks the end
            if packet.size:
                # A gap in a transport stream is noticed at the packet before the one that is damaged.
                packets.add(packet.pts, packet.dts, kind_of(packet, codec) | (Kind.LOST if is_torn else 0))
                end = max(end, (packet.pts or 0) + (packet.duration or 0))
                is_torn = packet.is_corrupt
    except av.FFmpegError:
        packets.is_cut = True
    if packets.times and (is_torn or ends_within_cell(container)):
        packets.is_cut = True
        packets.drop_last()
    packets.is_cut |= lacks_bytes(container)
    if stream.frames:
        if container.format.name == "avi" and packets.have_chunks():
            count = packets.decoding_times[-1] + 1  # empty ones are not read
        packets.is_cut |= count < stream.frames
    elif packets.times and stream.time_base:
        packets.is_cut |= ends_early(min(packets.times), end, stream)
    return packets


def kind_of(packet: Packet, codec: str) -> int:
    """What is known of a packet before it is decoded, as bits of ``Kind``."""
    # A compressed packet does not begin so: zeros stand where a disk or a download left a hole.
    # Without a container, zeros may also precede an intact packet.
    has_times = packet.dts is not None or packet.pts is not None
    is_blank = not any(memoryview(packet)[: ZEROS if has_times else packet.size]) and codec not in UNCOMPRESSED
    kind = Kind.LOST if packet.is_corrupt or is_blank else 0
    if packet.is_keyframe:
        kind |= Kind.KEY
    if packet.is_disposable:
        kind |= Kind.UNREFERENCED
    # Edit lists hide packets, and VP8 hides some by a bit of their header.
    if packet.is_discard or (codec == "vp8" and not is_blank and not memoryview(packet)[0] & 0x10):
        kind |= Kind.HIDDEN
    return kind


def ends_early(begin: int, end: int, stream: VideoStream) -> bool:
    """Whether the file states that the video is longer than its packets are."""
    tick = float(stream.time_base or 0)
    if stream.duration:
        return (end - begin) * tick + 1 < stream.duration * tick
    with suppress(ValueError):  # Matroska: 00:01:02.5, from 0
        parts = reversed(stream.metadata.get("DURATION", "").split(":"))
        seconds = sum(float(part) * 60**power for power, part in enumerate(parts))
        return end * tick + 1.5 / float(stream.guessed_rate or 1) < seconds  # the last packet may state no duration
    return False


def ends_within_cell(container: InputContainer) -> bool:
    """Whether an MPEG transport stream is cut within a cell, and so within a frame."""
    file_size = container.size or 0
    is_whole = any(file_size % size == 0 for size in TRANSPORT_CELLS)
    return container.format.name == "mpegts" and not is_whole


def lacks_bytes(container: InputContainer) -> bool:
    """Whether a Matroska file is shorter than it states (RFC 8794, sections 4 to 6)."""
    if container.format.name != "matroska,webm":
        return False
    with Path(container.name).open("rb") as file:
        for is_last in (False, True):  # the header, and the segment, which holds all else
            file.seek(4, os.SEEK_CUR)  # the identifier
            first = file.read(1)
            if not first or not first[0]:
                return False
            bits = 7 * (9 - first[0].bit_length())
            size = int.from_bytes(first + file.read(bits // 7 - 1), "big") & (1 << bits) - 1
            if is_last:
                return size != (1 << bits) - 1 and file.tell() + size > (container.size or 0)  # all ones: unknown
            file.seek(size, os.SEEK_CUR)
    return False


class Continuity:
    """Tells which packets can be decoded, since all that they depend on was.

    After a lost packet, the frames up to the next keyframe may depend on it: a decoder guesses their pixels without
    saying so. They are lost as well, except where only a frame is missing on which no other depends.

    Args:
        lost: Times of the packets that are lost. Others are added as they are found.
        codec: Its name.
        may_lose: Whether a packet is lost at which the decoder fails. If not, the error is raised.
    """

    def __init__(self, lost: set[int], codec: str, *, may_lose: bool = False) -> None:
        self.lost = lost
        self.may_lose = may_lose
        self.restarts = False
        """Whether decoding starts afresh at the packet that was kept last."""
        self._has_simple_b_frames = codec in SIMPLE_B_FRAMES
        self._latest = -inf
        self._is_broken = False
        self._has_gap = False
        self._begin = -inf

    def interrupt(self) -> None:
        """Note that packets are missing before the next one."""
        self._is_broken = True

    def lose(self, time: int, kind: int) -> None:
        """Note that a packet is lost."""
        self.lost.add(time)
        self._is_broken |= self._is_needed(time, kind)

    def keeps(self, time: int, kind: int) -> bool:
        """Whether the next packet can be decoded."""
        if time in self.lost:
            self._has_gap |= self._is_needed(time, kind)
            return False
        if kind & Kind.KEY:
            self.restarts = self._is_broken or self._has_gap
            # Frames that are stored after a keyframe and shown before it may depend on those before it.
            self._begin = time if self._is_broken else -inf
            self._is_broken = False
        elif self._is_broken or time < self._begin:
            self.lost.add(time)
            return False
        else:
            self.restarts = False
        self._has_gap = False
        self._latest = max(self._latest, time)
        return True

    def _is_needed(self, time: int, kind: int) -> bool:
        """Whether other frames may depend on this one."""
        is_simple_b_frame = self._has_simple_b_frames and time < self._latest
        return not (kind & Kind.UNREFERENCED or is_simple_b_frame)


def increase(times: Sequence[int]) -> bool:
    """Whether no two frames have the same time."""
    return all(before < after for before, after in pairwise(times))
