"""Windows of large images: TIFF by tifffile and zarr (``pip install masklet[tiff]``), and arrays, also memory maps."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from masklet.config import SizeHW
from masklet.errors import ImageError
from masklet.images.reading import ImageSource, explained, read_image, to_rgb8

TIFF_BEGINNINGS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
PREMULTIPLIED, STRAIGHT = 1, 2
"""TIFF's numbers for the two kinds of alpha among the extra samples."""


@dataclass(frozen=True, eq=False)
class Windows:
    """An image that is read window by window. Made by ``open_windows``."""

    size_hw: SizeHW
    read: Callable[[slice, slice], np.ndarray]
    """Rows and columns -> (rows, columns[, channels])."""

    def __getitem__(self, place: tuple[slice, slice]) -> np.ndarray:
        """(rows, columns, 3) uint8 RGB, as from ``read_image``."""
        return to_rgb8(self.read(*place))

    @classmethod
    def of_array(cls, pixels: np.ndarray) -> Windows:
        """Windows of (height, width[, channels]), also of a memory map."""
        return cls((pixels.shape[0], pixels.shape[1]), lambda *place: pixels[place])


def open_windows(source: ImageSource) -> Windows:
    """Opens an image to read windows of it.

    Args:
        source: The path of a TIFF, read window by window if tifffile and zarr are installed and it is not compressed
            in one piece; an array (height, width[, channels]), also a memory map; or anything else that ``read_image``
            accepts, which is decoded whole, without a limit of size.

    Raises:
        ImageError: It is not an image, or has several planes.
    """
    windows = None
    if isinstance(source, np.ndarray):
        windows = Windows.of_array(source) if source.ndim > 1 else None
    elif isinstance(source, (str, os.PathLike)) and is_tiff(Path(source)):
        windows = open_tiff(Path(source))
    if windows is None:
        return Windows.of_array(read_image(source, any_size=True))  # the caller expects a large image
    windows[:1, :1]  # refuses an unsupported type of pixels now
    return windows


def is_tiff(path: Path) -> bool:
    """Whether a file starts like a TIFF, whatever its name."""
    with explained(str(path)), path.open("rb") as file:
        return file.read(4) in TIFF_BEGINNINGS


def open_tiff(path: Path) -> Windows | None:
    """Opens a TIFF with tifffile; None if Pillow has to rotate it or convert its colours.

    Without tifffile, Pillow decodes the whole image, and one that is too large for that is refused.
    """
    try:
        import tifffile

        import_module("zarr")
    except ModuleNotFoundError as error:
        try:
            return Windows.of_array(read_image(path))
        except ImageError as refusal:
            if not isinstance(refusal.__cause__, Image.DecompressionBombError):
                raise
            raise ImageError(
                f"{path} is too large to be decoded whole, and {error.name}, which reads windows of TIFFs, is not "
                "installed: pip install masklet[tiff]"
            ) from error
    with explained(str(path)), ExitStack() as unless_read:
        tiff = unless_read.enter_context(tifffile.TiffFile(path))
        windows = windows_of(tiff, path)
        if windows is not None:
            unless_read.pop_all()
            weakref.finalize(windows, tiff.close)
        return windows


def windows_of(tiff: Any, path: Path) -> Windows | None:
    """Windows of the first image of a ``TiffFile``; None if Pillow has to convert it."""
    series = tiff.series[0]
    page, axes = series.keyframe, series.axes
    if needs_pillow(page):
        return None
    if axes not in ("YX", "YXS", "YXC", "SYX", "CYX"):
        raise ImageError(
            f"{path} has the axes {axes} of {series.shape}: expected one image, rows and columns with channels "
            "before or after. Save the plane to segment as a TIFF of its own"
        )
    channels_first = axes in ("SYX", "CYX")
    height, width = series.shape[1:] if channels_first else series.shape[:2]
    channels = series.size // (height * width)
    colours = 3 if channels - len(page.extrasamples) >= 3 else 1
    alpha = page.extrasamples[0] if page.extrasamples and channels == page.samplesperpixel else None
    has_alpha = alpha in (PREMULTIPLIED, STRAIGHT)
    if alpha == PREMULTIPLIED and series.dtype.kind != "u":
        return None
    used = slice(0, colours + has_alpha)  # channels beyond colour and alpha, such as infrared, are left out
    open_pixels = pixel_opener(tiff, path)

    def read(rows: slice, columns: slice) -> np.ndarray:
        with explained(str(path)):
            pixels = open_pixels()
            if pixels.ndim == 2:
                return np.asarray(pixels[rows, columns])
            if channels_first:
                window = np.moveaxis(np.asarray(pixels[used, rows, columns]), 0, -1)
            else:
                window = np.asarray(pixels[rows, columns, used])
            return rgba(window, is_premultiplied=alpha == PREMULTIPLIED) if has_alpha else window

    return Windows((height, width), read)


def needs_pillow(page: Any) -> bool:
    """Whether a page of a TIFF is rotated, or has a palette, white as 0 or other colours that tifffile leaves as is."""
    import tifffile

    plain = [tifffile.PHOTOMETRIC.MINISBLACK, tifffile.PHOTOMETRIC.RGB]
    if page.compression == tifffile.COMPRESSION.JPEG:  # its decoder converts to RGB
        plain.append(tifffile.PHOTOMETRIC.YCBCR)
    orientation = page.tags.get("Orientation")
    return page.photometric not in plain or (orientation is not None and orientation.value != 1)


def rgba(pixels: np.ndarray, *, is_premultiplied: bool) -> np.ndarray:
    """(rows, columns, 4) with straight alpha, from grey or colours with alpha as the last channel."""
    colour, alpha = pixels[..., :-1], pixels[..., -1:]
    if is_premultiplied:
        white = np.iinfo(pixels.dtype).max
        straight = colour.astype(np.uint64) * np.uint64(white) // np.maximum(alpha, 1)
        colour = straight.clip(max=white).astype(pixels.dtype)
    return np.concatenate([np.broadcast_to(colour, (*pixels.shape[:2], 3)), alpha], axis=2)


def pixel_opener(tiff: Any, path: Path) -> Callable[[], Any]:
    """A function that opens the pixels of a ``TiffFile``'s first image as an array that is read in parts."""
    import zarr

    series = tiff.series[0]
    if series.dataoffset is not None and series.keyframe.is_memmappable:
        # A new memory map for each window, or the pages that were read would stay resident. For zarr such a file would
        # be one chunk.
        dtype = series.dtype.newbyteorder(tiff.byteorder)
        return lambda: np.memmap(path, dtype, "r", offset=series.dataoffset, shape=series.shape)
    pixels: Any = zarr.open_array(series.aszarr(level=0), mode="r")
    if pixels.chunks == pixels.shape:  # compressed in one piece: decoded once for all windows
        pixels = pixels[:]
    return lambda: pixels
