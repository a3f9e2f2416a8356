"""Differences between PyAV 17, 18 and 19."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import av
from av.container import InputContainer

TAKES_METADATA_ERRORS = int(av.__version__.split(".")[0]) < 19
"""PyAV 19 reads metadata in any encoding, and has no option for it."""
DECODING_ERRORS = (av.FFmpegError, ValueError)
"""What decoding raises. In PyAV 19, a decoder that could not be opened raises a ValueError from the second packet on.

The name of such a codec context must not be read: PyAV 19 crashes the process.
"""


def open_input(url: str, **options: Any) -> InputContainer:
    """``av.open`` for reading. Metadata in an unknown encoding does not make a video unreadable."""
    if TAKES_METADATA_ERRORS:
        options["metadata_errors"] = "replace"
    return av.open(url, "r", **options)


def as_fraction(rational: Any) -> Fraction | None:
    """A rate or the step of a clock, for which PyAV 19 has its own type; None if the file does not state it."""
    return Fraction(rational) if rational else None
