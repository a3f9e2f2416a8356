"""Finds the range of an image's values in a sample, or warns that they use little of the given range."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import numpy as np

from masklet.config import SizeHW
from masklet.errors import ImageError, ImageWarning
from masklet.images.options import ImageOptions
from masklet.images.values import check_type, is_uint16, missing

AUTO_PERCENTILES = (0.5, 99.5)
"""The values that ``value_range="auto"`` makes black and white, as nnU-Net and MedSAM prepare medical images."""
LEAST_SHARE = 1 / 16
"""A warning is given if less of the range is used than this, which leaves 16 of 256 levels."""
LEAST_SHARE_UINT16 = 16384 / 65535
"""The same for the range of uint16. Cameras and scanners write 10, 12 and 14 bits in 16, and 14 bits already cost half
of the IoU."""
FAR = 10
"""A value is taken for a missing one if its distance from the others is this many times their range."""
SAMPLE_BLOCKS, SAMPLE_SIDE = 8, 64
"""The range of a larger image is estimated from this many blocks along each side, with this many pixels along each side
of a block."""


def resolved(options: ImageOptions, samples: Iterable[np.ndarray]) -> ImageOptions:
    """The options with "auto" replaced by a range, so that frames or tiles share it.

    Args:
        options: As the user gave them.
        samples: Values of the image or of some frames, (height, width[, channels]) each, see ``sample_of``, with their
            bands ``selected``.

    Warns:
        ImageWarning: Hardly any of the range is used, so the image would be nearly black, white or grey.
    """
    values, dtype = sampled_values(samples, options)
    if not values.size:
        if options.value_range == "auto":
            warn("all values of the image are missing, so value_range='auto' finds no range: it is read as black")
            return replace(options, value_range=(0.0, 1.0))
        return options
    low, high = spread(values)
    if options.value_range != "auto":
        warn_if_hardly_used(options, dtype, low, high)
        return options
    if low == high:
        warn(f"all values of the image are {low:g}, so value_range='auto' finds no range: it is read as black")
        high = low + max(1.0, abs(low))
    if not high - low < np.inf:
        raise ImageError(
            f"the values of the image reach from {low:g} to {high:g}, too far apart for a range: give "
            "value_range=(low, high), or the value of missing pixels, nodata=…"
        )
    warn_if_one_is_far(values, low)
    warn_if_one_is_far(values, high)
    return replace(options, value_range=(low, high))


def sampled_values(samples: Iterable[np.ndarray], options: ImageOptions) -> tuple[np.ndarray, np.dtype]:
    """The finite values of the colours that are not missing, as float64, and their type."""
    values, dtype = [], np.dtype(np.uint8)
    for sample in samples:
        colours = sample[..., :3] if sample.ndim == 3 else sample  # a fourth is alpha
        check_type(colours)
        if sample.shape[2:] == (4,):
            warn_if_transparent(sample[..., 3])
        is_used = ~np.asarray(missing(colours, options))
        numbers = colours[np.broadcast_to(is_used, colours.shape)].astype(np.float64)
        values.append(numbers[np.isfinite(numbers)])
        dtype = sample.dtype
    return np.concatenate([np.empty(0), *values]), dtype


def spread(values: np.ndarray) -> tuple[float, float]:
    """The two percentiles; where they are equal, as in an image that is mostly background, the extremes."""
    low, high = np.percentile(values, AUTO_PERCENTILES, method="nearest").tolist()
    return (low, high) if low < high else (float(values.min()), float(values.max()))


def warn_if_hardly_used(options: ImageOptions, dtype: np.dtype, low: float, high: float) -> None:
    """Warns if values from ``low`` to ``high`` use little of the range."""
    least = LEAST_SHARE
    if isinstance(options.value_range, tuple):
        black, white = options.value_range
    elif dtype.kind == "f":
        black, white = 0.0, 1.0
    else:
        black, white, least = 0.0, 65535.0, LEAST_SHARE_UINT16
    if options.value_range is None and (low < black or high > white):
        return  # an error follows
    used = (min(max(high, black), white) - min(max(low, black), white)) / (white - black)
    if low < high and used < least:
        kind = "value_range" if options.value_range else f"the range of {dtype}"
        warn(
            f"nearly all values of the image lie between {low:g} and {high:g}, which is {used:.1%} of {kind}, "
            f"{black:g} to {white:g}, so it has little contrast. Give the values that become black and white: "
            f"value_range=({low:g}, {high:g}), or value_range='auto'"
        )


def warn_if_one_is_far(values: np.ndarray, extreme: float) -> None:
    """Warns if the end of an automatic range is one value far from all others, as values of missing pixels are."""
    others = values[values != extreme]
    if not others.size:
        return
    low, high = spread(others)
    distance = max(low - extreme, extreme - high)
    if 0 < high - low < distance / FAR:
        warn(
            f"{1 - others.size / values.size:.1%} of the values of the image are {extreme:g}, far from the others: "
            f"most lie between {low:g} and {high:g} and have little contrast. If {extreme:g} means missing, give "
            f"nodata={extreme:g}"
        )


def needs_sample(dtype: np.dtype, options: ImageOptions) -> bool:
    """Whether ``resolved`` looks at values of this type. An 8-bit image may simply be dark."""
    return options.value_range is not None or (dtype != np.uint8 and dtype != np.bool_)


def warn_if_transparent(alpha: np.ndarray) -> None:
    """Warns if nothing is opaque: a fourth band that is not 8 bits is often infrared."""
    if alpha.dtype.kind != "f" and not is_uint16(alpha.dtype):
        return
    white = 1.0 if alpha.dtype.kind == "f" else 65535.0
    if 0 <= alpha.max() < LEAST_SHARE_UINT16 * white:
        warn(
            f"the fourth channel is read as transparency, but its values are at most {alpha.max():g} of {white:g}, so "
            "the image is nearly white. If it is not transparency, select the others: bands=(0, 1, 2)"
        )


def sample_of(read: Callable[[slice, slice], np.ndarray], size_hw: SizeHW) -> np.ndarray:
    """Values from all over an image: blocks in rows and columns, as one (rows, columns[, channels]).

    Args:
        read: Gives the values in a slice of rows and one of columns.
        size_hw: Size of the image.
    """
    rows, columns = (list(blocks(side)) for side in size_hw)
    return np.concatenate([np.concatenate([read(row, column) for column in columns], axis=1) for row in rows])


def blocks(side: int) -> Iterator[slice]:
    """Where the blocks of a sample are along a side. If the side is short, one block covers it."""
    if side <= SAMPLE_BLOCKS * SAMPLE_SIDE:
        yield slice(0, side)
        return
    for start in np.linspace(0, side - SAMPLE_SIDE, SAMPLE_BLOCKS).astype(int).tolist():
        yield slice(start, start + SAMPLE_SIDE)


def warn(message: str) -> None:
    """Gives an ImageWarning for the line outside masklet that led here."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "masklet":
        frame, level = frame.f_back, level + 1
    warnings.warn(message, ImageWarning, stacklevel=level)
