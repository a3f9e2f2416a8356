"""Holes in the times of a video file: whether frames were lost there, or there never were any."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import chain, pairwise
from typing import NamedTuple

import av
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.video.stream import VideoStream

from masklet.video.picture_order import Counters, Picture, counters_of, picture_of

OVERHEAD_BYTES = 100
"""What a Matroska file may store between two packets: the head of a cluster, and of a block."""


class Hole(NamedTuple):
    """A distance between two frames that is longer than usual."""

    place: int
    """Place of the first frame after it, among all."""
    before: int
    """Time of the last frame before it, in ticks."""
    after: int
    """Time of the first frame after it."""
    missing: int
    """How many frames would have filled it."""
    near: Sequence[int]
    """Times of the packets that are stored near it, in their order, those of both frames included."""


class Extent(NamedTuple):
    """Where a packet is stored."""

    position: int
    size: int
    time: int | None
    """Time of a packet of the video stream."""


def losses(
    container: InputContainer, stream: VideoStream, holes: Sequence[Hole], time_of: Callable[[Packet], int | None]
) -> list[Hole]:
    """Find the holes in which frames were lost, by what an intact video does not have.

    - In Matroska, a damaged block vanishes together with those after it: bytes that belong to no packet show it.
    - In H.264, pictures are counted. A file may have been copied without packets that were damaged.

    A recorder that drops a frame before it is encoded leaves neither. In doubt nothing is lost.

    Args:
        container: A file, opened anew. All its packets are read, but not decoded.
        stream: Its video stream.
        holes: In order.
        time_of: Time of a packet of the stream.

    Returns:
        Those holes.
    """
    near = set(chain.from_iterable(hole.near for hole in holes))
    counters = None
    if stream.codec_context.name == "h264":
        with suppress(ValueError):
            counters = counters_of(bytes(stream.codec_context.extradata or b""))
    extents, pictures = list[Extent](), dict[int, Picture]()
    with suppress(av.FFmpegError):  # raised where a file is cut
        for packet in container.demux():
            if not packet.size:
                continue
            time = time_of(packet) if packet.stream.index == stream.index else None
            if packet.pos is not None:
                extents.append(Extent(packet.pos, packet.size, time))
            if counters and time is not None and time in near:
                with suppress(ValueError):
                    pictures[time] = picture_of(bytes(packet), counters)
    found = set[Hole]()
    if container.format.name == "matroska,webm":
        found = unaccounted(extents, holes)
    return [hole for hole in holes if hole in found or (counters and skips(hole, pictures, counters))]


def unaccounted(extents: Sequence[Extent], holes: Sequence[Hole]) -> set[Hole]:
    """The holes near which bytes of the file belong to no packet, far more than elsewhere."""
    positions = {extent.time: extent.position for extent in extents}
    stored = [[positions[time] for time in hole.near if time in positions] for hole in holes]
    begins, ends = np.array([[min(near, default=0), max(near, default=0)] for near in stored]).T
    distances, latest, end = list[tuple[int, int]](), -1, 0
    for position, size, _ in sorted(extents, key=lambda extent: extent.position):
        if latest >= 0 and position > end:
            distances.append((end, position - end))
        end = (end if position == latest else position) + size  # packets that are stored in one block have one position
        latest = position
    at, sizes = np.array(distances, np.int64).reshape(-1, 2).T
    is_elsewhere = np.searchsorted(np.sort(begins), at, "right") == np.searchsorted(np.sort(ends), at)
    large = at[sizes > max(OVERHEAD_BYTES, 2 * int(sizes[is_elsewhere].max(initial=0)))]
    has_large = np.searchsorted(large, begins) < np.searchsorted(large, ends, "right")
    return {hole for hole, found in zip(holes, has_large, strict=True) if found}


def skips(hole: Hole, pictures: Mapping[int, Picture], counters: Counters) -> bool:
    """Whether the counters of H.264 say that pictures are missing in a hole."""
    stored = [time for time in hole.near if time in pictures]
    period = (hole.after - hole.before) / (hole.missing + 1)
    neighbours = [pair for pair in pairwise(sorted(stored)) if round((pair[1] - pair[0]) / period) == 1]
    usual = {step for pair in neighbours if (step := steps(stored, pictures, *pair, counters)) is not None}
    here = steps(stored, pictures, hole.before, hole.after, counters)
    if here is not None and here in usual:
        return False
    if not counters.may_skip_numbers and numbers_skip([pictures[time] for time in stored], counters):
        return True
    # Where others depend on every picture, their numbers would have shown it. The order may then follow the clock.
    is_all_referenced = all(pictures[time].is_reference for time in stored)
    if here is None or len(usual) != 1 or is_all_referenced:
        return False
    return here == usual.pop() * (hole.missing + 1) % (1 << counters.order_bits)


def steps(
    stored: Sequence[int], pictures: Mapping[int, Picture], before: int, after: int, counters: Counters
) -> int | None:
    """How far the order goes on from one picture to the next that is shown; None if that is not known."""
    if not (before in pictures and after in pictures):
        return None
    first, last = sorted((stored.index(before), stored.index(after)))
    orders = pictures[before].order, pictures[after].order
    if orders[0] is None or orders[1] is None or any(pictures[time].is_idr for time in stored[first + 1 : last + 1]):
        return None
    return (orders[1] - orders[0]) % (1 << counters.order_bits)


def numbers_skip(pictures: Sequence[Picture], counters: Counters) -> bool:
    """Whether a reference picture is missing between others, which are in the order in which they are stored."""
    latest: int | None = None
    for picture in pictures:
        if picture.is_idr:
            latest = 0
        elif latest is not None and (picture.number - latest) % (1 << counters.number_bits) > 1:
            return True
        elif picture.is_reference:
            latest = picture.number
    return False
