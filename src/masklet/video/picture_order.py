"""The counters in H.264 pictures, which show whether pictures are missing between them.

Source: ITU-T H.264, 7.3.2.1.1 (sequence parameter set), 7.3.3 (slice header), annex B; ISO/IEC 14496-15 (avcC).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

HEAD_BYTES = 512
"""How much of a unit is looked at: its header is shorter."""
SLICE, IDR_SLICE, PARAMETERS = 1, 5, 7
PROFILES_WITH_FORMAT = frozenset({44, 83, 86, 100, 110, 118, 122, 128, 134, 135, 138, 139, 244})
"""Profiles whose parameters state a chroma format."""


class Picture(NamedTuple):
    """What the header of a picture states."""

    is_idr: bool
    """Whether counting begins again here."""
    is_reference: bool
    number: int
    """``frame_num``: counts reference pictures in the order in which they are stored."""
    order: int | None
    """``pic_order_cnt_lsb``: counts all pictures in the order in which they are shown. None if it is not stored."""


class Counters(NamedTuple):
    """How the pictures of a stream are counted."""

    number_bits: int
    order_bits: int
    """0 if the order is not stored."""
    may_skip_numbers: bool
    has_colour_planes: bool
    is_progressive: bool
    length_bytes: int
    """Size of the length before each unit; 0 if units begin with start codes."""


class Bits:
    """Reads the numbers in a unit. Raises a ValueError at its end."""

    def __init__(self, unit: bytes) -> None:
        content = unit[1:HEAD_BYTES].replace(b"\0\0\3", b"\0\0")
        self._left, self._content = 8 * len(content), int.from_bytes(content, "big")

    def take(self, bits: int) -> int:
        """A number of so many bits."""
        if (left := self._left - bits) < 0:
            raise ValueError(f"the unit ends before the next {bits} bits")
        self._left = left
        return self._content >> left & (1 << bits) - 1

    def variable(self) -> int:
        """A number of variable length, ``ue(v)``."""
        zeros = 0
        while not self.take(1):
            zeros += 1
        return (1 << zeros) - 1 + self.take(zeros)

    def signed(self) -> int:
        """A signed number of variable length, ``se(v)``."""
        value = self.variable()
        return (value + 1) // 2 if value % 2 else -(value // 2)


def units_of(data: bytes, length_bytes: int) -> Iterator[bytes]:
    """The beginning of each unit, with its type."""
    if not length_bytes:
        begin = -1
        while (begin := data.find(b"\0\0\1", begin + 1)) >= 0:
            yield data[begin + 3 : begin + 3 + HEAD_BYTES]
        return
    begin = length_bytes
    while begin < len(data):
        end = begin + int.from_bytes(data[begin - length_bytes : begin], "big")
        yield data[begin : min(end, begin + HEAD_BYTES)]
        begin = end + length_bytes


def counters_of(header: bytes) -> Counters:
    """How pictures are counted, from the header of a stream. Raises a ValueError if it does not state it."""
    if header[:1] == b"\1" and len(header) > 8:  # avcC
        parameters, length_bytes = [header[8 : 8 + int.from_bytes(header[6:8], "big")]], (header[4] & 3) + 1
        parameters *= header[5] & 31
    else:
        parameters, length_bytes = list(units_of(header, 0)), 0
        parameters = [unit for unit in parameters if unit[:1] and unit[0] & 31 == PARAMETERS]
    if len(parameters) != 1:
        raise ValueError(f"the stream has {len(parameters)} sets of parameters: expected one")
    bits = Bits(parameters[0])
    profile, _ = bits.take(8), bits.take(16)
    bits.variable()  # the number of this set
    has_colour_planes = profile in PROFILES_WITH_FORMAT and skip_format(bits)
    number_bits = bits.variable() + 4
    order_type = bits.variable()
    order_bits = bits.variable() + 4 if order_type == 0 else 0
    if order_type == 1:
        bits.take(1), bits.signed(), bits.signed()
        for _ in range(bits.variable()):
            bits.signed()
    bits.variable()  # how many reference pictures are kept
    may_skip_numbers = bool(bits.take(1))
    bits.variable(), bits.variable()  # width and height
    return Counters(number_bits, order_bits, may_skip_numbers, has_colour_planes, bool(bits.take(1)), length_bytes)


def skip_format(bits: Bits) -> bool:
    """Read the chroma format and the scaling matrices. Returns whether colour planes are coded one by one."""
    chroma_format = bits.variable()
    has_colour_planes = chroma_format == 3 and bool(bits.take(1))
    bits.variable(), bits.variable(), bits.take(1)  # bit depths, lossless
    if bits.take(1):
        for matrix in range(12 if chroma_format == 3 else 8):
            if bits.take(1):
                last = following = 8
                for _ in range(16 if matrix < 6 else 64):
                    following = (last + bits.signed()) % 256 if following else 0
                    last = following or last
    return has_colour_planes


def picture_of(packet: bytes, counters: Counters) -> Picture:
    """The picture in a packet. Raises a ValueError if it is not known."""
    for unit in units_of(packet, counters.length_bytes):
        if not unit or (kind := unit[0] & 31) not in (SLICE, IDR_SLICE):
            continue
        bits = Bits(unit)
        bits.variable(), bits.variable(), bits.variable()  # the first macroblock, the type, the parameters
        bits.take(2 * counters.has_colour_planes)
        number = bits.take(counters.number_bits)
        if not counters.is_progressive and bits.take(1):
            bits.take(1)  # a field, top or bottom
        if kind == IDR_SLICE:
            bits.variable()
        order = bits.take(counters.order_bits) if counters.order_bits else None
        return Picture(kind == IDR_SLICE, bool(unit[0] & 0x60), number, order)
    raise ValueError("the packet has no picture")
