"""Reads an image of any kind as an RGB uint8 array."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias, Union

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from masklet.errors import ImageError
from masklet.images.options import DEFAULT, ImageOptions
from masklet.images.ranges import needs_sample, resolved, sample_of
from masklet.images.tiff import (
    ORIENTATION,
    fitting_16_bits,
    is_tiff,
    keeps_values,
    needs_tifffile,
    oriented,
    read_tiff,
)
from masklet.images.values import MANY_BANDS, selected, to_rgb8
from masklet.tensors import is_tensor

if TYPE_CHECKING:
    from torch import Tensor

ImageSource: TypeAlias = Union[str, os.PathLike[str], BinaryIO, Image.Image, np.ndarray, "Tensor"]  # noqa: UP007

# Everything that Pillow and tifffile were observed to raise for damaged files, and what their readers can raise.
_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    ArithmeticError,
    EOFError,
    RuntimeError,
    struct.error,
    zlib.error,
)


def read_image(source: ImageSource, options: ImageOptions = DEFAULT, *, any_size: bool = False) -> np.ndarray:
    """The pixels of an image as a viewer displays it.

    EXIF orientation is applied, transparency is composited on white, and greyscale becomes three equal channels. 16-bit
    values range from 0 to 65535 unless ``options`` say what is black and white. Of an animation, the first frame is
    read.

    Args:
        source: One of

            - a path, or a file opened in binary mode (read from its start, left open);
            - a PIL image of any mode;
            - an array (height, width), (height, width, 1), (height, width, 3) or (height, width, 4): RGB or RGBA;
              arrays of zarr, dask and xarray are read too;
            - a tensor (1, height, width), (3, height, width) or (4, height, width), on any device.

            Arrays and tensors hold uint8, uint16, bool, or floats in [0, 1]; with ``value_range``, any integers or
            floats. With ``bands``, they may have any number of channels.
        options: Which values are black and white, which channels are red, green and blue, which value is missing.
        any_size: Allow files that unpack to more pixels than Pillow's limit. Use it for trusted files only: a file of a
            few kilobytes can fill the memory.

    Returns:
        (height, width, 3) uint8, red first, C-contiguous and writable; never shares memory with ``source``.

    Raises:
        ImageError: ``source`` is missing, damaged, too large, or not an image; its values have no natural range and
            none was given.

    Warns:
        ImageWarning: Hardly any of the range is used.
    """
    pixels = pixels_of(source, options, any_size=any_size)
    return to_rgb8(pixels, resolved_for([pixels], options))


def resolved_for(images: Iterable[np.ndarray], options: ImageOptions) -> ImageOptions:
    """The options for frames of a video, with one range for all, found in some of them.

    Args:
        images: Some frames as ``pixels_of`` returns them.
        options: As the user gave them.

    Returns:
        Options for ``to_rgb8(pixels_of(frame, options), options)``.

    Warns:
        ImageWarning: Hardly any of the range is used.
    """
    return resolved(options, [sample_of_array(image) for image in images if needs_sample(image.dtype, options)])


def sample_of_array(image: np.ndarray) -> np.ndarray:
    """Samples the same values as from a file that is read in parts."""
    return sample_of(lambda *place: image[place], (image.shape[0], image.shape[1]))


def pixels_of(source: ImageSource, options: ImageOptions = DEFAULT, *, any_size: bool = False) -> np.ndarray:
    """(height, width[, channels]) in the type of the source, with its bands selected; may share its memory."""
    if is_tensor(source):
        return selected(pixels_of_tensor(source, options), options.bands)
    if isinstance(source, Image.Image):
        with explained(f"the PIL image of {source.width}×{source.height}"):
            return selected(pixels_of_image(source, options), options.bands)
    if isinstance(source, np.ndarray) or hasattr(source, "__array__"):
        return selected(without_mask(source), options.bands)
    if isinstance(source, (str, os.PathLike)):
        return pixels_of_file(source, str(source), options, any_size=any_size)
    if hasattr(source, "read"):
        name = str(getattr(source, "name", None) or "the file object")
        with explained(name):  # it may be closed
            if isinstance(source.read(0), str):
                raise ImageError(f"{name} is opened as text, but an image is bytes: use open(path, 'rb')")
            file = source if source.seekable() else io.BytesIO(source.read())
        return pixels_of_file(file, name, options, any_size=any_size)
    hint = ". Wrap the bytes of a file in io.BytesIO" if isinstance(source, (bytes, bytearray, memoryview)) else ""
    raise ImageError(
        "expected an image: a path, a binary file, a PIL image, a numpy array or a torch tensor, "
        f"not {type(source).__name__}{hint}"
    )


def without_mask(pixels: Any) -> np.ndarray:
    """The plain array. Raises an ImageError if it is a masked one with masked values, which would count as valid."""
    if isinstance(pixels, np.ma.MaskedArray) and np.ma.is_masked(pixels):
        raise ImageError(
            "some values of the masked array are masked: fill them with a value of their own, as in pixels.filled(0) "
            "with nodata=0"
        )
    return np.asarray(pixels)


def pixels_of_file(
    file: str | os.PathLike[str] | BinaryIO, name: str, options: ImageOptions, *, any_size: bool
) -> np.ndarray:
    """As ``pixels_of``; errors call the file ``name``."""
    with explained(name):
        try:
            with open_unlimited(file) if any_size else open_limited(file) as image:
                pixels = exact_pixels(image, file, name, options, any_size=any_size)
                return selected(pixels_of_image(image, options), options.bands) if pixels is None else pixels
        except UnidentifiedImageError:
            if not is_tiff(beginning_of(file)) or (pixels := read_tiff(file, name, options, any_size=any_size)) is None:
                raise
            return pixels


def exact_pixels(
    image: Image.Image, file: str | os.PathLike[str] | BinaryIO, name: str, options: ImageOptions, *, any_size: bool
) -> np.ndarray | None:
    """As ``pixels_of``, of a TIFF whose values Pillow would change; None for other files."""
    if image.format != "TIFF" or not needs_tifffile(image, options):
        return None
    try:
        return read_tiff(file, name, options, any_size=any_size)
    except ModuleNotFoundError:
        # Without options, 16 bits may be reduced to 8. Mode L stands for signed bytes, which Pillow takes for unsigned.
        if keeps_values(image) or (options.is_default and image.mode != "L"):
            return None
        raise


@contextmanager
def open_limited(file: str | os.PathLike[str] | BinaryIO) -> Iterator[Image.Image]:
    """As ``Image.open``, for untrusted files."""
    with Image.open(file) as image:
        # Up to twice its limit Pillow only warns; a server that reads untrusted images needs an error. PIL images that
        # the caller opened are not checked: Pillow has warned the caller, and they may not come from a file.
        if Image.MAX_IMAGE_PIXELS is not None and image.width * image.height > Image.MAX_IMAGE_PIXELS:
            raise Image.DecompressionBombError(f"{image.width}×{image.height} pixels")
        yield image


def beginning_of(file: str | os.PathLike[str] | BinaryIO) -> bytes:
    """The first bytes of a file."""
    if isinstance(file, (str, os.PathLike)):
        with open(file, "rb") as opened:
            return opened.read(16)
    file.seek(0)
    return file.read(16)


@contextmanager
def open_unlimited(source: str | os.PathLike[str] | BinaryIO) -> Iterator[Image.Image]:
    """As ``Image.open`` without its limit, which is a global variable that other threads may rely on."""
    Image.init()
    with ExitStack() as stack:
        file = stack.enter_context(open(source, "rb")) if isinstance(source, (str, os.PathLike)) else source
        file.seek(0)
        beginning = file.read(16)
        for opens, accepts in Image.OPEN.values():
            accepted = accepts is None or accepts(beginning)
            if accepted and not isinstance(accepted, str):  # a str is a warning
                file.seek(0)
                try:
                    image = opens(file, "")
                except (SyntaxError, IndexError, TypeError, struct.error):  # another format, as in Image.open
                    continue
                with image:
                    yield image
                return
    raise UnidentifiedImageError


@contextmanager
def explained(name: str) -> Iterator[None]:
    """Turns errors of Pillow and of the system about the image ``name`` into ImageErrors with a hint."""
    try:
        yield
    except ImageError:
        raise
    except FileNotFoundError as error:
        hint = "URLs are not supported: download it first." if "://" in name else f"Looked in {os.getcwd()}."
        raise ImageError(f"there is no image at {name}. {hint}") from error
    except IsADirectoryError as error:
        raise ImageError(f"{name} is a folder, not an image: name one file in it") from error
    except ModuleNotFoundError as error:
        raise ImageError(
            f"{name} has values or channels that Pillow does not read as they are, and {error.name} is not installed: "
            "pip install masklet[tiff]"
        ) from error
    except UnidentifiedImageError as error:
        raise ImageError(
            f"{name} is not an image that Pillow can read: expected JPEG, PNG, TIFF, WebP or a similar format"
        ) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(
            f"{name} would unpack to more pixels than Pillow's limit of {Image.MAX_IMAGE_PIXELS} ({error}). "
            "If you trust it, increase PIL.Image.MAX_IMAGE_PIXELS (None: no limit)."
        ) from error
    except MemoryError as error:
        raise ImageError(
            f"{name} does not fit in memory, or is damaged: {error or 'there is no more memory'}"
        ) from error
    except _DAMAGE as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise ImageError(f"cannot open {name}: {error.strerror}") from error
        if "truncated" in str(error).lower():
            raise ImageError(
                f"{name} is truncated: the file ends before the image does ({error}). Copy it again, or "
                "set PIL.ImageFile.LOAD_TRUNCATED_IMAGES = True to read the part that exists."
            ) from error
        raise ImageError(f"{name} is damaged, or in a format that Pillow cannot decode ({error})") from error


def pixels_of_image(image: Image.Image, options: ImageOptions) -> np.ndarray:
    """(height, width[, channels]), upright, in a type that keeps the precision of the image's mode."""
    if is_reduced(image):
        if image.format == "PNG":
            return pixels_of_deep_png(image)
        if not options.is_default:
            raise ImageError("Pillow reduces the 16 bits of its channels to 8: give the path of the file instead")
    image = upright(image)
    if image.mode.startswith("I;16"):
        return np.asarray(image)
    if image.mode == "I":  # some readers give 16 bits in this mode
        return np.asarray(image) if options.skips_nan else fitting_16_bits(np.asarray(image))
    if image.mode == "F":
        return np.asarray(image)
    return np.asarray(image.convert("RGBA" if image.has_transparency_data else "RGB"))


def is_reduced(image: Image.Image) -> bool:
    """Whether an image that is not loaded yet has 16 bits a channel, of which Pillow's mode can hold 8."""
    return image.mode in ("L", "LA", "RGB", "RGBA") and any(
        ";16" in str(tile[3]) for tile in getattr(image, "tile", ())
    )


def pixels_of_deep_png(image: Any) -> np.ndarray:
    """(height, width, 3 or 4) uint16, upright, of a PNG that is not loaded yet."""
    import av

    place = image.fp.tell()
    image.fp.seek(0)
    content = io.BytesIO(image.fp.read())
    image.fp.seek(place)
    upright(image)  # PyAV would read a damaged file in part
    with av.open(content, "r") as container:
        frame = next(container.decode(video=0))
    if frame.format.name == "ya16be":  # which PyAV does not convert
        rows = np.frombuffer(bytes(frame.planes[0]), ">u2").reshape(frame.height, -1)
        pixels = rows[:, : 2 * frame.width].reshape(frame.height, frame.width, 2)[..., [0, 0, 0, 1]]
    else:
        pixels = frame.to_ndarray()
    return oriented(pixels.astype(np.uint16), image.getexif().get(ORIENTATION, 1))


def upright(image: Image.Image) -> Image.Image:
    """The image rotated by its EXIF orientation."""
    image.load()  # outside of the try: damaged pixels are an error, a damaged EXIF is not
    try:
        return ImageOps.exif_transpose(image)
    except _DAMAGE:  # image viewers ignore unreadable EXIF, too
        return image


def pixels_of_tensor(tensor: Tensor, options: ImageOptions) -> np.ndarray:
    """(channels, height, width) on any device -> (height, width, channels)."""
    if tensor.ndim != 3 or (options.bands is None and tensor.shape[0] not in (1, 3, 4)):
        hint = "if channels are last, use permute(2, 0, 1)"
        if tensor.ndim == 4:
            hint = "one image at a time"
        elif tensor.ndim == 3 and tensor.shape[0] < tensor.shape[2]:
            hint = f"select from {tensor.shape[0]} channels with bands=(red, green, blue) or bands=grey, counted from 0"
        raise ImageError(
            f"a tensor of shape {tuple(tensor.shape)} is not an image: "
            f"expected (1, height, width), (3, height, width) or (4, height, width); {hint}"
        )
    if tensor.shape[0] > MANY_BANDS and tensor.shape[2] < min(tensor.shape[:2]):
        raise ImageError(
            f"a tensor of shape {tuple(tensor.shape)} seems to have its channels last: expected (channels, height, "
            "width). Use permute(2, 0, 1)"
        )
    tensor = tensor.detach().cpu().movedim(0, -1)
    return (tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor).numpy()
