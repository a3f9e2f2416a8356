"""Reads an image of any kind as an RGB uint8 array."""

import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import BinaryIO, TypeAlias

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from masklet.errors import ImageError

ImageSource: TypeAlias = str | os.PathLike[str] | BinaryIO | Image.Image | np.ndarray | Tensor

# Everything that Pillow was observed to raise for damaged files of fifteen formats, and what its readers can raise.
_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    EOFError,
    RuntimeError,
    struct.error,
    zlib.error,
)


def read_image(source: ImageSource, *, any_size: bool = False) -> np.ndarray:
    """The pixels of an image as a viewer displays it.

    EXIF orientation is applied, transparent pixels lie on white, greyscale becomes three equal channels. 16-bit
    values range from 0 to 65535. An animation gives its first frame.

    Args:
        source: One of

            - a path, or a file opened in binary mode (read from its start, left open);
            - a PIL image of any mode;
            - an array (height, width), (height, width, 1), (height, width, 3) or (height, width, 4): RGB or RGBA;
            - a tensor (1, height, width), (3, height, width) or (4, height, width), on any device.

            Arrays and tensors hold uint8, uint16, bool, or floats in [0, 1].
        any_size: Allow files that unpack to more pixels than Pillow's limit. Use it for trusted files only: a file of a
            few kilobytes can fill the memory.

    Returns:
        (height, width, 3) uint8, red first, C-contiguous and writable; never shares memory with ``source``.

    Raises:
        ImageError: ``source`` is missing, damaged, too large, or not an image.
    """
    return to_rgb8(pixels_of(source, any_size=any_size))


def pixels_of(source: ImageSource, *, any_size: bool = False) -> np.ndarray:
    """(height, width[, channels]) in the type of the source; may share its memory."""
    if isinstance(source, np.ndarray):
        return source
    if isinstance(source, Tensor):
        return pixels_of_tensor(source)
    if isinstance(source, Image.Image):
        with explained(f"the PIL image of {source.width}×{source.height}"):
            return pixels_of_image(source)
    if isinstance(source, (str, os.PathLike)):
        return pixels_of_file(source, str(source), any_size=any_size)
    if hasattr(source, "read"):
        name = str(getattr(source, "name", None) or "the file object")
        with explained(name):  # it may be closed
            if isinstance(source.read(0), str):
                raise ImageError(f"{name} is opened as text, but an image is bytes: use open(path, 'rb')")
        return pixels_of_file(source, name, any_size=any_size)
    hint = ". Wrap the bytes of a file in io.BytesIO" if isinstance(source, (bytes, bytearray, memoryview)) else ""
    raise ImageError(
        "expected an image: a path, a binary file, a PIL image, a numpy array or a torch tensor, "
        f"not {type(source).__name__}{hint}"
    )


def pixels_of_file(file: str | os.PathLike[str] | BinaryIO, name: str, *, any_size: bool) -> np.ndarray:
    """As ``pixels_of_image``; errors call the file ``name``."""
    if any_size:
        with explained(name), open_unlimited(file) as image:
            return pixels_of_image(image)
    with explained(name), Image.open(file) as image:
        # Up to twice its limit Pillow only warns; a server that reads untrusted images needs an error. PIL images that
        # the caller opened are not checked: Pillow has warned the caller, and they may not come from a file.
        if Image.MAX_IMAGE_PIXELS is not None and image.width * image.height > Image.MAX_IMAGE_PIXELS:
            raise Image.DecompressionBombError(f"{image.width}×{image.height} pixels")
        return pixels_of_image(image)


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
    except UnidentifiedImageError as error:
        raise ImageError(f"{name} is not an image that Pillow can read: expected JPEG, PNG, TIFF, WebP, …") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(
            f"{name} would unpack to more pixels than Pillow's limit of {Image.MAX_IMAGE_PIXELS} ({error}). "
            "If you trust it, increase PIL.Image.MAX_IMAGE_PIXELS (None: no limit)."
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


def pixels_of_image(image: Image.Image) -> np.ndarray:
    """(height, width[, channels]), upright, in a type that keeps the precision of the image's mode."""
    image = upright(image)
    if image.mode.startswith("I;16"):
        return np.asarray(image)
    if image.mode == "I":  # some readers give 16 bits in this mode
        values = np.asarray(image)
        if values.size and (values.min() < 0 or values.max() > 65535):
            raise ImageError(
                f"a 32-bit image whose values range from {values.min()} to {values.max()}: expected 0 to 65535. "
                "Scale it to uint8, or to floats in [0, 1], first."
            )
        return values.astype(np.uint16)
    if image.mode == "F":
        return np.asarray(image)
    return np.asarray(image.convert("RGBA" if image.has_transparency_data else "RGB"))


def upright(image: Image.Image) -> Image.Image:
    """The image rotated by its EXIF orientation."""
    image.load()  # outside of the try: damaged pixels are an error, a damaged EXIF is not
    try:
        return ImageOps.exif_transpose(image)
    except _DAMAGE:  # image viewers ignore unreadable EXIF, too
        return image


def pixels_of_tensor(tensor: Tensor) -> np.ndarray:
    """(channels, height, width) on any device -> (height, width, channels)."""
    if tensor.ndim != 3 or tensor.shape[0] not in (1, 3, 4):
        hint = "one image at a time" if tensor.ndim == 4 else "for channels last use permute(2, 0, 1)"
        raise ImageError(
            f"a tensor of shape {tuple(tensor.shape)} is not an image: "
            f"expected (1, height, width), (3, height, width) or (4, height, width); {hint}"
        )
    tensor = tensor.detach().cpu().movedim(0, -1)
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


def to_rgb8(pixels: np.ndarray) -> np.ndarray:
    """Any image array -> a new (height, width, 3) uint8."""
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] not in (1, 3, 4)):
        hint = "one image at a time" if pixels.ndim == 4 else "for channels first use transpose(1, 2, 0)"
        raise ImageError(
            f"an array of shape {pixels.shape} is not an image: "
            f"expected (height, width), (height, width, 3) or (height, width, 4); {hint}"
        )
    if pixels.size == 0:
        raise ImageError(f"the image has no pixels: its shape is {pixels.shape}")
    pixels = to_8_bits(pixels if pixels.ndim == 3 else pixels[..., None])
    if pixels.shape[2] == 4:
        pixels = over_white(pixels)
    height, width, _ = pixels.shape
    return np.broadcast_to(pixels, (height, width, 3)).copy(order="C")


def to_8_bits(pixels: np.ndarray) -> np.ndarray:
    """The same brightness in uint8, rounded; white is the maximum of an integer type, 1.0 in floats, or True."""
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype == np.bool_:
        return pixels.astype(np.uint8) * np.uint8(255)
    if pixels.dtype.kind == "u" and pixels.dtype.itemsize == 2:
        return ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)  # to the nearest: 65535 = 255 * 257
    if pixels.dtype.kind != "f":
        raise ImageError(
            f"an image of {pixels.dtype} is not supported: expected uint8, uint16, bool or float. "
            "If its values range from 0 to 255, convert it with .astype('uint8')."
        )
    if np.isnan(pixels).any():
        raise ImageError("the image contains NaN: every value must be in [0, 1]")
    low, high = pixels.min(), pixels.max()
    if low < 0 or high > 1:
        hint = "divide by 255" if low >= 0 and high <= 255 else "rescale them first"
        raise ImageError(f"an image of floats must be in [0, 1], these range from {low:g} to {high:g}: {hint}")
    return np.rint(pixels.astype(np.float32) * 255).astype(np.uint8)


def over_white(rgba: np.ndarray) -> np.ndarray:
    """(height, width, 4) -> (height, width, 3): blended with a white background."""
    colour, alpha = rgba[..., :3].astype(np.uint16), rgba[..., 3:].astype(np.uint16)
    return ((colour * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
