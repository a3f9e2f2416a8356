"""Numbers and times of the frames of a video file, those included that are lost."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from itertools import groupby, pairwise
from math import inf

import numpy as np
from numpy.typing import NDArray

from masklet.video.holes import Hole
from masklet.video.packets import NO_TIME, Continuity, Kind, Packets, increase

Times = NDArray[np.int64]

STREAMED_FORMATS = frozenset(
    {"mpegts", "mpeg", "mpegvideo", "h264", "hevc", "m4v", "obu", "ivf", "flv", "live_flv", "rtp", "rtsp", "sdp"}
)
"""Formats that may be recorded from any moment of a broadcast on."""


@dataclass(slots=True)
class FrameIndex:
    """The frames of a file by number. Made by ``index_frames``."""

    times: Sequence[int]
    """Time of each frame, in ticks, rising; of lost frames, the time at which they would have been shown."""
    lost: set[int] = field(default_factory=set)
    """Times of the packets that cannot be decoded."""
    keyframes: list[tuple[int, int]] = field(default_factory=list)
    """Presentation and decoding time of each keyframe from which decoding may begin, in order."""
    begin: int | None = None
    """Time of the first keyframe, if what is stored before it does not count."""
    step: Fraction | None = None
    """Ticks from one frame to the next, if missing frames were counted by them."""
    is_cut: bool = False
    """Whether frames at the end are missing."""


def index_frames(
    packets: Packets,
    codec: str,
    steps: Iterable[Fraction],
    *,
    starts_anywhere: bool,
    announced: Sequence[int] = (),
    losses: Callable[[Sequence[Hole]], Sequence[Hole]],
) -> FrameIndex:
    """Number the frames of a file by the times of its packets.

    Packets may be missing. Where the others follow each other at a constant rate, with few exceptions, the missing
    ones are counted if there is evidence that they were lost: other damage that shows in the packets, or ``losses``.
    Without it a recorder has dropped frames, and the file is whole. Frames are numbered without the missing ones also
    where the rate varies, since nothing shows how many there were, and if the first packets of a file are missing and
    the rest begins with a keyframe.

    Args:
        packets: In the order in which they are stored.
        codec: Its name.
        steps: Ticks from one frame to the next, as the file may state them.
        starts_anywhere: Whether a recording in this format may start between keyframes. If so, it begins with its first
            keyframe; in other formats frames before that have lost their keyframe. It may end anywhere, too.
        announced: Times of frames that the file states to hold.
        losses: Finds the holes in which frames were lost. Called only if there are holes, and no damage shows.
    """
    index = FrameIndex(array("q"), is_cut=packets.is_cut)
    key = packets.first_keyframe()
    if key > 0 and starts_anywhere:
        index.begin = packets.times[key]
        packets = from_keyframe(packets, key)
    is_headless = key > 0 and not starts_anywhere
    kinds = np.array(packets.kinds, np.uint8)
    places = np.flatnonzero(~kinds & Kind.HIDDEN)
    times = np.array(packets.times, np.int64)[places]
    in_order = np.sort(times)
    index.times = array("q", in_order.tolist())
    if not index.times or index.times[0] == NO_TIME or not increase(index.times):
        return index
    # How many places earlier than it is shown a frame may be stored.
    lead = int((np.searchsorted(in_order, times) - np.arange(len(times))).max())
    is_damaged = is_headless or bool((kinds & Kind.LOST).any())
    if announced and not is_damaged:
        is_damaged = not set(announced) <= set(index.times)
    breaks: dict[int, float] = {0: -inf} if is_headless else {}
    first = min(announced, default=int(in_order[0])) if is_damaged else int(in_order[0])
    if is_headless:
        first = min(first, 0)
    find = list if is_damaged else losses
    for hole in count_missing(
        index, in_order, packets.times, steps, lead, first=first, ends_anywhere=starts_anywhere, losses=find
    ):
        breaks[int(places[max(0, hole - lead)])] = float(in_order[hole])
    if index.times[0] < in_order[0]:
        breaks[0] = -inf
    find_lost(index, packets, codec, breaks)
    return index


def from_keyframe(packets: Packets, key: int) -> Packets:
    """The packets from a keyframe on, without frames that are shown before it."""
    kept = Packets(is_cut=packets.is_cut)
    for place, packet in enumerate(packets):
        if place >= key and packet[0] >= packets.times[key]:
            kept.add(*packet)
    return kept


def count_missing(
    index: FrameIndex,
    times: Times,
    stored: Sequence[int],
    steps: Iterable[Fraction],
    lead: int,
    *,
    first: int,
    ends_anywhere: bool,
    losses: Callable[[Sequence[Hole]], Collection[Hole]],
) -> list[int]:
    """Add the frames whose packets are missing to an index.

    Returns:
        The place among ``times`` of the first frame after each hole.
    """
    if (grid := constant_rate(times, steps)) is None:
        return []
    step, numbers = grid
    numbers = numbers + max(0, round((int(times[0]) - first) / step))
    places = (np.flatnonzero(np.diff(numbers) > 1) + 1).tolist()
    # If holes are many, the rate varies, and nothing shows what is missing.
    if len(places) + bool(numbers[0]) > max(2, len(times) // 10) or numbers[-1] >= 100 * len(times):
        return []
    if (index.is_cut or ends_anywhere) and places and len(times) - places[-1] <= lead:
        # Frames that are stored ahead of others which the cut took. The video ends before them; they are decoded, since
        # frames that are shown earlier depend on them.
        index.is_cut = True
        end = places.pop()
        times, numbers = times[:end], numbers[:end]
        index.times = array("q", times.tolist())
    holes = holes_at(places, times, numbers, stored, lead) if places else []
    lost = losses(holes) if holes else []
    if not lost and not numbers[0]:
        return []
    closed = np.zeros_like(numbers)
    for hole in set(holes).difference(lost):
        closed[hole.place] = hole.missing
    numbers = numbers - np.cumsum(closed)
    every = np.arange(int(numbers[-1]) + 1)
    known = np.maximum(0, np.searchsorted(numbers, every, "right") - 1)  # the last frame that is there
    filled = times[known] + np.rint((every - numbers[known]) * float(step)).astype(np.int64)
    index.times, index.step = array("q", filled.tolist()), step
    index.lost.update(np.delete(filled, numbers).tolist())
    return [hole.place for hole in lost]


def holes_at(places: Iterable[int], times: Times, numbers: Times, stored: Sequence[int], lead: int) -> list[Hole]:
    """Describe the holes between frames.

    Args:
        places: Place of the first frame after each hole, among ``times``.
        times: Times of the frames, rising.
        numbers: Numbers of the frames, by their rate.
        stored: Times of all packets, in the order in which they are stored.
        lead: How many places earlier than it is shown a frame may be stored.
    """
    holes, place_of = list[Hole](), {time: place for place, time in enumerate(stored)}
    for place in places:
        before, after = times[place - 1 : place + 1].tolist()
        first, last = sorted((place_of[before], place_of[after]))
        near = tuple(stored[max(0, first - lead - 2) : last + lead + 3])
        holes.append(Hole(place, before, after, int(numbers[place] - numbers[place - 1]) - 1, near))
    return holes


def constant_rate(times: Times, steps: Iterable[Fraction]) -> tuple[Fraction, Times] | None:
    """The distance of frames, if all lie at multiples of one distance, and their numbers by it. Else None."""
    if len(times) < 3:
        return None
    usual = float(np.median(np.diff(times)))
    for step in (*steps, Fraction(usual)):
        numbers = np.rint((times - times[0]) / float(step)).astype(np.int64)
        rounding = float(np.abs(times - times[0] - numbers * float(step)).max())
        if abs(step - usual) <= 1 and rounding <= min(1.001, float(step) / 4) and (np.diff(numbers) > 0).all():
            return step, numbers
    return None


def find_lost(index: FrameIndex, packets: Packets, codec: str, breaks: Mapping[int, float]) -> None:
    """Find the packets that depend on lost ones, and the keyframes, and add them to an index.

    Args:
        index: Index of these packets.
        packets: Those that are there.
        codec: Its name.
        breaks: Places of packets before which others are missing, each with the time of the first frame after these.
    """
    continuity, until = Continuity(index.lost, codec), -inf
    for place, (time, decoding_time, kind) in enumerate(packets):
        if place in breaks:
            continuity.interrupt()
            until = max(until, breaks[place])
        if kind & Kind.LOST:
            continuity.lose(time, kind)
        elif kind & Kind.KEY and time < until:
            continue  # it can be decoded, but the missing packets may come after it
        elif continuity.keeps(time, kind) and kind & Kind.KEY and not kind & Kind.HIDDEN:
            index.keyframes.append((time, time if decoding_time == NO_TIME else decoding_time))
    index.keyframes.sort()


def index_places(packets: Packets, codec: str, skipped: int) -> FrameIndex:
    """Find what is lost of packets whose places stand for times. In an AVI, places may be empty.

    Args:
        packets: In the order in which they are stored.
        codec: Its name.
        skipped: Packets before the first keyframe that do not count.
    """
    places = packets.times
    index = FrameIndex(places, is_cut=packets.is_cut)
    index.lost = set(range(places[0], places[-1])).difference(places)
    holes = [number for number, (before, after) in enumerate(pairwise(places), start=1) if after > before + 1]
    if not skipped and packets.first_keyframe():
        holes.append(0)
    find_lost(index, packets, codec, dict.fromkeys(holes, -inf))
    return index


def number_by_order(
    shown: Sequence[int], packets: int, lost: Collection[int], *, skipped: int, delay: int, is_cut: bool
) -> tuple[dict[int, int], int]:
    """Number frames by the order in which a decoder shows them, for files that do not state their times.

    After lost packets a decoder starts afresh at a keyframe. The place of its packet gives its number.

    Args:
        shown: The place of each frame's packet, in the order in which frames are shown.
        packets: How many packets there are.
        lost: Places of packets that cannot be decoded.
        skipped: Packets before the first keyframe that do not count.
        delay: How many frames may be stored before one that is shown before them.
        is_cut: Whether packets at the end are missing.

    Returns:
        The number of each frame by the place of its packet, and how many frames there are, those included that are
        lost. The last frames before a loss are left out, since lost ones may belong between them.
    """
    if not lost and not is_cut:
        return {place: number for number, place in enumerate(shown)}, len(shown)
    numbers: dict[int, int] = {}
    losses = sorted({*lost, packets} if is_cut else lost)
    for losses_before, group in groupby(shown, partial(bisect_left, losses)):
        run = list(group)
        number, known = min(run), {*run, *losses, packets}
        # A fresh decoder leaves out frames that are stored after the keyframe and shown before it.
        while losses_before and number + 1 not in known:
            number += 1
        if losses_before < len(losses):
            run = run[: max(0, len(run) - delay)]
        numbers |= {place: number - skipped + offset for offset, place in enumerate(run)}
    return numbers, max(numbers.values(), default=-1) + 1 if is_cut else packets - skipped
