"""Large images, read in parts."""

import sys

import numpy as np
import PIL
import pytest
from PIL import Image

from masklet.errors import ImageError
from masklet.images import windows
from masklet.images.reading import read_image
from masklet.images.windows import open_windows

PLACE = np.s_[10:20, 30:50]


@pytest.fixture
def rgb():
    return np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8)


@pytest.fixture
def write(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    pytest.importorskip("zarr")

    def write(pixels, **options):
        path = tmp_path / "aerial é.tif"
        tifffile.imwrite(path, pixels, **options)
        return path

    return write


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"tile": (16, 16), "compression": "zlib"},
        {"tile": (16, 16), "compression": "lzw", "predictor": True},
        {"rowsperstrip": 7},
        {"compression": "zlib", "rowsperstrip": 60},
        {"bigtiff": True},
    ],
    ids=["plain", "tiles", "lzw", "strips", "one piece", "big"],
)
def test_a_window_of_a_tiff_is_part_of_the_image(write, rgb, options):
    opened = open_windows(write(rgb, photometric="rgb", **options))
    assert opened.size_hw == (60, 80)
    np.testing.assert_array_equal(opened[PLACE], rgb[PLACE])
    np.testing.assert_array_equal(opened[:, :], rgb)


@pytest.mark.parametrize("photometric", ["rgb", "ycbcr"])
def test_jpeg_tiles_have_the_colours_that_pillow_reads(write, photometric):
    x, y = np.mgrid[0:255:80j, 0:255:60j]
    smooth = np.stack([x, y, 255 - x], -1).astype(np.uint8).transpose(1, 0, 2)
    path = write(smooth, photometric=photometric, tile=(16, 16), compression="jpeg")
    with Image.open(path) as image:
        expected = np.asarray(image.convert("RGB"))
    window = open_windows(path)[PLACE]
    assert np.abs(window.astype(int) - expected[PLACE]).max() <= 8


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw"])
def test_ycbcr_without_jpeg_has_the_colours_that_pillow_reads(tmp_path, compression):
    pytest.importorskip("tifffile")
    if compression == "raw" and PIL.__version__ < "13":
        pytest.skip("Pillow 12 and earlier cannot read uncompressed YCbCr TIFFs, which they write")
    pixels = np.full((20, 30, 3), (200, 30, 60), np.uint8)
    path = tmp_path / "a.tif"
    Image.fromarray(pixels).convert("YCbCr").save(path, compression=compression)
    with Image.open(path) as image:
        expected = np.asarray(image.convert("RGB"))
    assert np.abs(expected.astype(int) - pixels).max() < 4
    np.testing.assert_array_equal(open_windows(path)[:, :], expected)


@pytest.mark.parametrize("planes", ["contig", "separate"])
@pytest.mark.parametrize("alpha", ["unassalpha", "assocalpha"])
@pytest.mark.parametrize("colours", [1, 3])
def test_transparent_pixels_lie_on_white_for_both_kinds_of_alpha(write, rgb, colours, alpha, planes):
    straight = np.dstack([rgb[..., :colours], np.tile(np.arange(80, dtype=np.uint8) * 3, (60, 1))])
    pixels = straight.copy()
    if alpha == "assocalpha":
        pixels[..., :-1] = pixels[..., :-1].astype(int) * pixels[..., -1:] // 255
    laid = pixels if planes == "contig" else pixels.transpose(2, 0, 1).copy()
    path = write(laid, photometric="rgb" if colours == 3 else "minisblack", extrasamples=[alpha], planarconfig=planes)
    pixels_read = open_windows(path)[:, :].astype(int)
    if planes == "contig" and (colours, alpha) != (1, "assocalpha"):  # Pillow cannot convert these
        assert np.abs(pixels_read - read_image(path)).max() <= 1
    opacity = straight[..., -1:] / 255
    assert np.abs(pixels_read - straight[..., :-1] * opacity - 255 * (1 - opacity)).max() <= 2


def test_a_tiff_is_recognised_by_its_content(write, rgb):
    path = write(rgb, photometric="rgb", tile=(16, 16), compression="zlib")
    path = path.rename(path.with_suffix(".png"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(windows, "read_image", lambda *_, **__: pytest.fail("the whole image was read"))
        np.testing.assert_array_equal(open_windows(path)[PLACE], rgb[PLACE])
    Image.fromarray(rgb).save(path.with_suffix(".tif"), format="PNG")
    np.testing.assert_array_equal(open_windows(path.with_suffix(".tif"))[PLACE], rgb[PLACE])


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp"])
def test_windows_may_exceed_pillows_limit(rgb, tmp_path, monkeypatch, suffix):
    path = tmp_path / f"large{suffix}"
    Image.fromarray(rgb).save(path)
    expected = read_image(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    np.testing.assert_array_equal(open_windows(path)[:, :], expected)
    with path.open("rb") as file:
        np.testing.assert_array_equal(open_windows(file)[:, :], expected)
        assert not file.closed
    assert Image.MAX_IMAGE_PIXELS == 100
    with pytest.raises(ImageError, match="more pixels than Pillow's limit"):
        read_image(path)
    path.write_bytes(b"no image at all")
    with pytest.raises(ImageError, match="is not an image that Pillow can read"):
        open_windows(path)


def test_the_error_for_a_large_tiff_names_the_missing_package(write, rgb, monkeypatch):
    path = write(rgb, photometric="rgb")
    monkeypatch.setitem(sys.modules, "tifffile", None)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ImageError, match=r"tifffile, which reads .*, is not installed: pip install masklet\[tiff\]"):
        open_windows(path)


def test_channels_may_be_first_and_infrared_is_left_out(write, rgb):
    planes = write(rgb.transpose(2, 0, 1), photometric="rgb", planarconfig="separate")
    np.testing.assert_array_equal(open_windows(planes)[PLACE], rgb[PLACE])
    infrared = write(np.dstack([rgb, rgb[..., 0]]), photometric="rgb", extrasamples=["unspecified"])
    np.testing.assert_array_equal(open_windows(infrared)[PLACE], rgb[PLACE])


@pytest.mark.parametrize("kind", ["grey", "16 bits", "big endian", "transparent", "float"])
def test_pixels_equal_those_of_read_image(write, rgb, kind):
    pixels = {
        "grey": rgb[..., 0],
        "16 bits": rgb[..., 0].astype(np.uint16) * 250,
        "big endian": rgb[..., 0].astype(">u2") * 250,
        "transparent": np.dstack([rgb, rgb[..., 0]]),
        "float": (rgb[..., 0] / 255).astype(np.float32),
    }[kind]
    options = {
        "transparent": {"photometric": "rgb", "extrasamples": ["unassalpha"]},
        "big endian": {"byteorder": ">"},
    }.get(kind, {})
    np.testing.assert_array_equal(open_windows(write(pixels, **options))[PLACE], read_image(pixels)[PLACE])


def test_nothing_outside_the_window_is_read(write, rgb, monkeypatch):
    path = write(rgb, photometric="rgb", tile=(16, 16))
    monkeypatch.setattr(windows, "read_image", lambda *_: pytest.fail("the whole image was read"))
    shapes = []
    monkeypatch.setattr(windows, "to_rgb8", lambda pixels, options: shapes.append(pixels.shape))
    open_windows(path)[PLACE]
    assert shapes == [(1, 1, 3), (10, 20, 3)]


def test_an_uncompressed_tiff_is_mapped_and_a_single_chunk_is_decoded_once(write, rgb, monkeypatch):
    mapped, memmap = [], np.memmap
    monkeypatch.setattr(np, "memmap", lambda *a, **kw: mapped.append(1) or memmap(*a, **kw))
    open_windows(write(rgb, photometric="rgb"))[PLACE]
    assert len(mapped) == 2
    opened = open_windows(write(rgb, photometric="rgb", compression="zlib", rowsperstrip=60))
    monkeypatch.setattr("zlib.decompress", lambda *_: pytest.fail("it was decoded again"))
    opened[PLACE]


def test_pillow_reads_a_tiff_that_is_rotated_or_has_a_palette(write, rgb, tmp_path):
    turned = write(rgb, photometric="rgb", extratags=[(274, "H", 1, 6, True)])
    np.testing.assert_array_equal(open_windows(turned)[:, :], np.rot90(rgb, -1))
    Image.fromarray(rgb).quantize(8).save(tmp_path / "palette.tif")
    np.testing.assert_array_equal(open_windows(tmp_path / "palette.tif")[:, :], read_image(tmp_path / "palette.tif"))


def test_without_tifffile_pillow_reads_it(write, rgb, monkeypatch):
    path = write(rgb, photometric="rgb")
    monkeypatch.setitem(sys.modules, "tifffile", None)
    np.testing.assert_array_equal(open_windows(path)[PLACE], rgb[PLACE])


def test_arrays_and_other_files_have_windows(rgb, tmp_path):
    np.save(tmp_path / "a.npy", rgb)
    Image.fromarray(rgb).save(tmp_path / "a.png")
    for source in (rgb, np.load(tmp_path / "a.npy", mmap_mode="r"), tmp_path / "a.png", Image.fromarray(rgb)):
        np.testing.assert_array_equal(open_windows(source)[PLACE], rgb[PLACE])


def test_what_is_not_an_image_is_refused_on_opening(rgb, tmp_path):
    stack = tmp_path / "a.tif"
    with pytest.raises(ImageError, match="there is no image at .*none.tif"):
        open_windows(tmp_path / "none.tif")
    stack.write_bytes(b"no image")
    with pytest.raises(ImageError, match="is not an image that Pillow can read"):
        open_windows(stack)
    stack.write_bytes(b"II*\0 and no more")
    with pytest.raises(ImageError, match="is damaged, or in a format"):
        open_windows(stack)
    with pytest.raises(ImageError, match="is not an image"):
        open_windows(rgb[..., 0, 0])
    with pytest.raises(ImageError, match="is not an image"):
        open_windows(np.zeros((4, 4, 7), np.uint8))
