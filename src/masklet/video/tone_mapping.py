"""Converts high dynamic range (PQ and HLG, ITU-R BT.2100) to pixels of standard range.

Light beyond reference white is compressed, not clipped: the curve is that of ITU-R BT.2390, section 5.4, from 1000 to
203 candela per square metre, applied to red, green and blue.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from av.video.reformatter import ColorPrimaries, ColorTrc

PEAK, WHITE = 1000.0, 203.0
"""Brightest light of the video and of the result, in candela per square metre; ITU-R BT.2408 puts white at 203."""
TO_BT709: dict[int, tuple[tuple[float, ...], ...]] = {
    ColorPrimaries.BT2020: ((1.6605, -0.5876, -0.0728), (-0.1246, 1.1329, -0.0083), (-0.0182, -0.1006, 1.1187)),
    ColorPrimaries.SMPTE432: ((1.2249, -0.2247, 0.0), (-0.0421, 1.0419, 0.0), (-0.0196, -0.0786, 1.0979)),
}
"""Linear red, green and blue -> those of BT.709. From ITU-R BT.2087, and from the chromaticities of Display P3."""
STEPS = 4096
"""Entries of the tables: 12 bits are the most that HDR video has."""
ROWS_AT_ONCE = 256
"""Floating-point values of whole 8K frames would take a gigabyte."""


def tone_mapped(pixels: np.ndarray, transfer: ColorTrc, primaries: int) -> np.ndarray:
    """Convert HDR pixels to standard range.

    Args:
        pixels: (height, width, 3) uint16 of all 16 bits.
        transfer: ``SMPTE2084`` (PQ) or ``ARIB_STD_B67`` (HLG).
        primaries: FFmpeg's number; BT.2020 if it is one that HDR video does not use.

    Returns:
        (height, width, 3) uint8, in BT.709 and with the curve of sRGB.
    """
    light = light_of(transfer)
    matrix = np.array(TO_BT709.get(primaries, TO_BT709[ColorPrimaries.BT2020]), np.float32).T
    if primaries == ColorPrimaries.BT709:
        matrix = np.eye(3, dtype=np.float32)
    mapped = np.empty(pixels.shape, np.uint8)
    for row in range(0, len(pixels), ROWS_AT_ONCE):
        linear = light[pixels[row : row + ROWS_AT_ONCE] >> 4] @ matrix
        mapped[row : row + ROWS_AT_ONCE] = srgb_codes()[(linear.clip(0, 1) * (STEPS - 1) + 0.5).astype(np.uint16)]
    return mapped


@cache
def light_of(transfer: ColorTrc) -> np.ndarray:
    """(STEPS,) float32: tone-mapped light, 1 at white, of each code."""
    codes = np.linspace(0, 1, STEPS)
    nits = from_pq(codes) if transfer == ColorTrc.SMPTE2084 else from_hlg(codes)
    return (from_pq(compressed(to_pq(nits))) / WHITE).astype(np.float32)


@cache
def srgb_codes() -> np.ndarray:
    """(STEPS,) uint8: the sRGB code of light from 0 to 1."""
    light = np.linspace(0, 1, STEPS)
    return np.rint(255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)).astype(
        np.uint8
    )


def from_pq(codes: np.ndarray) -> np.ndarray:
    """Candela per square metre of PQ codes from 0 to 1 (BT.2100, table 4)."""
    root = codes ** (32 / 2523)
    return 10000 * (np.maximum(root - 107 / 128, 0) / (2413 / 128 - 2392 / 128 * root)) ** (8192 / 1305)


def to_pq(nits: np.ndarray | float) -> np.ndarray:
    """The inverse of ``from_pq``."""
    root = (np.asarray(nits) / 10000) ** (1305 / 8192)
    return ((107 / 128 + 2413 / 128 * root) / (1 + 2392 / 128 * root)) ** (2523 / 32)


def from_hlg(codes: np.ndarray) -> np.ndarray:
    """Candela per square metre of HLG codes from 0 to 1, on a screen of ``PEAK`` (BT.2100, table 5)."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    scene = np.where(codes <= 0.5, codes**2 / 3, (np.exp((codes - c) / a) + b) / 12)
    return PEAK * scene**1.2


def compressed(codes: np.ndarray) -> np.ndarray:
    """PQ codes up to ``PEAK`` -> up to ``WHITE``: a line, then a Hermite spline (BT.2390, section 5.4.1)."""
    top = to_pq(PEAK)
    x, most = np.minimum(codes / top, 1), to_pq(WHITE) / top
    knee = 1.5 * most - 0.5
    t = (x - knee) / (1 - knee)
    spline = (2 * t**3 - 3 * t**2 + 1) * knee + (t**3 - 2 * t**2 + t) * (1 - knee) + (3 * t**2 - 2 * t**3) * most
    return np.where(x < knee, x, spline) * top
