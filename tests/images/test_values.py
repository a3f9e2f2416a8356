"""Ranges, bands and missing values: every type of values, through images, windows and videos alike."""

import io
import warnings

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays, from_dtype
from PIL import Image

from masklet.errors import ImageError, ImageWarning
from masklet.images.options import ImageOptions
from masklet.images.reading import read_image
from masklet.images.windows import open_windows
from masklet.video.frames import open_video

RANGES = {  # type: a range, with values on both sides of it
    "uint8": (20, 200),
    "uint16": (100, 4095),
    "uint32": (70_000, 3_000_000),
    "uint64": (2**60, 2**62),
    "int8": (-100, 90),
    "int16": (-160, 240),  # soft tissue in CT
    "int32": (-70_000, 3_000_000),
    "int64": (-(2**40), 2**40),
    "float16": (-3, 0.5),
    "float32": (0.001, 0.06),
    "float64": (-1e300, 1e300),
    ">u2": (100, 4095),
    ">i2": (-160, 240),
    ">f4": (0.001, 0.06),
}
CHANNELS = {"grey": (), "one channel": (1,), "RGB": (3,)}


def values_around(value_range, dtype, shape):
    """From below the range to above it, as far as the type can hold them."""
    low, high = value_range
    fractions = np.random.default_rng(0).uniform(-0.2, 1.2, shape)
    values = low + fractions * (float(high) - low)
    if np.dtype(dtype).kind in "iu":
        limits = np.iinfo(dtype)
        return values.clip(limits.min, limits.max * (1 - 1e-9)).astype(dtype)
    return values.astype(dtype)


def scaled(values, low, high):
    """The definition, in float64, as three channels."""
    levels = np.rint(((values.astype(np.float64) - low) / (high - low)).clip(0, 1) * 255).astype(np.uint8)
    return np.broadcast_to(levels.reshape(*levels.shape[:2], -1), (*levels.shape[:2], 3))


def all_ways(array, options):
    """The image as each reader gives it."""
    height, width = array.shape[:2]
    windows = open_windows(array, options)
    top, left = height // 2, width // 3
    corners = [
        [windows[:top, :left], windows[:top, left:]],
        [windows[top:, :left], windows[top:, left:]],
    ]
    yield "read_image", read_image(array, options)
    yield "windows", np.concatenate([np.concatenate(row, axis=1) for row in corners])
    yield "a list of frames", open_video([array, array], options)[1].image
    yield "an iterator", next(iter(open_video(iter([array]), options))).image
    if array.ndim == 3 and array.dtype.isnative:
        yield "a tensor", read_image(torch.from_numpy(np.moveaxis(array, 2, 0).copy()), options)


@pytest.mark.parametrize("channels", CHANNELS.values(), ids=CHANNELS)
@pytest.mark.parametrize("dtype", RANGES)
def test_low_is_black_and_high_is_white_for_every_type(dtype, channels):
    low, high = RANGES[dtype]
    values = values_around((low, high), dtype, (12, 15, *channels))
    for way, image in all_ways(values, ImageOptions(value_range=(low, high))):
        np.testing.assert_array_equal(image, scaled(values, low, high), err_msg=way)
        assert (image.min(), image.max()) == (0, 255)


@pytest.mark.parametrize("dtype", RANGES)
def test_auto_is_the_range_between_two_percentiles_for_every_type(dtype):
    values = values_around(RANGES[dtype], dtype, (40, 50, 3))
    low, high = np.percentile(values.astype(np.float64), (0.5, 99.5), method="nearest")
    for way, image in all_ways(values, ImageOptions(value_range="auto")):
        np.testing.assert_array_equal(image, scaled(values, low, high), err_msg=way)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "float16", "float32"])
def test_a_large_image_has_the_values_of_a_small_one(dtype):
    """Small types are looked up in a table, others computed in parts."""
    low, high = RANGES[dtype]
    values = values_around((low, high), dtype, (600, 700))
    image = read_image(values, ImageOptions(value_range=(low, high)))
    np.testing.assert_array_equal(image, scaled(values, low, high))


@pytest.mark.parametrize("options", [{"value_range": (1000, 50_000)}, {"nodata": 3}, {"value_range": "auto"}])
@pytest.mark.parametrize(("dtype", "white"), [("uint8", 255), ("uint16", 65535), ("float32", 1)])
def test_transparency_keeps_the_range_of_its_type(dtype, white, options):
    scale = white / 65535
    rgba = (np.random.default_rng(0).integers(0, 65535, (20, 30, 4)) * scale).astype(dtype)
    if isinstance(options.get("value_range"), tuple):
        options = {"value_range": tuple(one * scale for one in options["value_range"])}
    colours = read_image(rgba[..., :3], ImageOptions(**options)).astype(float)
    alpha = rgba[..., 3:].astype(float) / white
    expected = colours * alpha + 255 * (1 - alpha)
    for way, image in all_ways(rgba, ImageOptions(**options)):
        np.testing.assert_allclose(image, expected, atol=1.01, err_msg=way)


def test_transparency_that_cannot_be_read_names_the_way_out():
    satellite = np.full((5, 6, 4), -9, np.int16)
    with pytest.raises(ImageError, match=r"the fourth channel (is|cannot be) read as transparency.*bands=\(0, 1, 2\)"):
        read_image(satellite, ImageOptions(value_range=(0, 3000)))
    assert read_image(satellite, ImageOptions(value_range=(-9, 3000), bands=(0, 1, 2))).max() == 0


def test_true_and_false_have_a_range_too():
    values = np.array([[True, False]])
    for value_range in [(0, 1), "auto"]:
        image = read_image(values, ImageOptions(value_range=value_range))
        np.testing.assert_array_equal(image, [[[255] * 3, [0] * 3]])


def test_bfloat16_has_a_range():
    tensor = torch.tensor([[[-2.0, 0.0, 2.0]]], dtype=torch.bfloat16)
    image = read_image(tensor, ImageOptions(value_range=(-2, 2)))
    np.testing.assert_array_equal(image[0, :, 0], [0, 128, 255])


@pytest.mark.parametrize(
    "view",
    [
        lambda a: np.asfortranarray(a),
        lambda a: np.repeat(a, 2, axis=0)[::2],
        lambda a: np.flip(np.flip(a, 1).copy(), 1),
        lambda a: np.broadcast_to(a, a.shape),
        lambda a: a.astype(a.dtype.newbyteorder()),
    ],
    ids=["Fortran", "strided", "flipped", "read-only", "other byte order"],
)
@pytest.mark.parametrize("side", [9, 300])
def test_the_layout_in_memory_does_not_matter(view, side):
    values = values_around((100, 4095), "uint16", (side, side, 3))
    for value_range in [(100, 4095), "auto"]:
        options = ImageOptions(value_range=value_range)
        np.testing.assert_array_equal(read_image(view(values), options), read_image(values, options))


pixels = st.sampled_from(["uint8", "int16", "uint32", "int64", "float16", "float32", "float64"]).flatmap(
    lambda dtype: arrays(dtype, array_shapes(min_dims=2, max_dims=2, max_side=6), elements=from_dtype(np.dtype(dtype)))
)


@pytest.mark.filterwarnings("ignore::masklet.errors.ImageWarning")
@given(
    pixels,
    st.just("auto") | st.tuples(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6)).filter(lambda r: r[0] < r[1]),
)
def test_brighter_values_are_never_darker_and_missing_ones_black(values, value_range):
    if value_range == "auto":  # others are too far from each other for any range
        assume(not (np.isfinite(values) & (np.abs(values.astype(float)) > 1e300)).any())
    image = read_image(values, ImageOptions(value_range=value_range))[..., 0].ravel()
    order = np.argsort(values.ravel(), kind="stable")
    if values.dtype.kind == "f":
        assert not image[np.isnan(values.ravel())].any()
        order = order[: np.count_nonzero(~np.isnan(values))]
    assert (np.diff(image[order].astype(int)) >= 0).all()
    if value_range == "auto":
        finite = values[np.isfinite(values)].astype(float)
        if finite.size and finite.min() < finite.max():
            assert (image[order[0]], image[order[-1]]) == (0, 255)


@pytest.mark.parametrize("dtype", ["uint16", "int16", "float32"])
def test_windows_have_the_range_of_the_whole_image(dtype):
    """Its brightness changes from place to place, so a window on its own would have another range."""
    rows, columns = np.mgrid[0:700, 0:900]
    values = (rows * 3 + columns + np.random.default_rng(0).integers(0, 300, rows.shape)).astype(dtype)
    options = ImageOptions(value_range="auto")
    whole, windows = read_image(values, options), open_windows(values, options)
    for place in (np.s_[0:100, 0:100], np.s_[600:700, 800:900], np.s_[300:364, :], np.s_[:, :]):
        np.testing.assert_array_equal(windows[place], whole[place])
    assert windows[0:100, 0:100].max() < 60
    assert whole.max() == 255


def test_frames_share_one_range():
    frames = [np.full((4, 5), value, np.uint16) + np.arange(5, dtype=np.uint16) for value in (0, 500, 2000)]
    low, high = np.percentile(np.concatenate(frames).astype(float), (0.5, 99.5), method="nearest")
    video = open_video(frames, ImageOptions(value_range="auto"))
    for frame, values in zip(video, frames, strict=True):
        np.testing.assert_array_equal(frame.image, scaled(values, low, high))
    assert video.image_options == ImageOptions(value_range=(low, high))


def test_frames_of_an_iterator_have_the_range_of_the_first():
    frames = [np.arange(20, dtype=np.uint16).reshape(4, 5) * factor for factor in (10, 20)]
    images = [frame.image for frame in open_video(iter(frames), ImageOptions(value_range="auto"))]
    for image, values in zip(images, frames, strict=True):
        np.testing.assert_array_equal(image, scaled(values, 0, 190))


# Missing values


def test_missing_values_are_black_and_not_counted():
    values = np.linspace(100, 200, 2000).reshape(40, 50)
    with_gaps = values.copy()
    with_gaps[10:20, 30:50] = -9999
    nan = np.where(with_gaps == -9999, np.nan, with_gaps)
    valid = with_gaps[with_gaps > 0]
    low, high = np.percentile(valid, (0.5, 99.5), method="nearest")
    expected = scaled(with_gaps, low, high)
    for dtype in ("float64", "float32", "int16"):
        exact = with_gaps.astype(dtype)
        bounds = np.percentile(exact[exact > 0].astype(float), (0.5, 99.5), method="nearest")
        for way, image in all_ways(exact, ImageOptions(value_range="auto", nodata=-9999)):
            np.testing.assert_array_equal(image, scaled(exact, *bounds), err_msg=f"{way} {dtype}")
    for options in ({"nodata": float("nan")}, {"nodata": -1}, {}):
        for way, image in all_ways(nan, ImageOptions(value_range="auto", **options)):
            np.testing.assert_array_equal(image, expected, err_msg=way)


@pytest.mark.parametrize(
    ("values", "nodata"),
    [
        (np.array([[0, 7, 255]], np.uint8), 7),
        (np.array([[0, 7, 65535]], np.uint16), 7),
        (np.array([[0, 2.5, 1]]), 2.5),
        (np.array([[0, np.nan, 1]], np.float32), np.nan),
        (np.array([[0, np.nan, 1]], np.float32), -9999),
        (np.array([[0, -3.4028234663852886e38, 1]], np.float32), -3.402823466e38),
        (np.array([[False, False, True]]), 0),
    ],
)
def test_without_a_range_missing_values_are_black_and_others_as_they_are(values, nodata):
    image = read_image(values, ImageOptions(nodata=nodata))
    np.testing.assert_array_equal(image[0, :, 0], [0, 0, 255])


@pytest.mark.parametrize(
    ("dtype", "nodata"),
    [("uint16", -9999), ("uint8", 256), ("int16", 0.5), ("uint8", float("nan")), ("int64", 2**63), ("uint16", np.inf)],
)
def test_a_missing_value_that_cannot_occur_is_refused(dtype, nodata):
    for options in ({}, {"value_range": (0, 1)}, {"value_range": "auto"}):
        with pytest.raises(ImageError, match=f"nodata is .*, but the image is {dtype}, which cannot hold"):
            read_image(np.zeros((4, 5), dtype), ImageOptions(nodata=nodata, **options))


def test_infinite_values_are_clipped():
    values = np.array([[-np.inf, 0, 1, 2, np.inf]])
    np.testing.assert_array_equal(read_image(values, ImageOptions(value_range=(0, 2)))[0, :, 0], [0, 0, 128, 255, 255])
    np.testing.assert_array_equal(read_image(values, ImageOptions(value_range="auto"))[0, :, 0], [0, 0, 128, 255, 255])


def test_masked_values_are_refused_since_they_would_count():
    masked = np.ma.masked_equal(np.array([[1, 2, 3]], np.uint8), 2)
    for read in (read_image, open_windows):
        with pytest.raises(ImageError, match=r"are masked: .*pixels.filled\(0\) with nodata=0"):
            read(masked)
    np.testing.assert_array_equal(read_image(masked[:, :1]), [[[1, 1, 1]]])


# Bands


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 8, 13])
def test_bands_become_red_green_and_blue(count):
    values = np.random.default_rng(0).integers(0, 256, (20, 30, count), np.uint8)
    bands = (count - 1, 0, count // 2)
    for way, image in all_ways(values, ImageOptions(bands=bands)):
        np.testing.assert_array_equal(image, values[..., bands], err_msg=way)
    for way, image in all_ways(values, ImageOptions(bands=count - 1)):
        np.testing.assert_array_equal(image, values[..., [count - 1] * 3], err_msg=way)


def test_auto_looks_at_the_selected_bands_only():
    values = np.random.default_rng(0).integers(0, 1000, (40, 50, 5)).astype(np.uint16)
    values[..., 1] = 60_000
    chosen = values[..., [4, 2, 0]]
    low, high = np.percentile(chosen.astype(float), (0.5, 99.5), method="nearest")
    image = read_image(values, ImageOptions(value_range="auto", bands=(4, 2, 0)))
    np.testing.assert_array_equal(image, scaled(chosen, low, high))


def test_a_file_has_bands_too(tmp_path):
    rgb = np.random.default_rng(0).integers(0, 256, (9, 8, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(rgb).save(file, "PNG")
    np.testing.assert_array_equal(read_image(file, ImageOptions(bands=(2, 1, 0))), rgb[..., ::-1])
    np.testing.assert_array_equal(read_image(Image.fromarray(rgb), ImageOptions(bands=1))[..., 0], rgb[..., 1])


@pytest.mark.parametrize("open_it", [read_image, open_windows])
@pytest.mark.parametrize(
    ("source", "bands", "message"),
    [
        (np.zeros((9, 8, 5), np.uint8), (0, 1, 5), r"no band 5: its shape is \(9, 8, 5\), so it has bands 0 to 4"),
        (np.zeros((9, 8), np.uint8), 1, r"no band 1: its shape is \(9, 8\), so it has band 0 only"),
        (np.zeros((9, 8, 5), np.uint8), None, r"select from 5 channels with bands=\(red, green, blue\)"),
        (np.zeros((5, 80, 90), np.uint8), (0, 1, 2), r"seems to have its channels first.*transpose\(1, 2, 0\)"),
        (torch.zeros(5, 9, 8), None, r"select from 5 channels with bands=\(red, green, blue\)"),
        (torch.zeros(80, 90, 5), (0, 1, 2), r"seems to have its channels last.*permute\(2, 0, 1\)"),
        (np.zeros((9, 8), complex), 0, "complex128 is not supported: expected integers, floats or bool"),
    ],
)
def test_bands_that_are_not_there_are_refused(open_it, source, bands, message):
    with pytest.raises(ImageError, match=message):
        open_it(source, ImageOptions(bands=bands))


# Warnings


def dark(dtype, brightest):
    return (np.random.default_rng(0).uniform(0, 1, (40, 50)) * brightest).astype(dtype)


DARK = {
    "10 bits": dark("uint16", 1023),
    "12 bits": dark("uint16", 4095),
    "14 bits": dark("uint16", 16383),
    "floats": dark("float32", 0.06),
    "bright, without contrast": dark("uint16", 900) + np.uint16(60_000),
}
NOT_DARK = {
    "8 bits": dark("uint8", 9),
    "15 bits": dark("uint16", 32767),
    "floats": dark("float64", 0.5),
    "one value": np.full((4, 5), 3, np.uint16),
    "bool": dark("float32", 0.4) > 0.2,
}


@pytest.mark.parametrize("values", DARK.values(), ids=DARK)
def test_values_that_take_little_of_their_range_warn_and_auto_mends_it(values):
    for read in (read_image, open_windows, lambda *a: open_video([values] * 2, *a[1:])):
        with pytest.warns(
            ImageWarning, match=r"which is .*% of the range of .*it has little contrast.*'auto'"
        ) as caught:
            read(values)
        assert [warning.filename for warning in caught] == [__file__], "it names the line that asked for the image"
        read(values, ImageOptions(value_range="auto"))


@pytest.mark.parametrize("values", NOT_DARK.values(), ids=NOT_DARK)
def test_other_values_do_not_warn(values):
    read_image(values)
    open_windows(values)


@pytest.mark.parametrize(("dtype", "brightest"), [("uint16", 4095), ("float32", 0.06)])
def test_a_fourth_band_that_makes_the_image_white_warns(dtype, brightest):
    satellite = np.stack([dark(dtype, brightest)] * 4, axis=2)
    for value_range in ((0, brightest), "auto"):
        with pytest.warns(
            ImageWarning, match=r"the fourth channel (is|cannot be) read as transparency.*bands=\(0, 1, 2\)"
        ):
            assert read_image(satellite, ImageOptions(value_range=value_range)).min() > 200
        read_image(satellite, ImageOptions(value_range=value_range, bands=(0, 1, 2)))


def test_a_range_that_shows_nothing_warns():
    with pytest.warns(ImageWarning, match=r"lie between 0 and 8, which is 0\.\d% of value_range, 0 to 4095"):
        read_image(dark("uint8", 9), ImageOptions(value_range=(0, 4095)))
    with pytest.warns(ImageWarning, match=r"which is 0\.0% of value_range, -160 to -50"):
        assert read_image(dark("int16", 900), ImageOptions(value_range=(-160, -50))).min() == 255


@pytest.mark.parametrize("values", [np.full((4, 5), 7, np.int16), np.full((4, 5), np.nan)])
def test_an_image_without_any_range_is_black_and_warns(values):
    with pytest.warns(ImageWarning, match="all values of the image are .*'auto' finds no range"):
        assert read_image(values, ImageOptions(value_range="auto")).max() == 0


@pytest.mark.parametrize("nodata", [-9999.0, 1e20, -3.4028234663852886e38])
def test_auto_warns_of_a_value_that_seems_to_stand_for_missing(nodata):
    values = dark("float64", 100)
    values[:4] = nodata
    with pytest.warns(ImageWarning, match=r"10\.0% of the values of the image are .*, far from .* give nodata="):
        assert np.ptp(read_image(values, ImageOptions(value_range="auto"))[4:]) < 10
    assert np.ptp(read_image(values, ImageOptions(value_range="auto", nodata=nodata))) == 255


def test_values_that_are_too_far_apart_are_refused():
    values = np.array([[-1.7e308, 1.7e308]])
    with pytest.raises(ImageError, match=r"reach from -1.7e\+308 to 1.7e\+308, too far apart for a range"):
        read_image(values, ImageOptions(value_range="auto"))


def test_an_image_that_is_mostly_background_keeps_its_objects():
    values = np.zeros((60, 60), np.uint16)
    values[10, 10:13] = 50, 100, 300
    image = read_image(values, ImageOptions(value_range="auto"))
    np.testing.assert_array_equal(image[10, 9:14, 0], [0, 42, 85, 255, 0])


def test_warnings_of_a_video_come_once():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert sum(1 for _ in open_video([DARK["12 bits"]] * 5)) == 5
    assert len(caught) == 1
