"""Image files and arrays as videos: TIFF stacks, animations, single images."""

import re
import sys
import warnings

import av
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image, ImageDraw

from masklet.errors import ImageWarning, VideoError
from masklet.images.options import ImageOptions
from masklet.images.reading import read_image
from masklet.video import stacks
from masklet.video.frames import VideoWarning, open_video
from masklet.video.pixels import upright_pixels

COUNT, HEIGHT, WIDTH = 7, 20, 30
MILLISECONDS = (40, 260, 40, 660, 40, 120)


@pytest.fixture(scope="module")
def grey():
    """(frames, height, width) uint8."""
    return np.random.default_rng(0).integers(0, 256, (COUNT, HEIGHT, WIDTH), dtype=np.uint8)


@pytest.fixture(scope="module")
def colour():
    """(frames, height, width, 3) uint8."""
    return np.random.default_rng(1).integers(0, 256, (COUNT, HEIGHT, WIDTH, 3), dtype=np.uint8)


@pytest.fixture
def without_tifffile(monkeypatch):
    monkeypatch.setitem(sys.modules, "tifffile", None)


def as_rgb(grey):
    return np.repeat(grey[..., None], 3, axis=-1)


def assert_frames(video, expected, tolerance=0):
    """In order, one by one, backward and every third."""
    assert (len(video), video.size_hw) == (len(expected), expected[0].shape[:2])
    numbers = range(len(expected))
    for wanted in (numbers, numbers[::-1], numbers[::3]):
        frames = list(video.frames(wanted[0], step=wanted.step))
        assert [frame.index for frame in frames] == list(wanted)
        for frame in frames:
            assert np.abs(frame.image.astype(int) - expected[frame.index]).max() <= tolerance
    for index in (len(expected) - 1, 0, len(expected) // 2):
        assert np.abs(video[index].image.astype(int) - expected[index]).max() <= tolerance


def save_all(path, images, **options):
    first, *others = [image if isinstance(image, Image.Image) else Image.fromarray(image) for image in images]
    first.save(path, save_all=True, append_images=others, **options)
    return path


# TIFF


@pytest.mark.parametrize(
    "options",
    [{}, {"compression": "lzw"}, {"compression": "zlib", "predictor": True}, {"bigtiff": True}, {"byteorder": ">"}],
    ids=str,
)
def test_all_pages_of_a_tiff_are_frames(options, grey, colour, tmp_path):
    tifffile.imwrite(tmp_path / "grey.tif", grey, photometric="minisblack", **options)
    tifffile.imwrite(tmp_path / "colour.tif", colour, photometric="rgb", **options)
    assert_frames(open_video(tmp_path / "grey.tif"), as_rgb(grey))
    assert_frames(open_video(tmp_path / "colour.tif"), colour)


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate"])
def test_pages_are_read_by_pillow_without_tifffile(compression, grey, tmp_path, without_tifffile):
    assert_frames(open_video(save_all(tmp_path / "a.tif", grey, compression=compression)), as_rgb(grey))
    sixteen = save_all(tmp_path / "b.tif", grey.astype(np.uint16) * 257, compression=compression)
    assert_frames(open_video(sixteen), as_rgb(grey))


@pytest.mark.parametrize(
    ("dtype", "white"), [("uint16", 65535), (">u2", 65535), ("float32", 1.0), ("float64", 1.0), ("bool", True)]
)
def test_values_of_stacks_have_the_range_of_their_type(dtype, white, grey, tmp_path):
    levels = np.where(grey > 127, 255, 0) if dtype == "bool" else grey
    values = (levels / 255 * white).round() if "u" in dtype else levels / 255 * white
    tifffile.imwrite(
        tmp_path / "a.tif", values.astype(dtype), byteorder=">" if ">" in dtype else "<", photometric="minisblack"
    )
    assert_frames(open_video(tmp_path / "a.tif"), as_rgb(levels))
    assert_frames(open_video(values.astype(dtype)), as_rgb(levels))


@pytest.mark.parametrize(
    ("shape", "axes", "bands"),
    [
        ((7, 20, 30), "ZYX", None),
        ((7, 20, 30), "TYX", None),
        ((7, 3, 20, 30), "TCYX", None),
        ((7, 2, 20, 30), "TCYX", 1),
        ((7, 5, 20, 30), "ZCYX", (4, 0, 2)),
        ((7, 20, 30, 3), "TYXS", None),
    ],
)
def test_an_image_j_stack_goes_along_its_time_or_depth(shape, axes, bands, tmp_path):
    values = np.random.default_rng(2).integers(0, 256, shape, dtype=np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", values, imagej=True, metadata={"axes": axes})
    frames = np.moveaxis(values, 1, -1) if "C" in axes else values
    frames = frames[..., bands] if bands is not None else frames
    frames = as_rgb(frames) if frames.ndim == 3 else frames
    assert_frames(open_video(tmp_path / "a.tif", ImageOptions(bands=bands)), frames)


def test_ome_channels_before_the_time_are_bands(grey, tmp_path):
    values = np.stack([grey, 255 - grey])
    tifffile.imwrite(tmp_path / "a.ome.tif", values, metadata={"axes": "CTYX"}, compression="zlib", tile=(16, 16))
    assert_frames(open_video(tmp_path / "a.ome.tif", ImageOptions(bands=1)), as_rgb(255 - grey))


def test_a_stack_along_two_axes_is_refused(grey, tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", grey[:6].reshape(2, 3, HEIGHT, WIDTH), imagej=True, metadata={"axes": "TZYX"})
    with pytest.raises(
        VideoError, match=r"has the axes TZYX and the shape \(2, 3, 20, 30\), but a video goes along one of T, Z: sel"
    ):
        open_video(tmp_path / "a.tif")


def test_previews_and_levels_of_a_pyramid_are_no_frames(grey, tmp_path):
    with tifffile.TiffWriter(tmp_path / "preview.tif") as tiff:
        tiff.write(grey, photometric="minisblack")
        tiff.write(grey[0, :10, :15], subfiletype=1, photometric="minisblack")
    assert_frames(open_video(tmp_path / "preview.tif"), as_rgb(grey))
    large = grey.repeat(4, axis=1).repeat(4, axis=2)
    with tifffile.TiffWriter(tmp_path / "pyramid.tif") as tiff:
        tiff.write(large, subifds=1, tile=(16, 16), photometric="minisblack")
        tiff.write(large[:, ::2, ::2], subfiletype=1, tile=(16, 16), photometric="minisblack")
    assert_frames(open_video(tmp_path / "pyramid.tif"), as_rgb(large))


def test_previews_are_no_frames_without_tifffile(grey, tmp_path, without_tifffile, monkeypatch):
    monkeypatch.delitem(sys.modules, "tifffile")
    test_previews_and_levels_of_a_pyramid_are_no_frames(grey, tmp_path)
    monkeypatch.setitem(sys.modules, "tifffile", None)
    assert_frames(open_video(tmp_path / "preview.tif"), as_rgb(grey))


def test_pages_of_several_sizes_are_refused(grey, tmp_path, monkeypatch):
    save_all(tmp_path / "a.tif", [grey[0], grey[1, :10, :15], grey[2]])
    with pytest.raises(VideoError, match=r"shapes \(2, 20, 30\), \(10, 15\): expected pages of one size"):
        open_video(tmp_path / "a.tif")
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(VideoError, match="has pages of several sizes, 30×20, 15×10: expected one"):
        open_video(tmp_path / "a.tif")


def test_palettes_and_white_as_zero_are_converted(grey, colour, tmp_path):
    tifffile.imwrite(tmp_path / "white.tif", 255 - grey, photometric="miniswhite")
    assert_frames(open_video(tmp_path / "white.tif"), as_rgb(grey))
    images = [Image.fromarray(image).quantize(16) for image in colour]
    expected = [np.asarray(image.convert("RGB")) for image in images]
    assert_frames(open_video(save_all(tmp_path / "palette.tif", images)), expected)


def test_what_needs_tifffile_says_so(grey, tmp_path, without_tifffile, monkeypatch):
    monkeypatch.delitem(sys.modules, "tifffile")
    # ImageJ writes large stacks so that the file describes its first image only.
    description = f"ImageJ=1.53t\nimages={COUNT}\nframes={COUNT}\n"
    tifffile.imwrite(tmp_path / "a.tif", grey[0], description=description, metadata=None)
    tifffile.imwrite(tmp_path / "b.tif", grey.astype(np.float64) / 255)
    monkeypatch.setitem(sys.modules, "tifffile", None)
    for name in ("a.tif", "b.tif"):
        with pytest.raises(VideoError, match=r"tifffile is not installed: pip install masklet\[tiff\]"):
            list(open_video(tmp_path / name))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")  # so Pillow calls the tags of the page at the cut
@pytest.mark.parametrize("bigtiff", [False, True])
@pytest.mark.parametrize("has_tifffile", [True, False])
def test_a_stack_that_is_cut_off_is_read_up_to_the_cut(bigtiff, has_tifffile, grey, tmp_path, monkeypatch):
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path, bigtiff=bigtiff) as tiff:
        for page in grey:
            tiff.write(page, compression="zlib", photometric="minisblack", contiguous=False, metadata=None)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    if not has_tifffile:
        monkeypatch.setitem(sys.modules, "tifffile", None)
    video = open_video(path)
    assert 2 < len(video) < COUNT - 1
    with pytest.warns(VideoWarning, match=f"is cut off or damaged: its first {len(video)} frames could be read"):
        frames = list(video)
    for frame in frames:
        np.testing.assert_array_equal(frame.image, as_rgb(grey)[frame.index])


def test_a_raw_stack_that_is_cut_off_is_read_up_to_the_cut(grey, tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, grey, photometric="minisblack", contiguous=True)
    path.write_bytes(path.read_bytes()[: -3 * HEIGHT * WIDTH])
    video = open_video(path)
    assert 3 < len(video) < COUNT
    with pytest.warns(VideoWarning, match=f"its first {len(video)} frames could be read"):
        frames = list(video)
    np.testing.assert_array_equal([frame.image for frame in frames], as_rgb(grey)[: len(video)])


def test_an_image_j_stack_that_is_cut_off_is_no_single_image(grey, tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, grey, photometric="minisblack", imagej=True)
    path.write_bytes(path.read_bytes()[: -3 * HEIGHT * WIDTH])
    with pytest.raises(
        VideoError, match=f"states {COUNT} images, but the file ends before the last: copy or export it again"
    ):
        open_video(path)


def test_an_image_j_file_of_channels_alone_is_one_image(grey, tmp_path):
    path, channels = tmp_path / "a.tif", np.stack([grey[0], grey[1], grey[2], grey[3]])
    tifffile.imwrite(path, channels, imagej=True, metadata={"axes": "CYX"})
    with pytest.raises(VideoError, match=r"4 bands.*bands"):
        open_video(path)[0]
    [frame] = open_video(path, ImageOptions(bands=(3, 0, 1)))
    np.testing.assert_array_equal(frame.image, channels[[3, 0, 1]].transpose(1, 2, 0))


def test_an_image_j_file_of_many_channels_says_how_they_are_read_as_frames(grey, tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, grey, imagej=True)  # whose axes are channels unless they are named
    with pytest.raises(VideoError, match=re.escape(f"sam.video(tifffile.imread({str(path)!r}))")):
        open_video(path)[0]
    assert_frames(open_video(tifffile.imread(path)), as_rgb(grey))


def test_one_range_is_found_for_all_frames(tmp_path):
    values = np.linspace(1000, 1600, COUNT * HEIGHT * WIDTH).reshape(COUNT, HEIGHT, WIDTH).astype(np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", values)
    video = open_video(tmp_path / "a.tif", ImageOptions(value_range="auto"))
    levels = [frame.image.mean() for frame in video]
    assert np.diff(levels) == pytest.approx([255 / COUNT] * (COUNT - 1), abs=8)  # brightness goes on from page to page
    fixed = open_video(tmp_path / "a.tif", ImageOptions(value_range=(1000, 1600)))
    exact = (values[3].astype(float) - 1000) / 600 * 255
    np.testing.assert_allclose(fixed[3].image[..., 0], exact, atol=0.51)
    with pytest.warns(ImageWarning, match="little contrast"):
        open_video(tmp_path / "a.tif")


def test_a_session_on_a_stack_can_be_resumed(sam, grey, tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", grey.astype(np.uint16) + 1000)
    session = sam.video(tmp_path / "a.tif", value_range="auto")
    session.prompt(2, box=(5, 5, 20, 15))
    tracked = [result.masks.masks for result in session.track()]
    session.save(tmp_path / "session")
    session.write(tmp_path / "masks.gif")
    with Image.open(tmp_path / "masks.gif") as written:
        assert written.n_frames == len(tracked) == COUNT - 2
    resumed = sam.resume(tmp_path / "session")
    for index in (6, 0):
        np.testing.assert_array_equal(resumed.video[index].image, session.video[index].image)


# Animations


def drawings(mode="RGBA"):
    """A square that moves over a transparent background."""
    images = []
    for index in range(len(MILLISECONDS)):
        image = Image.new("RGBA", (40, 30), (0, 0, 0, 0))
        draw = ImageDraw.Draw(image)
        draw.rectangle((index * 4, 5, index * 4 + 9, 20), fill=(250, 20 * index, 30, 255))
        draw.rectangle((20, 22, 30, 28), fill=(10, 200, 30, 255))
        images.append(image.convert(mode))
    return images


def on_white(image):
    background = Image.new("RGBA", image.size, "white")
    background.alpha_composite(image.convert("RGBA"))
    return np.asarray(background.convert("RGB"))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.gif", {"disposal": 2}),
        ("a.png", {}),
        ("a.png", {"disposal": 1, "blend": 0}),
        ("a.webp", {"lossless": True}),
        ("named.mp4", {"format": "WEBP", "lossless": True}),
    ],
)
def test_animations_lie_on_white_and_keep_their_times(name, options, tmp_path):
    path = save_all(tmp_path / name, drawings(), duration=list(MILLISECONDS), loop=0, **options)
    video = open_video(path)
    assert_frames(video, [on_white(image) for image in drawings()])
    starts = np.cumsum([0, *MILLISECONDS[:-1]]) / 1000
    assert [frame.time for frame in video] == pytest.approx(starts)
    assert video.fps == pytest.approx(len(MILLISECONDS) / (sum(MILLISECONDS) / 1000))


@pytest.mark.parametrize("disposal", [0, 1, 2, 3])
def test_a_gif_is_drawn_as_by_ffmpeg(disposal, tmp_path):
    path = save_all(tmp_path / "a.gif", drawings(), duration=40, disposal=disposal)
    with av.open(str(path)) as container:
        expected = [upright_pixels(frame) for frame in container.decode(video=0)]
    assert_frames(open_video(path), expected)


def test_an_animated_avif_keeps_its_times(tmp_path):
    if "AVIF" not in Image.SAVE_ALL:
        pytest.skip("this Pillow cannot write AVIF")
    path = save_all(tmp_path / "a.avif", drawings("RGB"), duration=list(MILLISECONDS), quality=100, subsampling="4:4:4")
    video = open_video(path)
    assert_frames(video, [np.asarray(image) for image in drawings("RGB")], tolerance=12)
    assert [frame.time for frame in video] == pytest.approx(np.cumsum([0, *MILLISECONDS[:-1]]) / 1000)


def test_the_image_for_programs_without_animation_is_no_frame(tmp_path):
    images = [Image.new("RGBA", (40, 30), (9, 9, 9, 255)), *drawings()]
    path = save_all(tmp_path / "a.png", images, default_image=True, duration=list(MILLISECONDS))
    assert_frames(open_video(path), [on_white(image) for image in drawings()])


@pytest.mark.parametrize(("milliseconds", "seconds"), [(0, 0.1), (10, 0.1), (20, 0.02)])
def test_images_without_a_duration_last_as_long_as_in_browsers(tmp_path, milliseconds, seconds):
    path = save_all(tmp_path / "a.gif", drawings("RGB"), duration=milliseconds)
    assert [frame.time for frame in open_video(path)] == pytest.approx(np.arange(6) * seconds)


def test_reading_an_animation_backward_holds_few_frames(tmp_path, monkeypatch):
    monkeypatch.setattr(stacks, "BACKWARD_BYTES", 2 * 4 * 40 * 30)
    video = open_video(save_all(tmp_path / "a.gif", drawings(), disposal=2, duration=40))
    batches = []
    forward = stacks.Animation._forward
    monkeypatch.setattr(
        stacks.Animation,
        "_forward",
        lambda self, wanted, options: batches.append(len(wanted)) or forward(self, wanted, options),
    )
    assert [frame.index for frame in video.frames(step=-1)] == [5, 4, 3, 2, 1, 0]
    assert batches == [2, 2, 2]


def test_an_animation_that_is_cut_off_is_read_up_to_the_cut(tmp_path):
    path = save_all(tmp_path / "a.gif", drawings("RGB"), duration=40)
    path.write_bytes(path.read_bytes()[:-200])
    video = open_video(path)
    with pytest.warns(VideoWarning, match=f"cut off or damaged: its first {len(video)} frames could be read"):
        assert 1 <= len(list(video)) < 6


# Single images


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.bmp", "a.gif", "a.webp", "a.tif", "a.ppm", "a.jp2", "a.avif"])
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "I;16"])
def test_an_image_is_the_same_as_a_video_of_one_frame(name, mode, colour, tmp_path):
    path = tmp_path / name
    image = Image.fromarray(colour[0][..., 0].astype(np.uint16) * 257) if mode == "I;16" else None
    try:
        (image or Image.fromarray(colour[0]).convert(mode)).save(path, exif=oriented_exif())
    except (OSError, ValueError, KeyError):
        pytest.skip(f"{name} has no {mode}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ImageWarning)
        assert_frames(open_video(path), [read_image(path)])


def oriented_exif():
    exif = Image.Exif()
    exif[271], exif[274] = "A camera", 6
    return exif


def test_the_preview_of_a_photograph_is_no_frame(colour, tmp_path):
    path = save_all(tmp_path / "a.jpg", [colour[0], colour[1, :10, :15]], format="MPO")
    assert_frames(open_video(path), [read_image(path)])


@pytest.mark.parametrize(
    ("brand", "advice"),
    [(b"heic", "pip install pillow-heif"), (b"mif1", "or convert it to JPEG"), (b"avif", "pillow>=11")],
)
def test_images_that_need_another_pillow_say_so(brand, advice, tmp_path, monkeypatch):
    monkeypatch.setattr(stacks, "IMAGE_FORMATS", ("PNG",))
    (tmp_path / "a.mp4").write_bytes(b"\0\0\0\x18ftyp" + brand + bytes(300))
    with pytest.raises(VideoError, match=advice):
        open_video(tmp_path / "a.mp4")


def test_an_image_too_large_for_memory_is_refused(grey, colour, tmp_path, monkeypatch):
    tifffile.imwrite(tmp_path / "a.tif", grey, photometric="minisblack")
    save_all(tmp_path / "a.gif", colour)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", HEIGHT * WIDTH - 1)
    for name in ("a.tif", "a.gif"):
        with pytest.raises(VideoError, match="more pixels than Pillow's limit"):
            open_video(tmp_path / name)


# Arrays


def test_arrays_of_frames(grey, colour, tmp_path):
    np.save(tmp_path / "a.npy", grey)
    for values in (grey, grey[..., None], np.load(tmp_path / "a.npy", mmap_mode="r"), torch.from_numpy(grey)):
        assert_frames(open_video(values), as_rgb(grey))
    for values in (colour, torch.from_numpy(colour).movedim(-1, 1)):
        assert_frames(open_video(values), colour)
    rgba = np.concatenate([colour, np.full((*grey.shape, 1), 51, np.uint8)], axis=-1)
    assert_frames(open_video(rgba), np.rint(colour * 0.2 + 255 * 0.8), tolerance=1)


def test_arrays_that_are_read_in_parts(grey):
    zarr = pytest.importorskip("zarr")
    stored = zarr.array(grey, chunks=(1, HEIGHT, WIDTH))
    assert_frames(open_video(stored), as_rgb(grey))


@pytest.mark.parametrize(
    ("shape", "kind"),
    [((20, 30, 3), np.zeros), ((20, 30, 1), np.zeros), ((20, 30), np.zeros), ((2, 7, 20, 30, 3), np.zeros)]
    + [((3, 20, 30), torch.zeros), ((20, 30), torch.zeros)],
)
def test_arrays_of_other_dimensions_are_refused(shape, kind):
    with pytest.raises(
        VideoError, match=r"is not a video: expected \(frames, .* or \(frames, height, width\)\. For a v"
    ):
        open_video(kind(shape))


def test_options_are_for_images(tmp_path):
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("ffv1", 25)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "gray16le"
        container.mux(stream.encode(av.VideoFrame(48, 32, "gray16le")))
        container.mux(stream.encode(None))
    with pytest.raises(VideoError, match="is a video file: value_range, bands and nodata are for images"):
        open_video(tmp_path / "a.mkv", ImageOptions(value_range="auto"))
