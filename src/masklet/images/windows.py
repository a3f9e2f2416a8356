"""Windows of large images: TIFF by tifffile and zarr (``pip install masklet[tiff]``), and arrays, also memory maps."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from masklet.config import SizeHW
from masklet.errors import ImageError
from masklet.images.options import DEFAULT, ImageOptions
from masklet.images.ranges import needs_sample, resolved, sample_of
from masklet.images.reading import ImageSource, beginning_of, explained, read_image, without_mask
from masklet.images.tiff import is_tiff, opened_tiff, orientation_of, pixel_opener, tiff_pixels
from masklet.images.values import check_channels, chosen, to_rgb8


@dataclass(frozen=True, eq=False)
class Windows:
    """An image that is read window by window. Made by ``open_windows``."""

    size_hw: SizeHW
    read: Callable[[slice, slice], np.ndarray]
    """Rows and columns -> (rows, columns[, channels]), with the bands selected."""
    options: ImageOptions = DEFAULT
    """Options, with one range of values for all windows."""

    def __getitem__(self, place: tuple[slice, slice]) -> np.ndarray:
        """(rows, columns, 3) uint8 RGB, as from ``read_image``."""
        return to_rgb8(self.read(*place), self.options)

    @classmethod
    def of_array(cls, pixels: np.ndarray, options: ImageOptions = DEFAULT) -> Windows:
        """Windows of an array or memory map, (height, width[, channels])."""
        check_channels(pixels, options.bands)
        return cls((pixels.shape[0], pixels.shape[1]), lambda *place: chosen(pixels[place], options.bands), options)


def open_windows(source: ImageSource, options: ImageOptions = DEFAULT) -> Windows:
    """Opens an image to read windows of it.

    Args:
        source: The path of a TIFF, read window by window if tifffile and zarr are installed and it is not compressed
            in one piece; an array (height, width[, channels]), also a memory map; or anything else that ``read_image``
            accepts, which is decoded whole, without a limit of size.
        options: As in ``read_image``; all windows share one range of values.

    Raises:
        ImageError: It is not an image, or has several planes.
    """
    windows = None
    if isinstance(source, np.ndarray):
        windows = Windows.of_array(without_mask(source), options) if source.ndim > 1 else None
    elif isinstance(source, (str, os.PathLike)):
        path = Path(source)
        with explained(str(path)):
            windows = open_tiff(path, options) if is_tiff(beginning_of(path)) else None
    if windows is None:
        return Windows.of_array(read_image(source, options, any_size=True))  # the caller expects a large image
    return with_one_range(windows)


def with_one_range(windows: Windows) -> Windows:
    """The windows with one range, found in blocks all over the image. Raises an ImageError for unsupported types."""
    sample = windows.read(slice(0, 1), slice(0, 1))
    if needs_sample(sample.dtype, windows.options):
        sample = sample_of(windows.read, windows.size_hw)
        windows = replace(windows, options=resolved(windows.options, [sample]))
    to_rgb8(sample, windows.options)
    return windows


def open_tiff(path: Path, options: ImageOptions) -> Windows | None:
    """Opens a TIFF with tifffile; None if it has to be rotated or its colours converted.

    Without tifffile, Pillow decodes the whole image, and one that is too large for that is refused.
    """
    try:
        import tifffile  # noqa: F401
        import zarr  # noqa: F401
    except ModuleNotFoundError as error:
        try:
            return Windows.of_array(read_image(path, options))
        except ImageError as refusal:
            if not isinstance(refusal.__cause__, Image.DecompressionBombError):
                raise
            raise ImageError(
                f"{path} is too large to be decoded whole, and {error.name}, which reads windows of TIFFs, is not "
                "installed: pip install masklet[tiff]"
            ) from error
    with ExitStack() as unless_read:
        tiff = unless_read.enter_context(opened_tiff(path))
        pixels = tiff_pixels(tiff, str(path), options)
        if pixels is None or orientation_of(pixels.page) != 1:
            return None
        open_pixels = pixel_opener(pixels, path, tiff.byteorder)

        def read(rows: slice, columns: slice) -> np.ndarray:
            with explained(str(path)):
                return pixels.read(open_pixels(), rows, columns)

        windows = Windows(pixels.size_hw, read, options)
        closing = unless_read.pop_all()
        # with the function that reads, which copies of the windows share
        weakref.finalize(read, closing.close)
        return windows
