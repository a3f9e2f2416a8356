"""Image files as videos: TIFFs of many pages, animations, single images."""

from __future__ import annotations

import math
import os
import re
import struct
import warnings
import weakref
from collections.abc import Generator, Sequence
from contextlib import ExitStack, suppress
from fractions import Fraction
from importlib import import_module
from itertools import accumulate, count
from pathlib import Path
from threading import Lock
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
from PIL import Image, UnidentifiedImageError

from masklet.errors import ImageError, VideoError
from masklet.images.options import ImageOptions
from masklet.images.reading import beginning_of, explained, pixels_of_image, upright
from masklet.images.tiff import TiffPixels, arranged, is_tiff, keeps_values, needs_pillow, orientation_of, oriented
from masklet.images.values import selected
from masklet.video.readers import IMAGES_FPS, ImageList, Images

IMAGE_FORMATS = ("AVIF", "BMP", "GIF", "HEIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP")
"""Pillow's names of what is read as images. It takes some videos for images, too, and sees only their beginning."""
ANIMATED_FORMATS = ("AVIF", "GIF", "PNG", "WEBP")
"""Formats whose images follow each other in time; others may hold a preview, or layers."""
SHORTEST, USUAL = 10, 100
"""Milliseconds. Browsers show an image of an animation whose duration is at most the first value for the second
instead."""
BACKWARD_BYTES = 128 * 2**20
"""Size of the frames held while an animation is read backward."""
REDUCED_OR_MASK = 1 | 4
"""Bits of a TIFF's kind of page, beside the images themselves."""
KIND_OF_PAGE, DESCRIPTION = 254, 270
"""Tags of a TIFF."""
STRIPS_AND_TILES = ((273, 279), (324, 325))
"""Tags of their places and sizes."""
IMAGE_AXES = "CSYX"
"""tifffile's letters for the axes of one image; others are those of a video."""
MOST_CHANNELS = 4
"""An ImageJ file of more channels, and of nothing else, may have been meant as a stack."""


def open_images(path: Path, options: ImageOptions) -> Images | None:
    """The images of a file, recognised by its content; None if it is something else, perhaps a video.

    Raises:
        VideoError: The file has images that cannot be read, or that are not one after another.
    """
    try:
        with explained(str(path)):
            return _images_in(path, options)
    except ImageError as error:
        raise VideoError(str(error)) from error


def _images_in(path: Path, options: ImageOptions) -> Images | None:
    Image.init()
    if is_tiff(beginning_of(path)):
        return open_pages(path, options)
    try:
        with Image.open(path, formats=[name for name in IMAGE_FORMATS if name in Image.OPEN]) as image:
            if image.format in ANIMATED_FORMATS and getattr(image, "n_frames", 1) > 1:
                return Animation(path, image)
            return ImageList([path])
    except UnidentifiedImageError:
        refuse_heif(path)
        return None


def refuse_heif(path: Path) -> None:
    """Raise an ImageError for a HEIC or AVIF image that Pillow cannot read; as a video it would be in pieces."""
    beginning = beginning_of(path)
    if beginning[4:8] != b"ftyp":
        return
    if beginning[8:12] in (b"avif", b"avis"):
        raise ImageError(
            f"{path} is an AVIF image, which this version of Pillow cannot read: pip install 'pillow>=11.3'"
        )
    if beginning[8:12] in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"):
        raise ImageError(
            f"{path} is a HEIC image: pip install pillow-heif and call pillow_heif.register_heif_opener() first, or "
            "convert it to JPEG"
        )


class Animation:
    """An animated GIF, PNG, WebP or AVIF. Its images depend on those before them, so they are decoded forward."""

    def __init__(self, path: Path, image: Any) -> None:
        check_size(image.width, image.height)
        self._path = path
        self._batch = max(1, BACKWARD_BYTES // (4 * image.width * image.height))
        # Some PNGs begin with an image for programs that cannot show animations.
        self._first = 1 if getattr(image, "default_image", False) else 0
        durations: list[float] = []
        self.is_incomplete = False
        for number in range(self._first, image.n_frames):
            try:
                image.seek(number)
                image.load()  # before, some formats do not know how long it is shown
            except (OSError, EOFError, SyntaxError, ValueError, IndexError):
                if not durations:
                    raise
                self.is_incomplete = True
                break
            duration = image.info.get("duration") or 0
            durations.append(duration if duration > SHORTEST else USUAL)
        *self._starts, end = accumulate(durations, initial=0)
        self.fps = Fraction(len(durations) * 1000) / Fraction(end).limit_denominator(1000)

    def __len__(self) -> int:
        return len(self._starts)

    def time(self, index: int) -> float:  # noqa: D102
        return self._starts[index] / 1000

    def read(self, wanted: Sequence[int], options: ImageOptions) -> Generator[np.ndarray]:  # noqa: D102
        if len(wanted) < 2 or wanted[0] < wanted[-1]:
            yield from self._forward(wanted, options)
            return
        for start in range(0, len(wanted), self._batch):
            batch = list(self._forward(wanted[start : start + self._batch][::-1], options))
            while batch:
                yield batch.pop()

    def _forward(self, wanted: Sequence[int], options: ImageOptions) -> Generator[np.ndarray]:
        with Image.open(self._path, formats=ANIMATED_FORMATS) as image:
            for index in wanted:
                with explained(str(self._path)):
                    image.seek(self._first + index)
                    shown = upright(image)
                    pixels = np.asarray(shown.convert("RGBA" if shown.has_transparency_data else "RGB"))
                yield selected(pixels, options.bands)


def check_size(width: int, height: int) -> None:
    """Refuse images that may be meant to fill the memory, as ``read_image`` does."""
    if Image.MAX_IMAGE_PIXELS is not None and width * height > Image.MAX_IMAGE_PIXELS:
        raise Image.DecompressionBombError(f"{width}×{height} pixels")


def open_pages(path: Path, options: ImageOptions) -> Images:
    """The pages of a TIFF: by tifffile if it is installed and does not leave colours to Pillow, else by Pillow."""
    try:
        import tifffile
    except ModuleNotFoundError as error:
        try:
            return pillow_pages(path)
        except UnidentifiedImageError:
            raise error from None
    with suppress(tifffile.TiffFileError), ExitStack() as unless_read:  # Pillow may read more of a damaged file
        tiff = unless_read.enter_context(tifffile.TiffFile(path))
        pages = tifffile_pages(path, tiff, options)
        if isinstance(pages, TiffPages):
            weakref.finalize(pages, unless_read.pop_all().close)
        if pages is not None:
            return pages
    return pillow_pages(path)


def tifffile_pages(path: Path, tiff: Any, options: ImageOptions) -> Images | None:
    """The pages of a ``TiffFile``; None if Pillow has to convert their colours."""
    series, *others = [one for one in tiff.series if not one.keyframe.subfiletype & REDUCED_OR_MASK] or tiff.series
    if others:
        shapes = ", ".join(str(tuple(one.shape)) for one in (series, *others))
        raise ImageError(
            f"{path} has several kinds of images, of the shapes {shapes}: expected pages of one size. Select a series: "
            f"tifffile.imread({str(path)!r}, series=0)"
        )
    frame_axes = [axis for axis in series.axes if axis not in IMAGE_AXES]
    if not frame_axes:
        planes = math.prod(size for axis, size in zip(series.axes, series.shape, strict=True) if axis not in "YXS")
        if (stated := (tiff.imagej_metadata or {}).get("images", 1)) > planes:
            raise ImageError(
                f"{path} states {stated} images, but the file ends before the last: copy or export it again"
            )
        if planes > MOST_CHANNELS and options.bands is None:  # tifffile calls the pages of a plain array channels
            raise ImageError(
                f"{path} is one image of {planes} channels: select some, as in bands=(2, 1, 0), or read them as "
                f"frames: sam.video(tifffile.imread({str(path)!r}))"
            )
        return ImageList([path])
    if len(frame_axes) > 1:
        raise ImageError(
            f"{path} has the axes {series.axes} and the shape {tuple(series.shape)}, but a video goes along one of "
            f"{', '.join(frame_axes)}: select from the others, as in tifffile.imread({str(path)!r})[:, 0]"
        )
    axes = "".join(axis for axis in series.axes if axis in IMAGE_AXES)
    shape = tuple(size for axis, size in zip(series.axes, series.shape, strict=True) if axis in IMAGE_AXES)
    if axes not in ("YX", "YXS", "YXC", "SYX", "CYX"):
        raise ImageError(
            f"{path} has the axes {series.axes} and the shape {tuple(series.shape)}: expected images along one axis"
        )
    check_size(shape[axes.index("X")], shape[axes.index("Y")])
    if needs_pillow(series.keyframe):
        return None
    one = SimpleNamespace(shape=shape, dtype=series.dtype)
    arrangement = arranged(one, series.keyframe, axes, str(path), options)
    return None if arrangement is None else TiffPages(path, series, tiff.byteorder, arrangement)


class TiffPages:
    """The images of a TIFF along one axis, read by tifffile. The file stays open."""

    fps = IMAGES_FPS

    def __init__(self, path: Path, series: Any, byteorder: str, arrangement: TiffPixels) -> None:
        self._path, self._series, self._arrangement = path, series, arrangement
        self._dtype = series.dtype.newbyteorder(byteorder)
        self._axis = next(place for place, axis in enumerate(series.axes) if axis not in IMAGE_AXES)
        self._lock = Lock()  # a file has one position
        before = series.shape[: len(series.shape) - len(series.keyframe.shape)]
        numbers = np.arange(len(series.pages)).reshape(before) if len(series.pages) == np.prod(before) else None
        self._numbers = None if numbers is None else np.moveaxis(numbers, self._axis, 0)
        """(frames[, channels]): the numbers of the pages; None if pages hold several frames."""
        self._count = self._count_whole()
        self.is_incomplete = is_cut_off(path) or self._count < series.shape[self._axis]

    def __len__(self) -> int:
        return self._count

    def _count_whole(self) -> int:
        """Images before the end of the file."""
        count, size = int(self._series.shape[self._axis]), self._path.stat().st_size
        if self._numbers is not None:
            while count > 1 and any(end_of(self._page(number)) > size for number in self._numbers[count - 1].ravel()):
                count -= 1
        elif self._series.dataoffset is not None and self._axis == 0:
            count = min(count, (size - self._series.dataoffset) // self._frame_bytes)
        return count

    @property
    def _frame_bytes(self) -> int:
        return int(np.prod(self._series.shape[1:])) * self._dtype.itemsize

    def time(self, index: int) -> float:  # noqa: D102
        return float(index / self.fps)

    def read(self, wanted: Sequence[int], options: ImageOptions) -> Generator[np.ndarray]:  # noqa: D102
        for index in wanted:
            with explained(str(self._path)):
                with self._lock:
                    stored = self._stored(index)
                pixels = self._arrangement.read(stored, slice(None), slice(None))
                pixels = oriented(pixels, orientation_of(self._series.keyframe))
            yield pixels

    def _stored(self, index: int) -> np.ndarray:
        """One image with the axes of the file: a page, a page for each channel, or a part of an array."""
        series = self._series
        if self._numbers is not None:
            pages = [self._page(number).asarray() for number in self._numbers[index].ravel()]
            return np.stack(pages) if self._numbers.ndim > 1 else pages[0]
        if series.dataoffset is not None and self._axis == 0:  # ImageJ describes the first image only
            offset = series.dataoffset + index * self._frame_bytes
            return np.array(np.memmap(self._path, self._dtype, "r", offset, tuple(series.shape[1:])))
        stored: Any = import_module("zarr").open_array(series.aszarr(level=0), mode="r")
        return np.asarray(stored[(slice(None),) * self._axis + (index,)])

    def _page(self, number: int) -> Any:
        if (page := self._series.pages[number]) is None:
            raise ImageError(f"page {number} of {self._path} is missing")
        return page


def end_of(page: Any) -> int:
    """Where the data of a page of tifffile's end in the file."""
    return max(map(sum, zip(page.dataoffsets, page.databytecounts, strict=True)), default=0)


def pillow_pages(path: Path) -> Images:
    """The pages of a TIFF, read without tifffile. Previews and masks are left out."""
    numbers, sizes, file_size = [], [], path.stat().st_size
    with warnings.catch_warnings(), Image.open(path, formats=["TIFF"]) as image:
        warnings.simplefilter("ignore")  # Pillow warns of a page without its end, and then raises any of many errors
        check_size(image.width, image.height)
        described: Any = image.tag_v2.get(DESCRIPTION, "")  # type: ignore[attr-defined]
        for number in count():
            try:
                image.seek(number)
                tags: Any = image.tag_v2  # type: ignore[attr-defined]
                is_whole = max(ends_of(tags)) <= file_size
            except (EOFError, OSError, SyntaxError, ValueError, LookupError, TypeError, struct.error):
                break
            if number == 0 or (is_whole and not tags.get(KIND_OF_PAGE, 0) & REDUCED_OR_MASK):
                numbers.append(number)
                sizes.append(image.size)
    images = re.search(r"^ImageJ=.*^images=(\d+)", str(described), re.DOTALL | re.MULTILINE)
    if images and int(images[1]) > len(numbers) and not is_cut_off(path):  # they follow the first without a description
        raise ModuleNotFoundError(name="tifffile")
    if len(set(sizes)) > 1:
        shapes = ", ".join(f"{width}×{height}" for width, height in dict.fromkeys(sizes))
        raise ImageError(f"{path} has pages of several sizes, {shapes}: expected one. Save those to read in a file")
    return PillowPages(path, numbers) if len(numbers) > 1 else ImageList([path])


def ends_of(tags: Any) -> list[int]:
    """Where the strips or tiles of a page of Pillow's end in the file."""
    return [
        start + size
        for starts, sizes in STRIPS_AND_TILES
        for start, size in zip(tags.get(starts, ()), tags.get(sizes, ()), strict=False)
    ]


class PillowPages:
    """The pages of a TIFF, read by Pillow."""

    fps = IMAGES_FPS

    def __init__(self, path: Path, numbers: list[int]) -> None:
        self.is_incomplete = is_cut_off(path)
        self._path, self._numbers = path, numbers

    def __len__(self) -> int:
        return len(self._numbers)

    def time(self, index: int) -> float:  # noqa: D102
        return float(index / self.fps)

    def read(self, wanted: Sequence[int], options: ImageOptions) -> Generator[np.ndarray]:  # noqa: D102
        with Image.open(self._path, formats=["TIFF"]) as image:
            for index in wanted:
                with explained(str(self._path)):
                    image.seek(self._numbers[index])
                    if not keeps_values(image) and (not options.is_default or image.mode == "L"):
                        raise ModuleNotFoundError(name="tifffile")
                    pixels = selected(pixels_of_image(image, options), options.bands)
                yield pixels


def is_cut_off(path: Path) -> bool:
    """Whether a TIFF ends before its last page: the pages are a chain, each with the place of the next."""
    with path.open("rb") as file:
        order: Literal["little", "big"] = "little" if file.read(2) == b"II" else "big"

        def number(size: int) -> int | None:
            digits = file.read(size)
            return int.from_bytes(digits, order) if len(digits) == size else None

        is_big = number(2) == 43
        count_size, entry_size, place_size = (8, 20, 8) if is_big else (2, 12, 4)
        file.seek(8 if is_big else 4)
        place, seen = number(place_size), {0}
        while place is not None and place not in seen:
            seen.add(place)
            file.seek(place)
            if (entries := number(count_size)) is None:
                return True
            file.seek(min(entries * entry_size, path.stat().st_size), os.SEEK_CUR)
            place = number(place_size)
        return place is None
