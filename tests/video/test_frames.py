import gc
import shutil
import subprocess
import sys
import threading
import time
import warnings
from contextlib import closing
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from masklet.errors import ImageError, MaskletError, VideoError
from masklet.video import decoder, writer
from masklet.video import frames as module
from masklet.video.frames import FRAMES_AHEAD, VideoWarning, open_video, read_ahead
from masklet.video.writer import VideoWriter

LOSSLESS = {"codec": "libx264rgb", "pix_fmt": "rgb24", "qp": "0", "g": "10", "bf": "2"}


def image_of(index, size_hw=(32, 48)):
    """Its colour identifies it, its bright corner shows which way is up."""
    image = np.full((*size_hw, 3), (index * 5 % 256, 255 - index * 3 % 256, index * 11 % 256), np.uint8)
    image[: size_hw[0] // 4, : size_hw[1] // 2] = 255
    return image


def make_video(path, count=40, *, times=None, sizes=None, rotation=None, rate=25, muxer=None, drop=0, **options):
    """``drop`` leaves out the first packets, as in a recording that starts in the middle."""
    options = LOSSLESS | options
    codec, pix_fmt = options.pop("codec"), options.pop("pix_fmt")
    with av.open(str(path), "w", options=muxer or {}) as container:
        size_hw = sizes or (32, 48)
        stream = container.add_stream(codec, rate=rate, options=options)
        stream.height, stream.width, stream.pix_fmt = *size_hw, pix_fmt
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        if rotation is not None:
            stream.set_display_rotation(*rotation)
        packets = []
        for index in range(count):
            frame = av.VideoFrame.from_ndarray(image_of(index, size_hw))
            if times is not None:
                frame.pts, frame.time_base = times[index], Fraction(1, 1000)
            packets += stream.encode(frame)
        container.mux((packets + stream.encode(None))[drop:])
    return path


def indices(frames):
    """The numbers of frames, which must agree with their colours."""
    numbers = []
    for frame in frames:
        np.testing.assert_array_equal(frame.image, image_of(frame.index, frame.image.shape[:2]))
        numbers.append(frame.index)
    return numbers


def reading_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("masklet-video")]


def write_video(path, images):
    with VideoWriter(path) as out:
        for image in images:
            out.write(image)


def refusal_of(source):
    """The error message."""
    with pytest.raises(VideoError) as caught:
        list(open_video(source))
    assert isinstance(caught.value, MaskletError)
    assert isinstance(caught.value, ValueError)
    return str(caught.value)


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """40 frames, a keyframe every 10, some of which are stored in another order than they are shown."""
    return open_video(make_video(tmp_path_factory.mktemp("video") / "video.mp4"))


# Reading


@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv", "avi", "ts", "h264"])
def test_a_video_is_read_in_order_and_at_any_frame(suffix, tmp_path):
    video = open_video(make_video(tmp_path / f"video.{suffix}"))
    assert (len(video), video.size_hw, video.fps) == (40, (32, 48), 25)
    assert indices(video) == list(range(40))
    np.testing.assert_allclose([frame.time for frame in video], np.arange(40) / 25, atol=1e-3)
    assert indices(video[index] for index in (0, 39, 9, 10, 11, 27)) == [0, 39, 9, 10, 11, 27]
    assert video[27].time == pytest.approx(27 / 25, abs=1e-3)
    assert indices(video.frames(step=-1)) == list(range(39, -1, -1))


@given(start=st.integers(0, 39), stop=st.integers(0, 50) | st.none(), step=st.sampled_from([1, 2, 7, -1, -3]))
def test_frames_takes_the_arguments_of_range(video, start, stop, step):
    end = (40 if step > 0 else -1) if stop is None else min(stop, 40)
    assert indices(video.frames(start, stop, step)) == list(range(start, end, step))


@pytest.mark.parametrize("step", [1, 4, 15, 100, -1, -4, -15, -100])
def test_only_requested_frames_are_converted_to_pixels(video, step, monkeypatch):
    converted = []
    upright_pixels = decoder.upright_pixels
    monkeypatch.setattr(decoder, "upright_pixels", lambda frame: converted.append(frame) or upright_pixels(frame))
    wanted = list(range(40))[::step]
    assert indices(video.frames(step=step)) == wanted
    assert len(converted) == len(wanted)


@pytest.mark.parametrize("batch", [1, 3, 10**6])
def test_reading_backward_in_steps_over_several_batches(video, batch, monkeypatch):
    monkeypatch.setattr(video._reader, "_batch", batch)
    assert indices(video.frames(37, 2, -4)) == list(range(37, 2, -4))


def test_without_a_start_reading_begins_at_the_first_or_last_frame(video):
    assert indices(video.frames(stop=3)) == [0, 1, 2]
    assert indices(video.frames(stop=36, step=-1)) == [39, 38, 37]
    assert video[-1].index == 39


@pytest.mark.parametrize(
    "options",
    [
        {"x264-params": "open-gop=1:keyint=12:bframes=3:b-adapt=0:scenecut=0"},
        {"x264-params": "intra-refresh=1:keyint=15:bframes=0:scenecut=0"},
        {"codec": "mpeg2video", "g": "12", "bf": "2"},
        {"codec": "libvpx", "g": "20", "auto-alt-ref": "1", "lag-in-frames": "16", "b": "60k"},
        {"codec": "libvpx-vp9", "g": "20", "auto-alt-ref": "1", "lag-in-frames": "16", "b": "60k"},
    ],
    ids=["open GOP", "no whole keyframes", "mpeg2", "vp8 with hidden frames", "vp9"],
)
def test_a_frame_is_the_same_wherever_reading_began(options, tmp_path):
    options = {"codec": "libx264", "pix_fmt": "yuv420p", "qp": "20"} | options
    if options["codec"] not in av.codecs_available:
        pytest.skip(f"this PyAV cannot write {options['codec']}")
    video = open_video(make_video(tmp_path / "video.mkv", 60, **options))
    frames = list(video)
    assert [frame.index for frame in frames] == list(range(60)) == list(range(len(video)))
    for index in (59, 30, 13, 11, 12, 24, 1):
        np.testing.assert_array_equal(video[index].image, frames[index].image)
    for step in (-1, 7, -7):
        read = list(video.frames(step=step))
        assert [frame.index for frame in read] == list(range(60))[::step]
        for frame in read:
            np.testing.assert_array_equal(frame.image, frames[frame.index].image)
            assert frame.time == frames[frame.index].time


def test_reading_backward_holds_few_frames(tmp_path, monkeypatch):
    monkeypatch.setattr("masklet.video.decoder.BACKWARD_BYTES", 0)
    video = open_video(make_video(tmp_path / "video.mkv", g="100"))
    batches = []
    forward = video._reader._forward
    monkeypatch.setattr(video._reader, "_forward", lambda wanted: batches.append(len(wanted)) or forward(wanted))
    assert indices(video.frames(step=-1)) == list(range(39, -1, -1))
    assert max(batches) == FRAMES_AHEAD


def test_times_are_those_of_the_video(tmp_path):
    times = [0, 10, 500, 510, 2000, 2040, 7000]
    video = open_video(make_video(tmp_path / "video.mkv", len(times), times=times))
    assert [frame.time for frame in video] == [time / 1000 for time in times]
    assert video[4].time == 2.0


def test_time_begins_at_the_first_visible_frame(tmp_path):
    video = open_video(make_video(tmp_path / "video.mp4", 20, times=[index * 40 - 200 for index in range(20)], bf="0"))
    assert [video[0].time, video[1].time] == [0, pytest.approx(0.04)]
    np.testing.assert_array_equal(video[0].image, image_of(20 - len(video)))  # the edit list hides those before
    assert 0 < len(video) < 20


def test_a_recording_that_starts_in_the_middle_starts_at_its_first_keyframe(tmp_path):
    options = {"codec": "mpeg2video", "pix_fmt": "yuv420p", "bf": "2", "qmax": "2"}
    video = open_video(make_video(tmp_path / "video.ts", drop=5, **options))
    frames = list(video)
    assert [frame.index for frame in frames] == list(range(len(video)))
    for index, of in ((0, 40 - len(video)), (len(video) - 1, 39), (7, 47 - len(video))):
        np.testing.assert_array_equal(video[index].image, frames[index].image)
        assert np.abs(frames[index].image[-8:].astype(int) - image_of(of)[-8:]).max() < 8
    assert frames[0].time == 0


@pytest.mark.skipif(not hasattr(av.VideoStream, "set_display_rotation"), reason="this PyAV cannot write rotations")
@pytest.mark.parametrize("quarters", [0, 1, 2, 3])
@pytest.mark.parametrize("is_mirrored", [False, True])
def test_rotation_is_applied(quarters, is_mirrored, tmp_path):
    video = open_video(make_video(tmp_path / "video.mp4", 2, rotation=(90 * quarters, is_mirrored)))
    shown = np.rot90(image_of(1), quarters)
    shown = shown[:, ::-1] if is_mirrored else shown
    np.testing.assert_array_equal(video[1].image, shown)
    assert video.size_hw == shown.shape[:2]
    assert video[1].image.flags.c_contiguous


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv444p", "gray", "gray16le", "yuv422p10le", "bgra", "yuva420p"])
def test_pixel_formats_and_odd_sizes_are_read(pix_fmt, tmp_path):
    video = open_video(make_video(tmp_path / "video.mkv", 3, sizes=(33, 47), codec="ffv1", pix_fmt=pix_fmt))
    image = video[2].image
    assert (image.shape, image.dtype) == ((33, 47, 3), np.uint8)
    expected = image_of(2, (33, 47)).astype(float)
    if pix_fmt.startswith("gray"):
        expected = expected @ [[0.299] * 3, [0.587] * 3, [0.114] * 3]
    assert np.abs(image - expected)[16:, 32:].max() <= 4


def test_a_real_video():
    video = open_video(Path(__file__).parents[2] / "examples/videos/dog.mp4")
    assert (len(video), video.fps, video.size_hw) == (30, Fraction(30000, 1001), (270, 480))
    frames = list(video.frames(stop=16))
    assert video[15].time == frames[15].time == pytest.approx(15 * 1001 / 30000)
    np.testing.assert_array_equal(video[15].image, frames[15].image)
    assert [frame.index for frame in video.frames(step=-1, stop=20)] == list(range(29, 20, -1))


@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv", "avi"])
def test_a_video_with_metadata_in_an_unknown_encoding_is_read(suffix, tmp_path):
    path = make_video(tmp_path / f"video.{suffix}")
    content = path.read_bytes()
    assert b"Lavf" in content  # the name of the program
    path.write_bytes(content.replace(b"Lavf", b"Caf\xe9"))
    assert indices(open_video(path)) == list(range(40))


# The thread


def count_up(made, last=1000):
    for number in range(last):
        made.append(number)
        yield number


def test_a_bounded_number_of_frames_is_read_ahead():
    made = []
    with closing(read_ahead(count_up(made))) as numbers:
        for number in numbers:
            time.sleep(0.002)
            assert len(made) <= number + 1 + FRAMES_AHEAD
            if number == 30:
                break
    assert not reading_threads()


def test_the_thread_ends_with_the_reading(video):
    assert not reading_threads()
    frames = video.frames()
    assert not reading_threads()  # no frame was asked for yet
    next(frames)
    assert len(reading_threads()) == 1
    frames.close()
    assert not reading_threads()

    for _ in video.frames():
        break
    gc.collect()
    assert not reading_threads()

    with pytest.raises(ZeroDivisionError):
        sum(frame.index / 0 for frame in video.frames())
    gc.collect()
    assert not reading_threads()

    assert indices(video.frames(stop=5)) == [0, 1, 2, 3, 4]
    assert not reading_threads()


def test_a_video_can_be_read_twice_at_the_same_time(video):
    pairs = zip(video.frames(), video.frames(start=39, step=-1), strict=True)
    assert [(a.index, b.index) for a, b in pairs] == [(index, 39 - index) for index in range(40)]


def test_a_program_can_end_while_a_video_is_read(tmp_path):
    path = make_video(tmp_path / "video.mkv")
    program = f"from masklet.video.frames import open_video; frames = open_video({str(path)!r}).frames(); next(frames)"
    done = subprocess.run([sys.executable, "-c", program], timeout=60, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


# Incomplete videos


@pytest.mark.parametrize("name", ["video.mp4", "video.mkv", "video.avi"])
def test_a_truncated_video_is_read_up_to_the_cut_with_a_warning(name, tmp_path):
    muxer = {"movflags": "+faststart"} if name == "video.mp4" else {}
    path = make_video(tmp_path / name, 60, rate=10, g="5", muxer=muxer)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * 0.6)])
    video = open_video(path)
    assert 20 < len(video) < 45
    seen = []
    with pytest.warns(VideoWarning, match="is cut off or damaged: its first .* Download or export it again") as caught:
        seen.extend(indices(video))
    assert seen == list(range(len(video)))
    assert caught[0].filename == __file__
    assert indices(video.frames(stop=10)) == list(range(10))  # no warning before the cut is reached
    assert indices(video.frames(len(video) - 2, step=-7)) == list(range(len(video) - 2, -1, -7))
    for step in (7, -7, 50):  # also when the step passes over the last frame there is
        seen = []
        with pytest.warns(VideoWarning, match="is cut off or damaged"):
            seen.extend(indices(video.frames(step=step)))
        assert seen == list(range(len(video)))[::step]


def test_damaged_frames_are_left_out_with_a_warning(tmp_path):
    path = make_video(tmp_path / "video.mov", 30, codec="png")
    data = bytearray(path.read_bytes())
    begins = [place for place in range(len(data)) if data[place : place + 4] == b"\x89PNG"]
    data[begins[20] + 8 : begins[20] + 40] = bytes(32)
    path.write_bytes(data)
    video = open_video(path)
    seen = []
    with pytest.warns(VideoWarning, match="damaged: 1 of 30 frames could not be decoded and were left out"):
        seen.extend(indices(video))
    assert seen == [*range(20), *range(21, 30)]
    assert indices(video.frames(step=3)) == list(range(0, 30, 3))  # the damaged frame is skipped anyway
    with pytest.warns(VideoWarning, match="damaged: 1 of 15 frames could not be decoded"):
        assert indices(video.frames(28, None, -2)) == [28, 26, 24, 22, *range(18, -1, -2)]
    assert indices([video[21]]) == [21]
    with pytest.raises(
        VideoError, match="frame 20 of .*video.mov cannot be read: it is damaged, use frame 19 or 21, the"
    ):
        video[20]


def test_a_video_whose_frames_change_size_is_refused_at_that_frame(tmp_path):
    one, other = make_video(tmp_path / "a.h264", 10), make_video(tmp_path / "b.h264", 10, sizes=(48, 64))
    both = tmp_path / "both.h264"
    both.write_bytes(one.read_bytes() + other.read_bytes())
    video = open_video(both)
    seen = []
    with pytest.raises(VideoError, match="frame 10 of .*both.h264 is 64×48, but frame 0 is 48×32: expected one size"):
        seen.extend(frame.index for frame in video)
    assert seen == list(range(10))
    assert not reading_threads()


# Images


def test_a_folder_is_read_in_natural_order(tmp_path):
    names = ["Frame1.PNG", "frame2.png", "frame2b.png", "frame10.png", "frame010.jpg", "other3.bmp"]
    for index, name in enumerate(names):
        Image.fromarray(image_of(index)).save(tmp_path / name, **({"quality": 100} if "jpg" in name else {}))
    for name in ("notes.txt", "._frame2.png", ".hidden.jpg"):
        (tmp_path / name).write_text("not an image")
    assert [path.name for path in module.images_in(tmp_path)] == [*names[:3], names[4], names[3], names[5]]
    video = open_video(str(tmp_path))
    assert (len(video), video.size_hw, video.path, video.name) == (6, (32, 48), tmp_path, str(tmp_path))
    np.testing.assert_array_equal(video[2].image, image_of(2))
    assert [frame.index for frame in video.frames(step=-2)] == [5, 3, 1]
    assert video[3].time == 3 / 25


def test_sequences_of_images():
    images = [image_of(index) for index in range(12)]
    for source in (images, tuple(images), np.stack(images), [Image.fromarray(image) for image in images]):
        video = open_video(source)
        assert (video.count, video.path, video.checksum()) == (12, None, None)
        assert indices(video) == list(range(12))
        assert indices(video.frames(9, None, -4)) == [9, 5, 1]
        assert indices([video[7], video[-1]]) == [7, 11]


@given(start=st.integers(0, 11), stop=st.integers(0, 20) | st.none(), step=st.integers(-13, 13).filter(bool))
def test_sequences_take_the_arguments_of_range(start, stop, step):
    images = [image_of(index) for index in range(12)]
    end = (12 if step > 0 else -1) if stop is None else min(stop, 12)
    wanted = list(range(start, end, step))
    assert indices(open_video(images).frames(start, stop, step)) == wanted
    if step > 0:
        assert indices(open_video(iter(images)).frames(start, stop, step)) == wanted


@pytest.mark.parametrize("step", [3, -3])
def test_skipped_images_are_not_opened(step, tmp_path):
    for index in range(10):
        Image.fromarray(image_of(index)).save(tmp_path / f"{index}.png")
    video = open_video(tmp_path)
    wanted = list(range(10))[::step]
    for index in {*range(10)} - {*wanted}:
        (tmp_path / f"{index}.png").write_text("not an image")
    assert indices(video.frames(step=step)) == wanted


def test_skipped_images_of_an_iterator_are_not_read():
    video = open_video(image_of(index) if index % 4 == 0 else "not read" for index in range(10))
    assert indices(video.frames(step=4)) == [0, 4, 8]


def test_images_of_an_iterator_are_taken_when_they_are_asked_for():
    taken = []
    video = open_video(image_of(number) for number in count_up(taken, 9))
    assert (video.count, video.size_hw, taken) == (None, (32, 48), [0])
    with pytest.raises(TypeError, match="the generator of images has no known length: video.count is None"):
        len(video)
    assert indices([video[0], video[0]]) == [0, 0]  # the last one can be read again
    for frame in video:
        if frame.index == 3:
            break
    assert taken == [0, 1, 2, 3]
    assert indices(video.frames(start=3, step=2)) == [3, 5, 7]
    assert video.checksum() is None


def test_images_of_an_iterator_cannot_be_read_again():
    video = open_video(iter([image_of(index) for index in range(5)]))
    assert video[3].index == 3
    with pytest.raises(
        VideoError, match="frame 1 of .* cannot be read again: .* 4 have been read. To go back, pass a list, a fo"
    ):
        video[1]
    with pytest.raises(VideoError, match="cannot be read backward: pass a list, a folder or a video file"):
        video.frames(step=-1)
    with pytest.raises(VideoError, match="frame 9 of the list_iterator of images cannot be read: the video is shorter"):
        video[9]
    with pytest.raises(VideoError, match="there is no frame -1 in the list_iterator of images: frames count from 0"):
        video[-1]


def test_a_bad_image_is_named_and_the_next_can_be_read():
    video = open_video(image for image in (image_of(0), None, image_of(2)))
    with pytest.raises(VideoError, match="frame 1 of the generator of images: expected an image: a path, a binary"):
        video[1]
    assert indices([video[2]]) == [2]


def test_images_of_several_sizes_are_refused():
    video = open_video([image_of(0), image_of(1, (20, 10))])
    with pytest.raises(VideoError, match="frame 1 of the list of images is 10×20, but frame 0 is 48×32: expected one"):
        list(video)
    assert not reading_threads()


# What is not a video


def test_frames_that_do_not_exist_are_refused(video):
    for index in (40, -41):
        with pytest.raises(VideoError, match="there is no frame .* in .*video.mp4: its 40 frames count from 0"):
            video[index]
    with pytest.raises(VideoError, match="there is no frame 40"):
        video.frames(start=40)
    with pytest.raises(VideoError, match="step is 0: expected 1 to read forward, -1 to read backward"):
        video.frames(step=0)
    assert list(video.frames(5, 5)) == []


def test_files_that_are_not_videos_are_refused(tmp_path):
    for name, content in (("empty.mp4", b""), ("noise.mp4", bytes(range(7, 256)) * 20)):
        (tmp_path / name).write_bytes(content)
        assert f"{name} is not a video that PyAV can read (Invalid data" in refusal_of(tmp_path / name)
    (tmp_path / "notes.txt").write_text("hello\n" * 200)
    assert "notes.txt is a text file, not a video: expected MP4" in refusal_of(tmp_path / "notes.txt")
    (tmp_path / "words.srt").write_text("1\n00:00:01,000 --> 00:00:02,000\nhello\n")
    assert "words.srt has no video in it, only subtitle: expected a file with a video" in refusal_of(
        tmp_path / "words.srt"
    )


def test_a_sound_file_is_refused(tmp_path):
    path = tmp_path / "sound.mka"
    with av.open(str(path), "w", format="matroska") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
    assert "sound.mka has no video in it, only audio" in refusal_of(path)


def test_a_video_without_frames_is_refused(tmp_path):
    path = make_video(tmp_path / "video.mov", 3, codec="png")
    path.write_bytes(path.read_bytes().replace(b"\x89PNG", b"none"))
    assert "video.mov has no frames that can be read: expected at least one" in refusal_of(path)


def test_a_video_with_an_unknown_codec_is_refused(tmp_path):
    path = make_video(tmp_path / "video.mp4", 3)
    path.write_bytes(path.read_bytes().replace(b"avc1", b"zzzz"))
    assert "needs a decoder that this PyAV lacks: convert it to H.264 or VP9" in refusal_of(path)


def test_a_video_whose_decoder_cannot_be_opened_is_refused(tmp_path):
    path = make_video(tmp_path / "video.mov", 3, codec="rawvideo", pix_fmt="yuv420p")  # MOV does not store which pixels
    assert "video.mov has no frames that can be read: expected at least one" in refusal_of(path)


def test_missing_paths_are_refused(tmp_path):
    assert "there is no video at nothing.mp4: expected a video file or a folder" in refusal_of("nothing.mp4")
    assert "looked in /" in refusal_of("nothing.mp4")
    assert "at https://a.b/c.mp4" in (refusal := refusal_of("https://a.b/c.mp4"))
    assert "download it first, or read it with LiveVideo" in refusal
    (tmp_path / "notes.txt").write_text("hello")
    assert "has no images in it: expected files that end in .avif, .bmp, .gif" in refusal_of(tmp_path)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (b"bytes", "not bytes. Save it to a file and pass its path"),
        (None, "not NoneType. Pass a list, also for one image"),
        (Image.new("RGB", (4, 4)), "not Image. Pass a list, also for one image"),
        ({"a": image_of(0)}, "not dict. Pass a list"),
        (
            image_of(0),
            "ndarray of shape (32, 48, 3) is not a video: expected (frames, height, width, 3) or (frames, ",
        ),
        ([], "the list of images has no frames that can be read: expected at least one"),
        (iter([]), "the list_iterator of images has no frames that can be read"),
        ([3], "frame 0 of the list of images: expected an image: a path"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_other_objects_are_refused(source, message):
    assert message in refusal_of(source)


def test_an_open_file_is_refused(tmp_path):
    with (tmp_path / "video.mp4").open("wb") as file:
        assert "not BufferedWriter. Save it to a file and pass its path" in refusal_of(file)


# Checksums


def test_a_checksum_recognises_a_copied_file(tmp_path):
    path = make_video(tmp_path / "video.mkv", 5)
    copy = shutil.copy(path, tmp_path / "copy.mkv")
    assert open_video(path).checksum() == open_video(copy).checksum()
    assert len(open_video(path).checksum()) == 64
    assert open_video(make_video(tmp_path / "other.mkv", 6)).checksum() != open_video(path).checksum()


def test_a_checksum_covers_the_size_and_both_ends_of_a_file(tmp_path, monkeypatch):
    path = make_video(tmp_path / "video.mkv", 5)
    video = open_video(path)
    data = path.read_bytes()
    monkeypatch.setattr(module, "CHECKSUM_BYTES", 100)
    known = video.checksum()
    for place, is_seen in ((50, True), (len(data) // 2, False), (len(data) - 50, True)):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        assert (video.checksum() != known) == is_seen
    path.write_bytes(data[:200] + data[201:])
    assert video.checksum() != known


def test_a_checksum_of_a_folder_covers_names_and_sizes(tmp_path):
    for index in range(3):
        Image.fromarray(image_of(index)).save(tmp_path / f"{index}.png")
    video = open_video(tmp_path)
    known = video.checksum()
    (tmp_path / "notes.txt").write_text("hello")
    assert video.checksum() == known
    (tmp_path / "2.png").rename(tmp_path / "3.png")
    assert video.checksum() != known


# Writing


@pytest.mark.parametrize("encoder", ["libx264", "mpeg4"])
@pytest.mark.parametrize("suffix", ["mp4", "mkv", "mov"])
def test_a_written_video_can_be_read(encoder, suffix, tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "ENCODERS", {encoder: writer.ENCODERS[encoder]})
    path = tmp_path / "new folder" / f"video.{suffix}"
    with VideoWriter(path, Fraction(30000, 1001)) as out:
        for index in range(20):
            out.write(image_of(index, (64, 96)))
        assert not path.exists()
    video = open_video(path)
    assert (len(video), video.fps, out.count) == (20, Fraction(30000, 1001), 20)
    for frame in video:
        difference = np.abs(frame.image.astype(int) - image_of(frame.index, (64, 96)))
        assert np.median(difference) <= 3
    assert video[10].time == pytest.approx(10 * 1001 / 30000, abs=1e-3)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("size_hw", [(1, 1), (33, 47), (2, 31), (40, 50)])
def test_odd_sizes_are_padded_by_one(size_hw, tmp_path):
    image = image_of(30, size_hw)
    with VideoWriter(tmp_path / "video.mp4") as out:
        out.write(image)
    height, width = size_hw
    video = open_video(tmp_path / "video.mp4")
    assert video.size_hw == (height + height % 2, width + width % 2)
    shown = video[0].image.astype(int)
    np.testing.assert_allclose(shown[height - 1 :, width - 1 :].mean((0, 1)), image[-1, -1], atol=6)


@pytest.mark.parametrize("fps", [24, 29.97, 30000 / 1001, Fraction(24000, 1001), 12.5, 0.5])
def test_frames_per_second_are_kept(fps, tmp_path):
    with VideoWriter(tmp_path / "video.mp4", fps) as out:
        for index in range(4):
            out.write(image_of(index))
    assert float(open_video(tmp_path / "video.mp4").fps) == pytest.approx(float(fps), rel=1e-6)


def test_a_failed_video_leaves_no_file(tmp_path):
    path = tmp_path / "video.mp4"
    path.write_text("an older one")
    with pytest.raises(ZeroDivisionError):
        write_video(path, (image_of(1 // (1 - index)) for index in range(3)))
    with pytest.raises(ImageError):
        write_video(path, [image_of(0), None])
    with pytest.raises(VideoError, match="no image was written to .*video.mp4: expected at least one"):
        write_video(path, [])
    assert [file.name for file in tmp_path.iterdir()] == ["video.mp4"]
    assert path.read_text() == "an older one"


def test_invalid_arguments_of_the_writer_are_refused(tmp_path):
    path = tmp_path / "video.mp4"
    with pytest.raises(
        VideoError, match="cannot write a video to video.avi: expected a name ending in .mkv, .mov, .mp4"
    ):
        VideoWriter("video.avi")
    for fps in (0, -1, float("nan"), float("inf"), "30"):
        with pytest.raises(VideoError, match=f"fps is {fps!r}: expected a number, 0.01 to 1000"):
            VideoWriter(path, fps)
    with pytest.raises(VideoError, match="is not open: write inside 'with VideoWriter"):
        VideoWriter(path).write(image_of(0))
    with pytest.raises(VideoError, match="image 1 for .* is 10×20, but image 0 was 48×32: expected one size. Resize"):
        write_video(path, [image_of(0), image_of(1, (20, 10))])
    assert not list(tmp_path.iterdir())


def test_reading_a_complete_video_gives_no_warnings(video):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(list(video)) == 40
