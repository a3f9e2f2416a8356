"""Values of an image -> 8 bits: bands, a range of values, missing values."""

from __future__ import annotations

from typing import Any

import numpy as np

from masklet.errors import ImageError
from masklet.images.options import DEFAULT, ImageOptions

CHUNK = 2**20
"""Values that are converted to float64 in one chunk."""
MANY_BANDS = 16


def to_rgb8(pixels: np.ndarray, options: ImageOptions = DEFAULT) -> np.ndarray:
    """Pixels with their bands ``selected`` -> a new (height, width, 3) uint8, with options that are ``resolved``."""
    assert options.value_range != "auto"
    pixels = pixels if pixels.ndim == 3 else pixels[..., None]
    if pixels.shape[2] == 4:
        pixels = over_white(to_8_bits(pixels) if options.is_default else rgba_to_8_bits(pixels, options))
    else:
        pixels = to_8_bits(pixels, options)
    height, width, _ = pixels.shape
    return np.broadcast_to(pixels, (height, width, 3)).copy(order="C")


def selected(pixels: np.ndarray, bands: Any) -> np.ndarray:
    """(height, width) or (height, width, channels), 1, 3 or 4 of them; with ``bands`` only these.

    Raises:
        ImageError: It has other dimensions, no such bands, or other channels and no ``bands``.
    """
    check_channels(pixels, bands)
    return chosen(pixels, bands)


def check_channels(pixels: np.ndarray, bands: Any) -> None:
    """Raises the errors of ``selected``."""
    check_shape(pixels, bands)
    if bands is not None:
        check_bands(bands, 1 if pixels.ndim == 2 else pixels.shape[2], f"its shape is {pixels.shape}")


def chosen(pixels: np.ndarray, bands: Any) -> np.ndarray:
    """As ``selected``, of an image or a part of one, without checks."""
    if bands is None:
        return pixels
    return (pixels if pixels.ndim == 3 else pixels[..., None])[..., band_list(bands)]


def band_list(bands: Any) -> list[int]:
    """One band or three, as a list."""
    return [bands] if isinstance(bands, int) else list(bands)


def check_shape(pixels: np.ndarray, bands: Any) -> None:
    """Raises an ImageError unless this is (height, width[, channels])."""
    shape = pixels.shape
    if pixels.ndim not in (2, 3) or (bands is None and pixels.ndim == 3 and shape[2] not in (1, 3, 4)):
        hint = "if channels are first, use transpose(1, 2, 0)"
        if pixels.ndim == 4:
            hint = "one image at a time"
        elif pixels.ndim == 3 and shape[2] < shape[0]:
            hint = f"select from {shape[2]} channels with bands=(red, green, blue) or bands=grey, counted from 0"
        raise ImageError(
            f"an array of shape {shape} is not an image: "
            f"expected (height, width), (height, width, 3) or (height, width, 4); {hint}"
        )
    if pixels.ndim == 3 and shape[2] > MANY_BANDS and shape[0] < min(shape[1:]):
        raise ImageError(
            f"an array of shape {shape} seems to have its channels first: expected (height, width, channels). Use "
            "transpose(1, 2, 0). If it is an image of few rows and many channels, select those to use: pixels[..., "
            "[2, 1, 0]]"
        )
    if pixels.size == 0:
        raise ImageError(f"the image has no pixels: its shape is {shape}")


def check_bands(bands: Any, count: int, what: str) -> None:
    """Raises an ImageError unless an image of ``count`` channels has these."""
    if (last := max(band_list(bands))) >= count:
        known = f"bands 0 to {count - 1}" if count > 1 else "band 0 only"
        raise ImageError(f"the image has no band {last}: {what}, so it has {known}. Bands are counted from 0")


def rgba_to_8_bits(pixels: np.ndarray, options: ImageOptions) -> np.ndarray:
    """Converts colours with the options, and alpha with the range of its type."""
    try:
        alpha = to_8_bits(pixels[..., 3:])
    except ImageError as error:
        raise ImageError(
            f"the fourth channel cannot be read as transparency: {error} If it is not transparency, select the others: "
            "bands=(0, 1, 2)"
        ) from error
    return np.concatenate([to_8_bits(pixels[..., :3], options), alpha], axis=2)


def to_8_bits(pixels: np.ndarray, options: ImageOptions = DEFAULT) -> np.ndarray:
    """The brightness in uint8, rounded. Without a range, white is the maximum of an integer type, 1.0, or True."""
    if isinstance(options.value_range, tuple):
        check_type(pixels)
        return stretched(pixels, *options.value_range, options)
    if options.nodata is not None:
        check_type(pixels)
        pixels = np.where(missing(pixels, options), pixels.dtype.type(0), pixels)
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype == np.bool_:
        return pixels.astype(np.uint8) * np.uint8(255)
    if is_uint16(pixels.dtype):
        return ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)  # to the nearest: 65535 = 255 * 257
    check_type(pixels)
    low, high = pixels.min(), pixels.max()  # NaN if there is any
    is_in_bytes = low >= 0 and high <= 255
    if pixels.dtype.kind != "f":
        hint = ". If they are 8-bit levels, convert it with .astype('uint8')" if is_in_bytes else ""
        raise ImageError(
            f"an image of {pixels.dtype} has no natural black and white, and its values range from {low} to {high}: "
            f"{range_hint(low, high)}{hint}"
        )
    if np.isnan(low):
        valid = pixels[np.isfinite(pixels)]
        hint = range_hint(valid.min(), valid.max()) if valid.size else "no other value is there"
        raise ImageError(f"the image contains NaN: every value must be in [0, 1]. If NaN means missing, {hint}")
    if low < 0 or high > 1:
        hint = "divide by 255, or " if is_in_bytes else ""
        raise ImageError(
            f"the values of a float image must be in [0, 1], but they range from {low:g} to {high:g}: "
            f"{hint}{range_hint(low, high)}"
        )
    return np.rint(pixels.astype(np.float32) * 255).astype(np.uint8)


def is_uint16(dtype: np.dtype) -> bool:
    """Whether a type is uint16, in either byte order."""
    return dtype.kind == "u" and dtype.itemsize == 2


def range_hint(low: Any, high: Any) -> str:
    """How to state what is black and white, for an error about values from ``low`` to ``high``."""
    if not -np.inf < low < high < np.inf:
        low, high = 0, 1
    return (
        f"say which values are black and white with value_range=({low:g}, {high:g}) or value_range='auto', and, if "
        "there is one, which means missing with nodata=…"
    )


def check_type(pixels: np.ndarray) -> None:
    """Raises an ImageError unless the values are real numbers."""
    if pixels.dtype.kind not in "buif":
        raise ImageError(f"an image of {pixels.dtype} is not supported: expected integers, floats or bool")


def missing(pixels: np.ndarray, options: ImageOptions) -> np.ndarray | bool:
    """Where values are missing, of the shape of ``pixels``.

    Raises:
        ImageError: ``nodata`` cannot be a value of this type, so it would never be found.
    """
    nodata = options.nodata
    if pixels.dtype.kind == "f":
        is_missing = np.isnan(pixels) if options.skips_nan else False
        if nodata is None or nodata != nodata:
            return is_missing
        with np.errstate(over="ignore"):
            return is_missing | (pixels == np.array(nodata).astype(pixels.dtype))
    if nodata is None:
        return False
    if not can_hold(pixels.dtype, nodata):
        raise ImageError(f"nodata is {nodata:g}, but the image is {pixels.dtype}, which cannot hold that value")
    return pixels == nodata


def can_hold(dtype: np.dtype, value: float) -> bool:
    """Whether this can be a value of an integer type or of bool."""
    low, high = (0, 1) if dtype.kind == "b" else (int(np.iinfo(dtype).min), int(np.iinfo(dtype).max))
    return low <= value <= high and value == int(value)


def stretched(pixels: np.ndarray, low: float, high: float, options: ImageOptions) -> np.ndarray:
    """``low`` to ``high`` as 0 to 255, rounded; values outside are clipped and missing ones are 0."""

    @np.errstate(invalid="ignore")  # of signalling NaN
    def levels(values: np.ndarray) -> np.ndarray:
        is_missing = missing(values, options)
        exact = values.astype(np.float64)
        np.clip(exact, low, high, out=exact)
        exact -= low
        exact /= high - low
        exact *= 255
        return np.where(is_missing, 0, np.rint(exact, out=exact)).astype(np.uint8)

    if pixels.dtype.itemsize <= 2 and pixels.dtype.kind != "b" and pixels.size > 2**16:
        bits = np.dtype(f"u{pixels.dtype.itemsize}")
        native = pixels.astype(pixels.dtype.newbyteorder("="), copy=False)
        every = np.arange(2 ** (8 * bits.itemsize), dtype=bits).view(native.dtype)
        return levels(every)[native.view(bits)]  # a table of all values is smaller than the image
    rows = max(1, CHUNK // pixels[0].size)
    return np.concatenate([levels(pixels[start : start + rows]) for start in range(0, len(pixels), rows)])


def over_white(rgba: np.ndarray) -> np.ndarray:
    """(height, width, 4) -> (height, width, 3): blended with a white background."""
    colour, alpha = rgba[..., :3].astype(np.uint16), rgba[..., 3:].astype(np.uint16)
    return ((colour * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
