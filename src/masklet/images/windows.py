"""Large images, read in parts: TIFF by tifffile and zarr (``pip install masklet[tiff]``), arrays as they lie."""

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
"""What TIFF calls the two kinds of alpha among its extra samples."""


@dataclass(frozen=True, eq=False)
class Windows:
    """An image of which parts are read, and nothing else. Made by ``open_windows``."""

    size_hw: SizeHW
    part: Callable[[slice, slice], np.ndarray]
    """Rows and columns -> (rows, columns[, channels])."""

    def __getitem__(self, place: tuple[slice, slice]) -> np.ndarray:
        """(rows, columns, 3) uint8 RGB, as ``read_image`` makes them."""
        return to_rgb8(self.part(*place))


def open_windows(source: ImageSource) -> Windows:
    """An image to read parts of.

    Args:
        source: The path of a TIFF, read in parts where tifffile and zarr are installed, unless it is compressed in one
            piece; an array (height, width[, channels]), also a memory map; or anything else that ``read_image``
            takes, which is decoded whole, however large.

    Raises:
        ImageError: It is no image, or one of several planes.
    """
    windows = None
    if isinstance(source, np.ndarray):
        windows = Windows((source.shape[0], source.shape[1]), lambda *place: source[place]) if source.ndim > 1 else None
    elif isinstance(source, (str, os.PathLike)) and is_tiff(Path(source)):
        windows = open_tiff(Path(source))
    if windows is None:
        # Who asks for windows knows that the image is large.
        image = read_image(source, any_size=True)
        return Windows((image.shape[0], image.shape[1]), lambda *place: image[place])
    windows[:1, :1]  # an image of no known kind is refused now
    return windows


def is_tiff(path: Path) -> bool:
    """Whether a file begins as a TIFF; its name may say otherwise."""
    with explained(str(path)), path.open("rb") as file:
        return file.read(4) in TIFF_BEGINNINGS


def open_tiff(path: Path) -> Windows | None:
    """A TIFF by tifffile; None if the image is one that Pillow has to turn or colour.

    Without tifffile Pillow reads it as any image, and what is too large for that is refused.
    """
    try:
        import tifffile

        import_module("zarr")
    except ModuleNotFoundError as error:
        try:
            image = read_image(path)
        except ImageError as refusal:
            if not isinstance(refusal.__cause__, Image.DecompressionBombError):
                raise
            raise ImageError(
                f"{path} is too large to be decoded whole, and {error.name} is not installed, which reads TIFFs in "
                "parts: pip install masklet[tiff]"
            ) from error
        return Windows((image.shape[0], image.shape[1]), lambda *place: image[place])
    with explained(str(path)), ExitStack() as unless_read:
        tiff = unless_read.enter_context(tifffile.TiffFile(path))
        windows = windows_of(tiff, path)
        if windows is not None:
            unless_read.pop_all()
            weakref.finalize(windows, tiff.close)
        return windows


def windows_of(tiff: Any, path: Path) -> Windows | None:
    """The first image of a ``TiffFile``; None for palettes, white as 0, and what does not stand upright."""
    import tifffile

    series = tiff.series[0]
    page, axes = series.keyframe, series.axes
    plain = [tifffile.PHOTOMETRIC.MINISBLACK, tifffile.PHOTOMETRIC.RGB]
    if page.compression == tifffile.COMPRESSION.JPEG:  # whose decoder alone makes it RGB
        plain.append(tifffile.PHOTOMETRIC.YCBCR)
    orientation = page.tags.get("Orientation")
    if page.photometric not in plain or (orientation is not None and orientation.value != 1):
        return None
    if axes not in ("YX", "YXS", "YXC", "SYX", "CYX"):
        raise ImageError(
            f"{path} has the axes {axes} of {series.shape}: expected one image, rows and columns with channels "
            "before or after. Save the plane that is meant as a TIFF of its own"
        )
    channels_first = axes in ("SYX", "CYX")
    height, width = series.shape[1:] if channels_first else series.shape[:2]
    channels = series.size // (height * width)
    colours = 3 if channels - len(page.extrasamples) >= 3 else 1
    alpha = page.extrasamples[0] if page.extrasamples and channels == page.samplesperpixel else None
    has_alpha = alpha in (PREMULTIPLIED, STRAIGHT)
    if alpha == PREMULTIPLIED and series.dtype.kind != "u":
        return None
    # Channels beyond colour and alpha, as infrared, are left out.
    shown = slice(0, colours + has_alpha)
    open_pixels = pixels_of(tiff, path)

    def part(rows: slice, columns: slice) -> np.ndarray:
        with explained(str(path)):
            pixels = open_pixels()
            if pixels.ndim == 2:
                return np.asarray(pixels[rows, columns])
            if channels_first:
                part = np.moveaxis(np.asarray(pixels[shown, rows, columns]), 0, -1)
            else:
                part = np.asarray(pixels[rows, columns, shown])
            return rgba(part, is_premultiplied=alpha == PREMULTIPLIED) if has_alpha else part

    return Windows((height, width), part)


def rgba(pixels: np.ndarray, *, is_premultiplied: bool) -> np.ndarray:
    """(rows, columns, 4), with straight alpha, of colours or grey, with alpha as the last channel."""
    colour, alpha = pixels[..., :-1], pixels[..., -1:]
    if is_premultiplied:
        white = np.iinfo(pixels.dtype).max
        straight = colour.astype(np.uint64) * np.uint64(white) // np.maximum(alpha, 1)
        colour = straight.clip(max=white).astype(pixels.dtype)
    return np.concatenate([np.broadcast_to(colour, (*pixels.shape[:2], 3)), alpha], axis=2)


def pixels_of(tiff: Any, path: Path) -> Callable[[], Any]:
    """Opens the pixels of a ``TiffFile``'s first image, as an array of which parts are read."""
    import zarr

    series = tiff.series[0]
    if series.dataoffset is not None and series.keyframe.is_memmappable:
        # Not through zarr, to which it is one piece, and anew each time, or what was read would stay resident.
        dtype = series.dtype.newbyteorder(tiff.byteorder)
        return lambda: np.memmap(path, dtype, "r", offset=series.dataoffset, shape=series.shape)
    pixels: Any = zarr.open_array(series.aszarr(level=0), mode="r")
    if pixels.chunks == pixels.shape:  # compressed in one piece: once for all parts
        pixels = pixels[:]
    return lambda: pixels
