"""TIFFs and PNGs whose values Pillow would change: images, windows and videos read them alike."""

import io
import struct
import sys
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from masklet.errors import ImageError, ImageWarning
from masklet.images.options import ImageOptions
from masklet.images.reading import read_image
from masklet.images.windows import open_windows
from masklet.video.frames import open_video

AS_IT_IS = ImageOptions()
RANGES = {
    "uint8": (20, 200),
    "int8": (-100, 90),
    "uint16": (100, 4095),
    "int16": (-160, 240),
    "uint32": (70_000, 3_000_000),
    "int32": (-70_000, 3_000_000),
    "uint64": (2**60, 2**62),
    "float16": (-3, 0.5),
    "float32": (-10, 900),
    "float64": (-1e200, 1e200),
}
KINDS = {
    "grey": {"photometric": "minisblack"},
    "RGB": {"photometric": "rgb"},
    "planes": {"photometric": "rgb", "planarconfig": "separate"},
    "tiles": {"photometric": "rgb", "tile": (16, 16), "compression": "zlib"},
    "big endian": {"photometric": "rgb", "byteorder": ">"},
}


@pytest.fixture
def write(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    pytest.importorskip("zarr")

    def write(pixels, name="a.tif", **options):
        tifffile.imwrite(tmp_path / name, pixels, **options)
        return tmp_path / name

    return write


def noise(dtype, shape, low, high):
    fractions = np.random.default_rng(0).uniform(0, 1, shape)
    return (low + fractions * (float(high) - low)).astype(dtype)


def scaled(values, low, high):
    """The definition, as three channels."""
    levels = np.rint(((values.astype(np.float64) - low) / (high - low)).clip(0, 1) * 255).astype(np.uint8)
    return np.broadcast_to(levels.reshape(*levels.shape[:2], -1), (*levels.shape[:2], 3))


def all_ways(path, options=AS_IT_IS):
    """The image in a file, as each reader gives it."""
    windows = open_windows(path, options)
    yield "read_image", read_image(path, options)
    yield "a file object", read_image(io.BytesIO(path.read_bytes()), options)
    yield "windows", np.concatenate([windows[:7, :], windows[7:, :]])
    yield "a folder of frames", open_video(path.parent, options)[0].image


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", RANGES)
def test_a_tiff_of_any_type_has_a_range(write, dtype, kind):
    low, high = RANGES[dtype]
    values = noise(dtype, (20, 30) if kind == "grey" else (20, 30, 3), low - (high - low) / 10, high)
    laid = values.transpose(2, 0, 1).copy() if kind == "planes" else values
    path = write(laid, **KINDS[kind])
    for way, image in all_ways(path, ImageOptions(value_range=(low, high))):
        np.testing.assert_array_equal(image, scaled(values, low, high), err_msg=way)
    exact = np.percentile(values.astype(float), (0.5, 99.5), method="nearest")
    for way, image in all_ways(path, ImageOptions(value_range="auto")):
        np.testing.assert_array_equal(image, scaled(values, *exact), err_msg=way)


@pytest.mark.parametrize("channels", [(), (3,)], ids=["grey", "RGB"])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_floats_from_0_to_1_need_no_range(write, dtype, channels):
    values = noise(dtype, (20, 30, *channels), 0, 1)
    path = write(values, photometric="rgb" if channels else "minisblack")
    for way, image in all_ways(path):
        assert np.abs(image - scaled(values, 0, 1).astype(int)).max() <= 1, way  # rounded in float32
        np.testing.assert_array_equal(image, read_image(values), err_msg=way)


@pytest.mark.parametrize("dtype", ["int16", "int32", "uint32"])
def test_16_bits_in_another_type_need_no_range(write, dtype):
    values = noise(dtype, (20, 30), 0, 32_000)
    for way, image in all_ways(write(values)):
        np.testing.assert_array_equal(image, scaled(values, 0, 65535), err_msg=way)


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "uint32", "float32", "float64"])
@pytest.mark.parametrize("open_it", [read_image, open_windows])
def test_values_without_a_natural_range_are_refused_with_what_they_are(write, dtype, open_it):
    low, high = (-100, 100) if dtype != "uint32" else (2**17, 2**18)
    values = noise(dtype, (20, 30), low, high)
    values[0, :2] = low, high
    with pytest.raises(ImageError, match=rf"range from {low} to {high}: .*value_range=\({low}, {high:g}\) or"):
        open_it(write(values))


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("planes", ["contig", "separate"])
@pytest.mark.parametrize("count", [2, 5, 8])
def test_bands_of_a_tiff_are_chosen(write, dtype, planes, count):
    values = noise(dtype, (20, 30, count), 0, RANGES[dtype][1])
    laid = values if planes == "contig" else values.transpose(2, 0, 1).copy()
    path = write(laid, photometric="minisblack", planarconfig=planes)
    options = ImageOptions(bands=(count - 1, 0, 1), value_range=(0, 180))
    for way, image in all_ways(path, options):
        np.testing.assert_array_equal(image, scaled(values[..., [count - 1, 0, 1]], 0, 180), err_msg=way)
    for open_it in (read_image, open_windows):
        with pytest.raises(ImageError, match=rf"does not say which of its {count} bands are red, green and blue"):
            open_it(path)
        with pytest.raises(ImageError, match=rf"no band {count}: .* has the axes .* bands 0 to {count - 1}"):
            open_it(path, ImageOptions(bands=count))


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_bands_beside_colours_are_left_out(write, dtype):
    values = noise(dtype, (20, 30, 5), 0, np.iinfo(dtype).max)
    path = write(values, photometric="rgb", extrasamples=["unspecified"] * 2)
    for way, image in all_ways(path):
        np.testing.assert_array_equal(image, scaled(values[..., :3], 0, np.iinfo(dtype).max), err_msg=way)
    for way, image in all_ways(path, ImageOptions(bands=4)):
        np.testing.assert_array_equal(image, scaled(values[..., 4], 0, np.iinfo(dtype).max), err_msg=way)


def test_pages_may_be_bands(write):
    values = noise("uint16", (4, 20, 30), 0, 65535)
    path = write(values, photometric="minisblack")
    for way, image in all_ways(path, ImageOptions(bands=2)):
        np.testing.assert_array_equal(image, scaled(values[2], 0, 65535), err_msg=way)
    for read in (read_image, lambda path: open_windows(path)[:, :]):
        with pytest.warns(
            ImageWarning, match=r"axes QYX and the shape \(4, 20, 30\): only its first page is read.*bands=number"
        ):
            np.testing.assert_array_equal(read(path), scaled(values[0], 0, 65535))


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
def test_what_gdal_marks_as_missing_is_not_counted(write, dtype):
    nodata = {"uint8": 255, "uint16": 65535, "int16": -32768, "float32": -3.4028234663852886e38}[dtype]
    values = noise(dtype, (20, 30), 50, 200)
    gaps = values.copy()
    gaps[5:10, 5:10] = nodata
    low, high = np.percentile(gaps[gaps != gaps[5, 5]].astype(float), (0.5, 99.5), method="nearest")
    expected = scaled(gaps, low, high).copy()
    expected[5:10, 5:10] = 0
    path = write(gaps, extratags=[(42113, "s", 0, str(nodata), True)])
    for way, image in all_ways(path, ImageOptions(value_range="auto")):
        np.testing.assert_array_equal(image, expected, err_msg=way)
    other = read_image(path, ImageOptions(value_range=(0, 300), nodata=values[0, 0].item()))
    assert other[0, 0, 0] == 0, "what the caller says counts"
    assert other[7, 7, 0] == (0 if nodata < 0 else scaled(gaps, 0, 300)[7, 7, 0])


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32"])
def test_0_may_be_white(write, dtype):
    white = np.iinfo(dtype).max
    values = noise(dtype, (20, 30), 0, white)
    path = write(values, photometric="miniswhite")
    options = ImageOptions(value_range=(0, white)) if dtype == "uint32" else AS_IT_IS
    for way, image in all_ways(path, options):
        np.testing.assert_array_equal(image, scaled(white - values, 0, white), err_msg=way)


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("channels", [(), (3,)], ids=["grey", "RGB"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_tiff_is_turned_upright(write, orientation, channels, dtype):
    places = Image.fromarray(np.arange(600, dtype=np.int32).reshape(20, 30))
    places.getexif()[274] = orientation
    white = np.iinfo(dtype).max
    values = noise(dtype, (20, 30, *channels), 0, white)
    expected = scaled(values.reshape(600, *channels)[np.asarray(ImageOps.exif_transpose(places))], 0, white)
    photometric = "rgb" if channels else "minisblack"
    path = write(values, photometric=photometric, extratags=[(274, "H", 1, orientation, True)])
    for way, image in all_ways(path):
        np.testing.assert_array_equal(image, expected, err_msg=way)


def test_pillows_limit_holds_for_tifffile_too(write, monkeypatch):
    path = write(noise("float64", (20, 30), 0, 1))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ImageError, match="would unpack to more pixels than Pillow's limit of 100"):
        read_image(path)
    assert read_image(path, any_size=True).shape == (20, 30, 3)


@pytest.mark.parametrize("open_it", [read_image, lambda *a: open_windows(*a)[:, :]], ids=["image", "windows"])
@pytest.mark.parametrize("dtype", RANGES)
def test_without_tifffile_values_are_right_or_refused(write, monkeypatch, dtype, open_it):
    low, high = RANGES[dtype]
    grey, rgb = (noise(dtype, shape, low, high) for shape in ((20, 30), (20, 30, 3)))
    paths = write(grey), write(rgb, "b.tif", photometric="rgb")
    monkeypatch.setitem(sys.modules, "tifffile", None)
    read_by_pillow = ("uint8", "uint16", "int16", "int32", "float32"), ("uint8",)
    for path, values, readable in zip(paths, (grey, rgb), read_by_pillow, strict=True):
        if dtype in readable:
            image = open_it(path, ImageOptions(value_range=(low, high)))
            np.testing.assert_array_equal(image, scaled(values, low, high))
        else:
            with pytest.raises(ImageError, match=r"tifffile is not installed: pip install masklet\[tiff\]"):
                open_it(path, ImageOptions(value_range=(low, high)))


@pytest.mark.filterwarnings("ignore")  # of Pillow
@pytest.mark.parametrize("open_it", [read_image, lambda *a: open_windows(*a)[:, :]], ids=["image", "windows"])
@pytest.mark.parametrize(
    "damage",
    [
        *({"size": size} for size in (8, 30, 100, 200, 2000)),
        *({tag: value} for tag in ("ImageWidth", "ImageLength") for value in (0, 2**31)),
        {"SamplesPerPixel": 0},
        {"BitsPerSample": (64, 64, 3)},
        {"StripOffsets": 2**31},
        {"RowsPerStrip": 0},
    ],
    ids=str,
)
def test_a_damaged_tiff_is_refused(write, damage, open_it):
    tifffile = pytest.importorskip("tifffile")
    path = write(noise("float64", (20, 30, 3), 0, 1000), photometric="rgb", compression="zlib")
    if "size" in damage:
        path.write_bytes(path.read_bytes()[: damage["size"]])
    else:
        ((tag, value),) = damage.items()
        with tifffile.TiffFile(path, mode="r+") as tiff:
            tiff.pages[0].tags[tag].overwrite(value)
    with pytest.raises(ImageError, match="a.tif"):
        open_it(path, ImageOptions(value_range=(0, 1000)))


LAYOUTS = {
    "photometric": st.sampled_from(["rgb", "minisblack", "miniswhite"]),
    "planarconfig": st.sampled_from(["contig", "separate"]),
    "compression": st.sampled_from(["zlib", "lzw"]),
    "tile": st.just((16, 16)),
    "byteorder": st.just(">"),
    "extratags": st.integers(1, 8).map(lambda orientation: [(274, "H", 1, orientation, True)]),
}


@pytest.mark.filterwarnings("ignore")  # what Pillow and tifffile say about odd files is not the subject
@given(
    dtype=st.sampled_from([*RANGES, "bool"]),
    shape=st.sampled_from([(9, 11), (9, 11, 2), (9, 11, 3), (9, 11, 4), (5, 9, 11), (2, 3, 9, 11), (600, 530)]),
    layout=st.fixed_dictionaries({}, optional=LAYOUTS),
    value_range=st.sampled_from([None, "auto", (-5, 300)]),
    bands=st.sampled_from([None, 0, (0, 1, 2), 4]),
    nodata=st.sampled_from([None, 0, -9999, float("nan")]),
)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_images_and_windows_read_and_refuse_the_same(write, dtype, shape, layout, value_range, bands, nodata):
    try:
        path = write(noise(dtype, shape, *RANGES.get(dtype, (0, 1))), **layout)
    except (ValueError, TypeError, RuntimeError):
        reject()  # there is no such TIFF
    options = ImageOptions(value_range=value_range, bands=bands, nodata=nodata)
    try:
        expected = read_image(path, options)
    except ImageError:
        with pytest.raises(ImageError):
            open_windows(path, options)[:, :]
    else:
        np.testing.assert_array_equal(open_windows(path, options)[:, :], expected)


# PNG


def png(pixels, colour_type):
    """A PNG of 16 bits a channel, which Pillow cannot write."""
    height, width = pixels.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


@pytest.mark.parametrize(("colour_type", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)], ids=["L", "RGB", "LA", "RGBA"])
@pytest.mark.parametrize("width", [1, 30])
def test_a_png_of_16_bits_has_all_of_them(tmp_path, colour_type, channels, width):
    values = noise("uint16", (20, width, channels), 100, 4095)
    has_alpha = channels in (2, 4)
    if has_alpha:
        values[..., -1] = 65535
        values[:3, :, -1] = 0
    path = tmp_path / "a.png"
    path.write_bytes(png(values, colour_type))
    expected = scaled(values[..., : channels - has_alpha], 100, 4095).copy()
    expected[: 3 if has_alpha else 0] = 255  # on white
    options = ImageOptions(value_range=(100, 4095))
    for way, image in all_ways(path, options):
        np.testing.assert_array_equal(image, expected, err_msg=way)
    with Image.open(path) as image:
        np.testing.assert_array_equal(read_image(image, options), expected)
        image.load()
    with pytest.warns(ImageWarning, match="the range of uint16"):
        dark = read_image(path)
    expected = np.rint(values[3:, :, : channels - has_alpha] / 257)
    np.testing.assert_array_equal(dark[3:], np.broadcast_to(expected, dark[3:].shape))


def test_a_truncated_png_of_16_bits_is_refused():
    content = png(noise("uint16", (60, 60, 3), 0, 65535), 2)
    with pytest.raises(ImageError, match="is truncated"):
        read_image(io.BytesIO(content[: len(content) // 2]))
