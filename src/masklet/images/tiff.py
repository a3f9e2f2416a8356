"""TIFF by tifffile, whole or in parts (``pip install masklet[tiff]``): any type of values, any number of bands."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from masklet.config import SizeHW
from masklet.errors import ImageError
from masklet.images.options import ImageOptions
from masklet.images.ranges import warn
from masklet.images.values import band_list, check_bands

TIFF_BEGINNINGS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
PREMULTIPLIED, STRAIGHT = 1, 2
"""TIFF's numbers for the two kinds of alpha among the extra samples."""
BITS, PHOTOMETRIC, ORIENTATION, SAMPLES, SAMPLE_FORMAT, GDAL_NODATA = 258, 262, 274, 277, 339, 42113
"""Tags of a TIFF."""
WHITE_IS_ZERO, BLACK_IS_ZERO = 0, 1
"""The photometric interpretations of greyscale images."""


@dataclass(frozen=True, eq=False)
class TiffPixels:
    """The image of a TIFF, and which of its channels are used. Made by ``tiff_pixels``."""

    source: Any
    """tifffile's series or page."""
    page: Any
    """The page with the tags."""
    size_hw: SizeHW
    is_channels_first: bool
    channels: tuple[int, ...]
    """The channels that are read, in this order."""
    alpha: int | None
    """The kind of alpha in the last of these channels; None if there is no alpha."""
    nodata: float | None
    """A value that becomes NaN."""
    has_natural_range: bool
    """Whether the type of the values says what is black and white."""
    is_white_zero: bool
    """Whether 0 is white, and the maximum of an unsigned type is black."""

    def read(self, pixels: Any, rows: slice, columns: slice) -> np.ndarray:
        """A part of ``pixels``, which may be an array or of zarr, as (rows, columns[, channels])."""
        if pixels.ndim == 2:
            part = np.asarray(pixels[rows, columns])
        elif self.is_channels_first:
            part = np.stack([np.asarray(pixels[channel, rows, columns]) for channel in self.channels], axis=-1)
        else:
            first, last = min(self.channels), max(self.channels)
            part = np.asarray(pixels[rows, columns, first : last + 1])
            part = part[..., [channel - first for channel in self.channels]]
        if self.alpha is not None:
            part = rgba(part, is_premultiplied=self.alpha == PREMULTIPLIED)
        if self.is_white_zero:
            part = np.iinfo(part.dtype).max - part
        part = fitting_16_bits(part) if self.has_natural_range else part
        return part if self.nodata is None else with_nan(part, self.nodata)


def is_tiff(beginning: bytes) -> bool:
    """Whether a file that begins so is a TIFF, whatever its name."""
    return beginning[:4] in TIFF_BEGINNINGS


def needs_tifffile(image: Image.Image, options: ImageOptions) -> bool:
    """Whether Pillow would change a TIFF, or cannot select its bands."""
    tags: Any = getattr(image, "tag_v2", {})
    # Pillow does not turn what it maps into memory.
    if not options.is_default or not has_8_bits(image) or tags.get(ORIENTATION, 1) != 1:
        return True
    # Its bands, which may be pages, may be red, green and blue or not.
    return (tags.get(PHOTOMETRIC) == BLACK_IS_ZERO and tags.get(SAMPLES, 1) > 1) or has_pages(image)


def has_pages(image: Image.Image) -> bool:
    """Whether a TIFF has more than one page."""
    try:
        return getattr(image, "n_frames", 1) > 1
    except (OSError, SyntaxError, ValueError, LookupError, EOFError, TypeError, struct.error):
        return False  # the first may be whole if others are damaged


def keeps_values(image: Image.Image) -> bool:
    """Whether Pillow reads the values of a TIFF as they are."""
    tags: Any = getattr(image, "tag_v2", {})
    is_uint32 = image.mode == "I" and tags.get(SAMPLE_FORMAT, (1,)) == (1,)  # it is taken for signed
    is_wide = image.mode in ("I", "F") or image.mode.startswith("I;16")
    return (is_wide and not is_uint32) or has_8_bits(image)


def has_8_bits(image: Image.Image) -> bool:
    """Whether the values of a TIFF are uint8, or fewer bits."""
    tags: Any = getattr(image, "tag_v2", {})
    return max(as_tuple(tags.get(BITS, 1))) <= 8 and set(as_tuple(tags.get(SAMPLE_FORMAT, 1))) <= {1, 4}


def as_tuple(value: Any) -> tuple[int, ...]:
    """The values of a tag."""
    return tuple(value) if isinstance(value, tuple | list) else (value,)


@contextmanager
def opened_tiff(file: str | os.PathLike[str] | BinaryIO) -> Iterator[Any]:
    """A ``TiffFile``, open.

    Raises:
        ModuleNotFoundError: tifffile is not installed.
        ValueError: tifffile finds the file damaged. Its own error is a ValueError only in versions for Python 3.11 on.
    """
    import tifffile

    try:
        with tifffile.TiffFile(file) as tiff:
            yield tiff
    except tifffile.TiffFileError as error:
        raise ValueError(str(error)) from error


def read_tiff(file: str | os.PathLike[str] | BinaryIO, name: str, options: ImageOptions, *, any_size: bool) -> Any:
    """The first image of a TIFF, upright: (height, width[, channels]); None if Pillow has to convert its colours.

    Raises:
        ModuleNotFoundError: tifffile is not installed.
        ImageError: It does not say which of its bands are red, green and blue, or has no such bands.
    """
    if not isinstance(file, str | os.PathLike):
        file.seek(0)
    with opened_tiff(file) as tiff:
        pixels = tiff_pixels(tiff, name, options)
        if pixels is None:
            return None
        height, width = pixels.size_hw
        if not any_size and Image.MAX_IMAGE_PIXELS is not None and height * width > Image.MAX_IMAGE_PIXELS:
            raise Image.DecompressionBombError(f"{width}×{height} pixels")
        stored = pixels.source.asarray()
        if stored.shape != tuple(pixels.source.shape):
            raise ImageError(f"{name} is damaged: it holds {stored.shape} instead of {tuple(pixels.source.shape)}")
        whole = pixels.read(stored, slice(None), slice(None))
        return oriented(whole, orientation_of(pixels.page))


def tiff_pixels(tiff: Any, name: str, options: ImageOptions) -> TiffPixels | None:
    """The first image of a ``TiffFile``; None if Pillow has to convert it."""
    source = series = tiff.series[0]
    page, axes = series.keyframe, series.axes
    if needs_pillow(page):
        return None
    are_bands = options.bands is not None and len(axes) == 3 and axes.endswith("YX")  # a page for each
    if axes not in ("YX", "YXS", "YXC", "SYX", "CYX") and not are_bands:
        warn(
            f"{name} has the axes {axes} and the shape {tuple(series.shape)}: only its first page is read. Select "
            "another with bands=number, counted from 0, or open all of them with Segmenter.video"
        )
        source, axes = page, page.axes  # as Pillow reads it
    if axes not in ("YX", "YXS", "YXC", "SYX", "CYX") and not are_bands:
        raise ImageError(
            f"{name} has the axes {axes} and the shape {source.shape}: expected one image, rows and columns with "
            "channels before or after. Save the plane to segment as a TIFF of its own"
        )
    return arranged(source, page, axes, name, options)


def arranged(source: Any, page: Any, axes: str, name: str, options: ImageOptions) -> TiffPixels | None:
    """An image of these axes, which ``source`` has the shape and type of; None if Pillow has to convert it."""
    is_channels_first = len(axes) == 3 and axes.endswith("YX")
    height, width = source.shape[1:] if is_channels_first else source.shape[:2]
    if height * width == 0:
        raise ImageError(f"{name} has no pixels: its shape is {tuple(source.shape)}")
    count = int(np.prod(source.shape)) // (height * width)
    alpha = alpha_of(page, count, options)
    if alpha == PREMULTIPLIED and source.dtype.kind != "u":
        return None
    channels = chosen_channels(page, count, f"{name} has the axes {axes} and the shape {tuple(source.shape)}", options)
    if alpha is not None:
        channels = (*channels, len(channels))
    return TiffPixels(
        source,
        page,
        (height, width),
        is_channels_first,
        channels,
        alpha,
        nodata_of(page, options),
        has_natural_range=not options.skips_nan,
        is_white_zero=page.photometric == WHITE_IS_ZERO,
    )


def needs_pillow(page: Any) -> bool:
    """Whether a page of a TIFF has a palette or other colours that tifffile leaves as they are, and Pillow converts."""
    import tifffile

    plain = [tifffile.PHOTOMETRIC.MINISBLACK, tifffile.PHOTOMETRIC.RGB]
    if page.dtype is not None and page.dtype.kind == "u" and page.dtype.itemsize > 1 and page.samplesperpixel == 1:
        plain.append(tifffile.PHOTOMETRIC.MINISWHITE)  # which Pillow does not turn round
    if page.compression == tifffile.COMPRESSION.JPEG:  # its decoder converts to RGB
        plain.append(tifffile.PHOTOMETRIC.YCBCR)
    return page.photometric not in plain


def alpha_of(page: Any, count: int, options: ImageOptions) -> int | None:
    """The kind of alpha that follows the colours, if any. Where bands are chosen there is none."""
    alpha = page.extrasamples[0] if page.extrasamples and count == page.samplesperpixel else None
    return int(alpha) if options.bands is None and alpha in (PREMULTIPLIED, STRAIGHT) else None


def chosen_channels(page: Any, count: int, what: str, options: ImageOptions) -> tuple[int, ...]:
    """The bands that the options name, or the colours. Others, such as infrared in addition to RGB, are left out."""
    if options.bands is not None:
        check_bands(options.bands, count, what)
        return tuple(band_list(options.bands))
    is_by_page = count != page.samplesperpixel
    colours = count if is_by_page or page.photometric == BLACK_IS_ZERO else 3
    if alpha_of(page, count, options) is not None:
        colours = min(colours, count - len(page.extrasamples))
    if colours not in (1, 3):
        raise ImageError(
            f"{what} and does not say which of its {count} bands are red, green and blue: select three of them, as in "
            "bands=(2, 1, 0), or one for a greyscale image, as in bands=0, counted from 0"
        )
    return tuple(range(colours))


def nodata_of(page: Any, options: ImageOptions) -> float | None:
    """The value of missing pixels that GDAL wrote, if there is a ``value_range`` and no ``nodata``."""
    tag = page.tags.get(GDAL_NODATA)
    if tag is None or options.value_range is None or options.nodata is not None:
        return None
    try:
        return float(str(tag.value).strip("\0 "))
    except ValueError:
        return None


def with_nan(pixels: np.ndarray, nodata: float) -> np.ndarray:
    """The values with NaN instead of ``nodata``, as floats that hold all others."""
    if pixels.dtype.kind != "f" and not (pixels == nodata).any():
        return pixels
    floats = pixels.astype(np.result_type(pixels.dtype, np.float32))
    with np.errstate(over="ignore"):  # the tag is a text, so it may have more digits than a float32
        floats[pixels == np.array(nodata).astype(floats.dtype)] = np.nan
    return floats


def fitting_16_bits(pixels: np.ndarray) -> np.ndarray:
    """Signed and 32-bit integers of a file as uint16, if they fit: programs write 16 bits in this way."""
    is_wide = pixels.dtype.kind in "iu" and pixels.dtype.itemsize > 1 and pixels.size > 0
    return pixels.astype(np.uint16) if is_wide and pixels.min() >= 0 and pixels.max() <= 65535 else pixels


def rgba(pixels: np.ndarray, *, is_premultiplied: bool) -> np.ndarray:
    """(rows, columns, 4) with straight alpha, from grey or colours with alpha as the last channel."""
    colour, alpha = pixels[..., :-1], pixels[..., -1:]
    if is_premultiplied:
        white = np.iinfo(pixels.dtype).max
        straight = colour.astype(np.uint64) * np.uint64(white) // np.maximum(alpha, 1)
        colour = straight.clip(max=white).astype(pixels.dtype)
    return np.concatenate([np.broadcast_to(colour, (*pixels.shape[:2], 3)), alpha], axis=2)


def orientation_of(page: Any) -> int:
    """The EXIF orientation of a page: 1 is upright."""
    orientation = page.tags.get(ORIENTATION)
    return 1 if orientation is None else int(orientation.value)


def oriented(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """(height, width[, channels]) turned as a viewer does for an EXIF orientation."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels[::-1] if orientation in (3, 4, 7, 8) else pixels


def pixel_opener(pixels: TiffPixels, path: os.PathLike[str], byteorder: str) -> Callable[[], Any]:
    """A function that opens the pixels of a TIFF as an array that is read in parts.

    Raises:
        ModuleNotFoundError: zarr is not installed.
    """
    zarr = import_module("zarr")
    source, page = pixels.source, pixels.page
    offset = page.dataoffsets[0] if source is page and page.is_contiguous else getattr(source, "dataoffset", None)
    if offset is not None and page.is_memmappable:
        # A new memory map for each window, or the pages that were read would stay resident. For zarr such a file would
        # be one chunk.
        dtype = source.dtype.newbyteorder(byteorder)
        return lambda: np.memmap(path, dtype, "r", offset=offset, shape=tuple(source.shape))
    store = source.aszarr() if source is page else source.aszarr(level=0)
    array: Any = zarr.open_array(store, mode="r")
    if array.chunks == array.shape:  # compressed in one piece: decoded once for all windows
        array = array[:]
    return lambda: array
