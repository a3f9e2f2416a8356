"""Frames of videos look like the same content does as an image."""

import io
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image, ImageOps

from masklet.errors import VideoError
from masklet.images.reading import read_image
from masklet.video.frames import open_video
from masklet.video.pixels import upright_pixels

RED_AND_BLUE_WEIGHTS = {"601": (0.299, 0.114), "709": (0.2126, 0.0722), "2020": (0.2627, 0.0593)}
NUMBERS = {"709": 1, "unspecified": 2, "reserved": 3, "601": 6, "ycgco": 8, "2020": 9, "ictcp": 14}
BLOCK = 8


def blocks_of_colours(height=32, width=48):
    """(height, width, 3) uint8: squares of random colours, whose insides survive a reduction of colour."""
    colours = np.random.default_rng(1).integers(0, 256, (height // BLOCK, width // BLOCK, 3), dtype=np.uint8)
    return colours.repeat(BLOCK, axis=0).repeat(BLOCK, axis=1)


def difference(one, other):
    """The largest one inside the squares."""
    height, width, _ = one.shape
    inside = np.zeros((height, width), bool)
    inside.reshape(height // BLOCK, BLOCK, width // BLOCK, BLOCK)[:, 2:-2, :, 2:-2] = True
    return np.abs(one.astype(int) - other)[inside].max()


def ycbcr(rgb, matrix, is_full, bits=8):
    """The planes by the formulas of ITU-T H.273."""
    red, green, blue = np.moveaxis(rgb / 255, -1, 0)
    if matrix == "ycgco":
        y, cb, cr = (red + 2 * green + blue) / 4, (2 * green - red - blue) / 4, (red - blue) / 2
    else:
        kr, kb = RED_AND_BLUE_WEIGHTS[matrix]
        y = kr * red + (1 - kr - kb) * green + kb * blue
        cb, cr = (blue - y) / (2 - 2 * kb), (red - y) / (2 - 2 * kr)
    unit, white = 2 ** (bits - 8), 2**bits - 1
    y = y * white if is_full else (16 + 219 * y) * unit
    scale = white if is_full else 224 * unit
    planes = [y, 128 * unit + scale * cb, 128 * unit + scale * cr]
    return [np.rint(plane).clip(0, white).astype("u1" if bits == 8 else "<u2") for plane in planes]


def frame_of(planes, pix_fmt, **tags):
    """A frame with these planes, of which the small ones are sampled."""
    frame = av.VideoFrame(planes[0].shape[1], planes[0].shape[0], pix_fmt)
    for plane, values in zip(frame.planes, planes, strict=True):
        values = values[:: len(values) // plane.height, :: values.shape[1] // plane.width]
        buffer = np.zeros((plane.height, plane.line_size // values.itemsize), values.dtype)
        buffer[:, : plane.width] = values
        plane.update(buffer)
    for tag, value in tags.items():
        setattr(frame, tag, value)
    return frame


def through_a_file(path, frames, codec, **options):
    """Write frames, and read them again."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, 25, options=options)
        stream.width, stream.height, stream.pix_fmt = frames[0].width, frames[0].height, frames[0].format.name
        for tag in ("colorspace", "color_range", "color_trc", "color_primaries"):
            setattr(stream, tag, getattr(frames[0], tag))
        for index, frame in enumerate(frames):
            frame.pts, frame.time_base = index, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return open_video(path)


@pytest.mark.parametrize("is_full", [False, True], ids=["limited", "full"])
@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv444p", "yuv420p10le"])
@pytest.mark.parametrize(
    ("matrix", "tag", "width"),
    [
        ("601", "601", 1280),
        ("709", "709", 48),
        ("2020", "2020", 48),
        ("601", "unspecified", 48),
        ("709", "unspecified", 1280),  # players take it for BT.709 above standard definition
    ],
)
def test_colours_are_those_of_the_tagged_or_usual_matrix(matrix, tag, width, pix_fmt, is_full, tmp_path):
    rgb = blocks_of_colours(width=width)
    planes = ycbcr(rgb, matrix, is_full, 10 if "10" in pix_fmt else 8)
    frame = frame_of(planes, pix_fmt, colorspace=NUMBERS[tag], color_range=2 if is_full else 1)
    video = through_a_file(tmp_path / "video.mkv", [frame], "ffv1")
    assert difference(video[0].image, rgb) <= 4


@pytest.mark.parametrize("is_full", [False, True])
def test_ycgco_is_converted(is_full):
    rgb = blocks_of_colours()
    frame = frame_of(ycbcr(rgb, "ycgco", is_full), "yuv444p", colorspace=8, color_range=2 if is_full else 1)
    assert difference(upright_pixels(frame), rgb) <= 2


@pytest.mark.parametrize("tag", ["reserved", "ictcp"])
def test_a_matrix_that_swscale_lacks_does_not_stop_a_video(tag):
    rgb = blocks_of_colours()
    frame = frame_of(ycbcr(rgb, "601", False), "yuv444p", colorspace=NUMBERS[tag], color_range=1)
    assert difference(upright_pixels(frame), rgb) <= 2


def test_tagged_limited_greyscale_is_stretched():
    grey = np.tile(np.arange(16, 236, dtype=np.uint8), (8, 1))
    expected = np.rint((np.arange(16, 236) - 16) / 219 * 255)
    shown = upright_pixels(frame_of([grey], "gray", color_range=1))
    assert np.abs(shown[0] - expected[:, None]).max() <= 1
    for color_range in (0, 2):  # FFmpeg takes untagged greyscale for full range
        np.testing.assert_array_equal(upright_pixels(frame_of([grey], "gray", color_range=color_range))[..., 0], grey)


@pytest.mark.parametrize(
    ("codec", "pix_fmt", "tolerance"), [("png", "rgba", 0), ("ffv1", "yuva420p", 4), ("prores_ks", "yuva444p10le", 8)]
)
def test_transparent_pixels_lie_on_white(codec, pix_fmt, tolerance, tmp_path):
    rgba = np.dstack([blocks_of_colours(), np.zeros((32, 48), np.uint8)])
    rgba[:16, :, 3], rgba[16:24, :, 3] = 255, 102
    frame = av.VideoFrame.from_ndarray(rgba, format="rgba").reformat(format=pix_fmt)
    frame.colorspace, frame.color_range = 6, 1
    video = through_a_file(tmp_path / "video.mov" if codec != "ffv1" else tmp_path / "video.mkv", [frame], codec)
    assert difference(video[0].image, read_image(Image.fromarray(rgba))) <= tolerance


def test_a_fourth_byte_that_is_never_set_is_no_alpha(tmp_path):
    rgba = np.dstack([blocks_of_colours(), np.zeros((32, 48), np.uint8)])  # as some screen recorders write AVI
    frame = av.VideoFrame.from_ndarray(rgba, format="rgba").reformat(format="bgra")
    video = through_a_file(tmp_path / "video.avi", [frame], "rawvideo")
    np.testing.assert_array_equal(video[0].image, blocks_of_colours())


def test_pixels_that_ffmpeg_cannot_convert_are_refused():
    for pix_fmt in ("rgbaf32le", "yaf32le"):
        try:
            frame = av.VideoFrame(16, 16, pix_fmt)
        except ValueError:  # an FFmpeg without this format
            continue
        with pytest.raises(VideoError, match=f"pixel format {pix_fmt} cannot be converted .* convert the video to yuv"):
            upright_pixels(frame)


# Metadata


@pytest.mark.parametrize("suffix", ["avi", "mov", "mkv"])
@pytest.mark.parametrize("orientation", [1, 5, 6, 7])
def test_frames_with_exif_are_read_upright(suffix, orientation, tmp_path):
    exif = Image.Exif()
    exif[271], exif[274] = "A camera", orientation
    file = io.BytesIO()
    Image.fromarray(blocks_of_colours()).save(file, "jpeg", quality=95, subsampling=0, exif=exif)
    with av.open(str(tmp_path / f"video.{suffix}"), "w") as container:
        stream = container.add_stream("mjpeg", 25)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuvj444p"
        for index in range(3):
            packet = av.Packet(file.getvalue())
            packet.stream, packet.pts, packet.dts, packet.time_base = stream, index, index, Fraction(1, 25)
            packet.is_keyframe = True
            container.mux(packet)
    video = open_video(tmp_path / f"video.{suffix}")
    shown = np.asarray(ImageOps.exif_transpose(Image.open(file)))
    assert len(video) == 3
    for frame in video:
        assert frame.image.shape == shown.shape
        assert np.abs(frame.image.astype(int) - shown).max() <= 3


# High dynamic range


def pq(nits):
    """The code of light in candela per square metre (SMPTE ST 2084)."""
    power = (nits / 10000) ** 0.1593017578125
    return ((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375


def hdr_frame(codes_rgb, trc):
    """Columns of these codes from 0 to 1, in 10 bits of BT.2020."""
    rgb = np.asarray(codes_rgb, float).repeat(16, axis=0)[None].repeat(16, axis=0) * 255
    tags = {"colorspace": 9, "color_range": 1, "color_trc": trc, "color_primaries": 9}
    return frame_of(ycbcr(rgb, "2020", False, 10), "yuv444p10le", **tags)


def columns(pixels):
    return pixels[8, 8::16].astype(int)


def srgb(light):
    return 255 * (1.055 * light ** (1 / 2.4) - 0.055)


def test_pq_is_mapped_to_standard_range(tmp_path):
    nits = [0.1, 5, 26, 80, 203, 400, 600, 1000, 4000]
    frame = hdr_frame([[pq(light)] * 3 for light in nits], 16)
    video = through_a_file(tmp_path / "video.mkv", [frame], "ffv1")
    shown = columns(video[0].image)
    assert np.ptp(shown, axis=1).max() <= 1, "grey stays grey"
    # Up to half of white, light keeps its relation to white, which is 203 candela per square metre (ITU-R BT.2408).
    np.testing.assert_allclose(shown[1:4, 0], [srgb(light / 203) for light in nits[1:4]], atol=2)
    assert (np.diff(shown[:8, 0]) > 0).all(), "highlights up to 1000 candela are distinct"
    assert shown[4, 0] > 215
    assert shown[7:, 0].tolist() == [255, 255]


def test_hlg_is_mapped_to_standard_range():
    # ITU-R BT.2408: 75 % is 203 candela per square metre, on a screen of 1000; 38 % is 26.
    shown = columns(upright_pixels(hdr_frame([[0.38] * 3, [0.75] * 3, [1.0] * 3], 18)))
    assert shown[0, 0] == pytest.approx(srgb(26 / 203), abs=3)
    pq_white = columns(upright_pixels(hdr_frame([[pq(203)] * 3], 16)))[0, 0]
    assert shown[1, 0] == pytest.approx(pq_white, abs=2)
    assert shown[2, 0] == 255


def test_hdr_colours_are_converted_to_those_of_screens():
    # 50 candela per square metre of the red, green and blue of BT.709, in BT.2020 (ITU-R BT.2087, table of M2).
    in_bt2020 = np.array([[0.6274, 0.0691, 0.0164], [0.3293, 0.9195, 0.0880], [0.0433, 0.0114, 0.8956]])
    shown = columns(upright_pixels(hdr_frame(pq(50 * in_bt2020), 16)))
    np.testing.assert_allclose(np.diag(shown), srgb(50 / 203), atol=3)
    assert shown[~np.eye(3, dtype=bool)].max() < 25


# Interlaced video


def scene(moment, size_hw=(96, 128)):
    """Something that moves over a still background with thin lines."""
    y, x = np.mgrid[: size_hw[0], : size_hw[1]]
    image = np.stack([60 + 40 * np.sin(x / 9), 80 + 30 * np.sin(y / 7), 90 + 0 * x], axis=-1)
    image[20], image[70:72] = 250, 10
    image[30:80, 20 + 6 * moment : 50 + 6 * moment] = (220, 60, 30)
    return image.astype(np.uint8)


def interlaced(top, bottom):
    """The even rows of one image and the odd rows of another, whose colours are not mixed."""
    fields = [av.VideoFrame.from_ndarray(np.ascontiguousarray(rows)) for rows in (top[::2], bottom[1::2])]
    frame = av.VideoFrame(top.shape[1], top.shape[0], "yuv420p")
    for plane, *halves in zip(
        frame.planes, *(field.reformat(format="yuv420p").planes for field in fields), strict=True
    ):
        buffer = np.zeros((plane.height, plane.line_size), np.uint8)
        for parity, half in enumerate(halves):
            buffer[parity::2, : plane.width] = np.frombuffer(half, np.uint8).reshape(half.height, -1)[:, : plane.width]
        plane.update(buffer)
    return frame


def error(image, expected):
    return np.abs(image.astype(int) - expected).mean()


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("video.mp4", "libx264", {"x264-params": "tff=1", "qp": "4"}),
        ("video.mpg", "mpeg2video", {"flags": "+ildct+ilme", "qmin": "1", "qmax": "1"}),
    ],
)
def test_interlaced_frames_have_no_combs(name, codec, options, tmp_path):
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV has no {codec}")
    moments = range(0, 8, 2)
    frames = [interlaced(scene(moment), scene(moment + 1)) for moment in moments]
    video = through_a_file(tmp_path / name, frames, codec, **options)
    for frame, moment in zip(video, moments, strict=True):
        # The pixels that only one of the two moments shows as red, where rows would alternate.
        comb = (scene(moment) != scene(moment + 1)).any(-1)[32:78]
        assert error(frame.image[32:78][comb], scene(moment)[32:78][comb]) < 8
        np.testing.assert_array_equal(frame.image, video[frame.index].image)


def test_what_does_not_move_keeps_all_rows_of_an_interlaced_frame(tmp_path):
    options = {"x264-params": "tff=1", "qp": "4"}
    still = scene(0)
    flagged = through_a_file(tmp_path / "a.mp4", [interlaced(still, still)] * 2, "libx264", **options)[1].image
    assert error(flagged, still) < 4
    assert np.abs(flagged[20].astype(int) - still[20]).mean() < 12  # the thin line
    assert np.abs(flagged[[19, 21]].astype(int) - still[[19, 21]]).mean() < 20


def test_progressive_frames_are_not_deinterlaced():
    stripes = np.zeros((32, 48, 3), np.uint8)
    stripes[::2] = 255
    frame = av.VideoFrame.from_ndarray(stripes)
    np.testing.assert_array_equal(upright_pixels(frame), stripes)
