"""Logits of a mask as bytes, without loss, since a rewind must find exactly what was there. Runs without torch."""

from __future__ import annotations

import math
import zlib

import numpy as np

from masklet.config import SizeHW
from masklet.errors import SpoolError

FLOAT_BYTES = 4


def pack_logits(logits: np.ndarray) -> bytes:
    """Compress float32 of any shape."""
    # Bytes of equal significance side by side: signs and exponents of neighbours are alike, fractions are not.
    planes = np.ascontiguousarray(np.ascontiguousarray(logits, np.float32).reshape(-1, 1).view(np.uint8).T)
    # There are only runs of equal bytes to find; the usual search for longer matches takes twice the time.
    compressor = zlib.compressobj(level=1, strategy=zlib.Z_RLE)
    return compressor.compress(planes.data) + compressor.flush()


def unpack_logits(data: bytes, size_hw: SizeHW) -> np.ndarray:
    """(height, width) float32.

    Raises:
        SpoolError: The bytes are damaged.
    """
    length = FLOAT_BYTES * math.prod(size_hw)
    try:
        unpacked = zlib.decompressobj().decompress(data, length + 1)
    except zlib.error:
        unpacked = b""
    if len(unpacked) != length:
        raise SpoolError("a stored mask is damaged: track this frame again, or resume an older saved session")
    planes = np.frombuffer(unpacked, np.uint8).reshape(FLOAT_BYTES, -1)
    return np.ascontiguousarray(planes.T).view(np.float32).reshape(size_hw)
