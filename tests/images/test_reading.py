import errno
import io
import os
import re
import warnings

import numpy as np
import PIL
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image

from masklet.errors import ImageError, MaskletError
from masklet.images.reading import read_image


def refusal_of(source):
    """The error message, one line."""
    with pytest.raises(ImageError) as caught:
        read_image(source)
    assert isinstance(caught.value, (MaskletError, ValueError))
    return str(caught.value)


def file_of(image, format, **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    file.seek(0)
    return file


def palette_image(transparency=None):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putdata([0, 1])
    if transparency is not None:
        image.info["transparency"] = transparency
    return image


def image_of(mode, *pixels):
    image = Image.new(mode, (len(pixels), 1))
    image.putdata(pixels)
    return image


RGB_ROW = np.array([[[1, 2, 3], [250, 128, 0]]], np.uint8)

IMAGES = {  # kind: (the image, its pixels as displayed, a format that can hold it)
    "1": (image_of("1", 0, 1), [(0, 0, 0), (255, 255, 255)], "PNG"),
    "L": (image_of("L", 7, 200), [(7, 7, 7), (200, 200, 200)], "PNG"),
    "RGB": (image_of("RGB", (1, 2, 3), (250, 128, 0)), [(1, 2, 3), (250, 128, 0)], "PNG"),
    "palette": (palette_image(), [(10, 20, 30), (40, 50, 60)], "PNG"),
    "palette, transparent": (palette_image(transparency=1), [(10, 20, 30), (255, 255, 255)], "PNG"),
    "LA": (image_of("LA", (0, 0), (0, 51)), [(255, 255, 255), (204, 204, 204)], "PNG"),
    "RGBA": (image_of("RGBA", (9, 9, 9, 0), (255, 0, 100, 51)), [(255, 255, 255), (255, 204, 224)], "PNG"),
    "CMYK": (image_of("CMYK", (0, 255, 255, 0), (0, 0, 0, 255)), [(255, 0, 0), (0, 0, 0)], "TIFF"),
    "YCbCr": (image_of("YCbCr", (90, 128, 128)), [(90, 90, 90)], "TIFF"),
    "HSV": (image_of("HSV", (0, 255, 255)), [(255, 0, 0)], None),
    "I;16": (Image.fromarray(np.array([[0, 257, 65535]], np.uint16)), [(0, 0, 0), (1, 1, 1), (255, 255, 255)], "PNG"),
    "I": (image_of("I", 0, 257, 65535), [(0, 0, 0), (1, 1, 1), (255, 255, 255)], "TIFF"),
    "F": (image_of("F", 0.0, 0.2, 1.0), [(0, 0, 0), (51, 51, 51), (255, 255, 255)], "TIFF"),
}


@pytest.mark.parametrize("kind", IMAGES)
def test_a_pil_image_of_any_mode_is_read_as_displayed(kind):
    image, expected, _ = IMAGES[kind]
    np.testing.assert_array_equal(read_image(image), [expected])


@pytest.mark.parametrize("kind", [kind for kind in IMAGES if IMAGES[kind][2]])
def test_a_file_of_any_mode_is_read_as_displayed(kind, tmp_path):
    if kind == "YCbCr" and PIL.__version__ < "13":
        pytest.skip("Pillow 12 and earlier cannot read uncompressed YCbCr TIFFs, which they write")
    image, expected, format = IMAGES[kind]
    path = tmp_path / f"image.{format.lower()}"
    image.save(path)
    for source in (path, str(path), path.read_bytes):
        source = io.BytesIO(source()) if callable(source) else source
        np.testing.assert_array_equal(read_image(source), [expected])


def test_a_16_bit_pgm_and_a_cmyk_jpeg_are_read():
    pgm = io.BytesIO(b"P5 2 1 65535\n" + np.array([0x8080, 0xFFFF], ">u2").tobytes())
    np.testing.assert_array_equal(read_image(pgm), [[[128] * 3, [255] * 3]])
    jpeg = file_of(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=95)
    np.testing.assert_allclose(read_image(jpeg)[4, 4], (255, 0, 0), atol=6)


LEVELS = {  # dtype: black, one fifth of white (51 of 255), white
    "uint8": (0, 51, 255),
    "uint16": (0, 51 * 257, 65535),
    ">u2": (0, 51 * 257, 65535),
    "float16": (0, 0.2, 1),
    "float32": (0, 0.2, 1),
    "float64": (0, 0.2, 1),
}


@pytest.mark.parametrize("channels", [None, 1, 3, 4])
@pytest.mark.parametrize("dtype", LEVELS)
def test_arrays_of_any_type_are_scaled_to_8_bits(dtype, channels):
    rows = np.array([LEVELS[dtype], LEVELS[dtype][::-1]], dtype)
    source = rows if channels is None else np.repeat(rows[..., None], channels, axis=2)
    if channels == 4:
        source[..., 3] = LEVELS[dtype][2]
    expected = np.repeat(np.array([[0, 51, 255], [255, 51, 0]], np.uint8)[..., None], 3, axis=2)
    np.testing.assert_array_equal(read_image(source), expected)
    if channels and dtype != ">u2":
        tensor = torch.from_numpy(np.moveaxis(source, 2, 0).copy())
        np.testing.assert_array_equal(read_image(tensor), expected)


@pytest.mark.parametrize("source", [np.array([[True, False]]), torch.tensor([[[True, False]]])], ids=type)
def test_true_is_white(source):
    np.testing.assert_array_equal(read_image(source), [[[255] * 3, [0] * 3]])


def test_bfloat16_and_tensors_with_gradients_are_read():
    assert read_image(torch.ones(3, 2, 2, dtype=torch.bfloat16)).min() == 255
    assert read_image(torch.ones(3, 2, 2, requires_grad=True)).min() == 255


@pytest.mark.parametrize("white", [np.uint16(65535), np.float32(1), np.float64(1)], ids=type)
def test_8_bits_survive_conversion_to_16_bits_and_floats(white):
    values = np.arange(256)[None]
    read = read_image((values * float(white) / 255).astype(white.dtype))
    np.testing.assert_array_equal(read[..., 0], values)


@pytest.mark.filterwarnings("ignore::masklet.errors.ImageWarning")  # random values may be close to each other
@given(arrays(np.uint16, array_shapes(min_dims=2, max_dims=2, max_side=9)))
@settings(max_examples=30, deadline=None)
def test_16_bits_are_rounded_to_8(values):
    np.testing.assert_array_equal(read_image(values)[..., 1], np.rint(values / 257))


@given(arrays(np.uint8, st.tuples(st.integers(1, 6), st.integers(1, 6), st.just(4))))
@settings(max_examples=30, deadline=None)
def test_transparent_pixels_are_blended_with_white(rgba):
    alpha = rgba[..., 3:] / 255
    exact = rgba[..., :3] * alpha + 255 * (1 - alpha)
    # Half an 8-bit step is the rounding itself; the rest is that of this comparison.
    np.testing.assert_allclose(read_image(rgba), exact, rtol=0, atol=0.5 + 1e-9)
    np.testing.assert_array_equal(read_image(Image.fromarray(rgba)), read_image(rgba))


UPRIGHT = {  # EXIF orientation: what a viewer does to the stored image
    1: lambda stored: stored,
    2: np.fliplr,
    3: lambda stored: np.rot90(stored, 2),
    4: np.flipud,
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: np.rot90(stored, 2).swapaxes(0, 1),
    8: lambda stored: np.rot90(stored, 1),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation_is_applied_to_files_and_images(orientation):
    stored = np.random.default_rng(0).integers(0, 256, (2, 3, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = file_of(Image.fromarray(stored), "PNG", exif=exif)
    np.testing.assert_array_equal(read_image(file), UPRIGHT[orientation](stored))
    with Image.open(file) as image:
        np.testing.assert_array_equal(read_image(image), UPRIGHT[orientation](stored))
        assert image.size == (3, 2), "the caller's image is left as it was"


def test_unreadable_exif_is_ignored():
    file = file_of(Image.fromarray(RGB_ROW), "PNG", exif=b"Exif\0\0not really exif")
    np.testing.assert_array_equal(read_image(file), RGB_ROW)


def test_an_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (2, 2), colour) for colour in ("red", "blue")]
    file = file_of(frames[0], "GIF", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(read_image(file)[0, 0], (255, 0, 0))


def test_a_file_is_read_from_its_start_and_left_open():
    file = file_of(Image.fromarray(RGB_ROW), "PNG")
    file.seek(20)
    np.testing.assert_array_equal(read_image(file), RGB_ROW)
    assert not file.closed


def test_a_stream_that_cannot_seek_is_read():
    class VideoStream(io.RawIOBase):
        def __init__(self, data):
            self.data = io.BytesIO(data)

        def readable(self):
            return True

        def read(self, size=-1):
            return self.data.read(size)

    np.testing.assert_array_equal(read_image(VideoStream(file_of(Image.fromarray(RGB_ROW), "PNG").read())), RGB_ROW)


SOURCES = {
    "array": np.full((1, 1, 3), 9, np.uint8),
    "greyscale": np.full((1, 1), 9, np.uint8),
    "flipped": np.full((1, 1, 3), 9, np.uint8)[::-1, :, ::-1],
    "read-only": np.broadcast_to(np.uint8(9), (1, 1, 3)),
    "tensor": torch.full((3, 1, 1), 9, dtype=torch.uint8),
    "image": Image.new("RGB", (1, 1), (9, 9, 9)),
}


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_one_pixel_is_an_image_and_the_result_is_a_copy(source):
    image = read_image(source)
    assert image.shape == (1, 1, 3)
    assert image.dtype == np.uint8
    assert image.flags.c_contiguous
    assert image.flags.owndata
    image += 1
    assert read_image(source).max() == 9


# Refusals


def test_the_error_for_a_missing_file_names_the_working_directory():
    assert refusal_of("no/such.jpg") == f"there is no image at no/such.jpg. Looked in {os.getcwd()}."


def test_a_url_is_refused():
    assert "URLs are not supported: download it first" in refusal_of("https://example.org/truck.jpg")


def test_a_folder_is_refused(tmp_path):
    assert refusal_of(tmp_path) == f"{tmp_path} is a folder, not an image: name one file in it"


def test_an_error_of_the_system_is_passed_on():
    name = "x" * 300
    assert refusal_of(name) == f"cannot open {name}: {os.strerror(errno.ENAMETOOLONG)}"


@pytest.mark.parametrize("content", [b"", b"hello, I am text"], ids=["empty", "text"])
def test_a_file_of_another_format_is_refused(content, tmp_path):
    path = tmp_path / "note.jpg"
    path.write_bytes(content)
    assert refusal_of(path).startswith(f"{path} is not an image that Pillow can read: expected JPEG, PNG")
    assert refusal_of(io.BytesIO(content)).startswith("the file object is not an image that Pillow can read")


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_a_truncated_file_is_refused(format):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    half = file_of(Image.fromarray(noise), format).read()
    half = io.BytesIO(half[: len(half) // 2])
    message = refusal_of(half)
    assert "is truncated: the file ends before the image does" in message
    assert "set PIL.ImageFile.LOAD_TRUNCATED_IMAGES = True" in message


def test_a_damaged_file_is_refused():
    data = bytearray(file_of(Image.fromarray(np.zeros((64, 64, 3), np.uint8)), "PNG").read())
    data[45] ^= 0xFF  # in the compressed pixels, whose checksum then fails
    assert "the file object is damaged, or in a format that Pillow cannot decode" in refusal_of(io.BytesIO(data))


@pytest.mark.parametrize("side", [4, 6], ids=["pillow warns", "pillow raises"])
@pytest.mark.parametrize("warned", ["error", "ignore"])
def test_a_decompression_bomb_is_refused(side, warned, monkeypatch):
    file = file_of(Image.new("RGB", (side, side)), "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 12)
    with warnings.catch_warnings():
        warnings.simplefilter(warned)
        message = refusal_of(file)
    assert "would unpack to more pixels than Pillow's limit of 12" in message
    assert "If you trust it, increase PIL.Image.MAX_IMAGE_PIXELS (None: no limit)." in message
    for limit in (side * side, None):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        assert read_image(file).shape == (side, side, 3)


def test_a_file_opened_as_text_or_closed_is_refused(tmp_path):
    path = tmp_path / "truck.png"
    Image.fromarray(RGB_ROW).save(path)
    with open(path, encoding="latin-1") as file:
        assert refusal_of(file) == f"{path} is opened as text, but an image is bytes: use open(path, 'rb')"
    with open(path, "rb") as file:
        pass
    assert "closed file" in refusal_of(file)


REFUSED = {
    "none": (None, "expected an image: a path, a binary file, a PIL image, .*, not NoneType"),
    "bytes": (b"\x89PNG", "not bytes. Wrap the bytes of a file in io.BytesIO"),
    "list": ([[0, 1]], "expected an image: a path, .*, not list"),
    "one row": (np.zeros(5, np.uint8), r"an array of shape \(5,\) is not an image: expected \(height, width\)"),
    "two channels": (np.zeros((5, 6, 2), np.uint8), r"an array of shape \(5, 6, 2\) is not an image"),
    "channels first": (np.zeros((3, 5, 6), np.uint8), r"if channels are first, use transpose\(1, 2, 0\)"),
    "batch": (np.zeros((1, 5, 6, 3), np.uint8), "one image at a time"),
    "tensor of channels last": (torch.zeros(5, 6, 3), r"if channels are last, use permute\(2, 0, 1\)"),
    "tensor without channels": (torch.zeros(5, 6), r"a tensor of shape \(5, 6\) is not an image"),
    "batch of tensors": (torch.zeros(1, 3, 5, 6), r"expected \(1, height, width\), .*; one image at a time"),
    "no rows": (np.zeros((0, 6, 3), np.uint8), r"the image has no pixels: its shape is \(0, 6, 3\)"),
    "no columns": (torch.zeros(3, 6, 0), "the image has no pixels"),
    "image without pixels": (Image.new("RGB", (0, 3)), "the image has no pixels"),
    "int64": (
        np.zeros((5, 6), np.int64),
        r"an image of int64 has no natural black and white, and its values range from 0 to 0: .*astype\('uint8'\)",
    ),
    "tensor of int64": (torch.zeros(3, 5, 6, dtype=torch.long), "an image of int64 has no natural black"),
    "complex": (np.zeros((5, 6), complex), "an image of complex128 is not supported"),
    "NaN": (
        np.array([[0.5, np.nan]]),
        r"the image contains NaN: every value must be in \[0, 1\]. If NaN means missing, say",
    ),
    "floats to 255": (np.array([[0.0, 255.0]]), r"must be in \[0, 1\], but they range from 0 to 255: divide by 255"),
    "floats below 0": (torch.full((3, 2, 2), -1.5), "but they range from -1.5 to -1.5: say which"),
    "infinity": (np.array([[0, np.inf]]), "but they range from 0 to inf"),
    "32 bits": (image_of("I", -1, 70000), r"from -1 to 70000: say which .* value_range=\(-1, 70000\) or .*'auto'"),
    "image of floats": (image_of("F", 0.0, 12.5), "but they range from 0 to 12.5: divide by 255"),
}


@pytest.mark.parametrize(("source", "message"), REFUSED.values(), ids=REFUSED)
def test_other_values_are_refused(source, message):
    assert re.search(message, refusal_of(source))


def test_arrays_of_other_libraries_are_read():
    class Array:
        """As zarr, dask and xarray have them."""

        def __array__(self, dtype=None, copy=None):
            return np.arange(48, dtype=np.uint8).reshape(4, 4, 3)

    np.testing.assert_array_equal(read_image(Array()), np.arange(48).reshape(4, 4, 3))
