"""Written videos and animations: times, encoders, colours."""

from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image, ImageSequence
from video.test_tracking import CUP, moving_square

from masklet.errors import VideoError
from masklet.video import writer
from masklet.video.frames import open_video
from masklet.video.outputs import open_writers
from masklet.video.writer import VideoWriter

IRREGULAR = (0, 40, 300, 340, 1000, 1040, 1080, 3000, 3040, 5000, 5040, 9000)
"""Milliseconds."""
VIDEOS, ANIMATIONS = ("mp4", "mov", "mkv"), ("gif", "webp")


def image_of(index, size_hw=(32, 48)):
    pixels = np.full((*size_hw, 3), (20 * index, 255 - 20 * index, 100), np.uint8)
    pixels[index : index + 9, 5:15] = (255, 30, 30)
    return pixels


def write(path, milliseconds, fps=25):
    with VideoWriter(path, fps) as out:
        for index, time in enumerate(milliseconds):
            out.write(image_of(index % 12), time / 1000)
    return path


def times_of(path):
    """Milliseconds, as PyAV or Pillow reads them."""
    if path.suffix[1:] in ANIMATIONS:
        with Image.open(path) as image:
            durations = [frame.info["duration"] for frame in map(loaded, ImageSequence.Iterator(image))]
        return [sum(durations[:index]) for index in range(len(durations))]
    with av.open(str(path)) as container:
        times = [frame.time * 1000 for frame in container.decode(video=0)]
    return [time - times[0] for time in times]


def loaded(frame):
    frame.load()  # Pillow knows the duration of a WebP's frame only then
    return frame


def milliseconds_of(path):
    """The duration that the file states."""
    with av.open(str(path)) as container:
        return container.duration / 1000


@pytest.mark.parametrize("suffix", [*VIDEOS, *ANIMATIONS])
@pytest.mark.parametrize("start", [0, 7700])
def test_each_image_keeps_its_time(suffix, start, tmp_path):
    path = write(tmp_path / f"video.{suffix}", [start + time for time in IRREGULAR])
    np.testing.assert_allclose(times_of(path), IRREGULAR, atol=0.1)


@pytest.mark.parametrize("encoder", ["libx264", "mpeg4"])
@pytest.mark.parametrize("suffix", VIDEOS)
def test_the_last_image_is_shown_as_long_as_one_of_the_rate(suffix, encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "ENCODERS", {encoder: writer.ENCODERS[encoder]})
    path = write(tmp_path / f"video.{suffix}", IRREGULAR, fps=Fraction(25, 2))
    np.testing.assert_allclose(times_of(path), IRREGULAR, atol=0.1)
    assert milliseconds_of(path) == pytest.approx(9080, abs=1)


def test_the_last_image_of_a_gif_is_shown_as_long_as_one_of_the_rate(tmp_path):
    with Image.open(write(tmp_path / "a.gif", IRREGULAR, fps=Fraction(25, 2))) as image:
        image.seek(11)
        assert image.info["duration"] == 80


@pytest.mark.parametrize("suffix", VIDEOS)
@pytest.mark.parametrize("fps", [Fraction(30000, 1001), 0.5, 59.94, 123.457])
def test_images_without_times_come_at_the_rate(suffix, fps, tmp_path):
    path = tmp_path / f"video.{suffix}"
    with VideoWriter(path, fps) as out:
        for index in range(10):
            out.write(image_of(index))
    tolerance = 0.51 if suffix == "mkv" else 0.02  # Matroska has milliseconds
    np.testing.assert_allclose(times_of(path), np.arange(10) * 1000 / float(fps), atol=tolerance)


@pytest.mark.parametrize(
    "times", [(0, 0), (1, 0.5), (0, None, 0.04), (0, float("nan")), (float("inf"),), (10**400,), ("1",)]
)
def test_times_that_do_not_increase_are_refused(times, tmp_path):
    message = r"expected times that increase\. Write the images in their order|: expected a finite number"
    *fine, wrong = times
    with VideoWriter(tmp_path / "video.mp4") as out:
        for index, time in enumerate(fine):
            out.write(image_of(index), time)
        with pytest.raises(VideoError, match=message):
            out.write(image_of(0), wrong)
        out.write(image_of(11), 2)  # it can go on
    assert len(times_of(tmp_path / "video.mp4")) == len(times)


def test_images_closer_than_the_steps_of_a_gif_follow_each_other(tmp_path):
    path = write(tmp_path / "a.gif", [0, 2, 4, 300])
    assert times_of(path) == [0, 20, 40, 300]


# Animations


def test_a_gif_has_the_colours_of_each_image(tmp_path):
    with Image.open(write(tmp_path / "a.gif", IRREGULAR)) as image:
        assert (image.n_frames, image.info["loop"]) == (12, 0)
        for index, frame in enumerate(ImageSequence.Iterator(image)):
            np.testing.assert_array_equal(frame.convert("RGB"), image_of(index))


@pytest.mark.parametrize("size_hw", [(32, 48), (33, 47), (1, 1)])
def test_animations_keep_odd_sizes(size_hw, tmp_path):
    for suffix in ANIMATIONS:
        with VideoWriter(tmp_path / f"a.{suffix}") as out:
            for index in range(3):
                out.write(image_of(index, size_hw))
        with Image.open(tmp_path / f"a.{suffix}") as image:
            assert (image.size, image.n_frames) == (size_hw[::-1], 3)


def test_a_webp_is_close_to_its_images(tmp_path):
    with Image.open(write(tmp_path / "a.webp", IRREGULAR)) as image:
        assert image.info["loop"] == 0
        for index, frame in enumerate(ImageSequence.Iterator(image)):
            assert np.abs(np.asarray(frame.convert("RGB")).astype(int) - image_of(index)).mean() < 5


def test_a_gradient_in_a_gif_is_close_to_it(tmp_path):
    y, x = np.mgrid[:64, :96]
    gradient = np.stack([x * 2, y * 3, 255 - x], axis=-1).astype(np.uint8)
    with VideoWriter(tmp_path / "a.gif") as out:
        out.write(gradient)
        out.write(gradient[::-1])
    with Image.open(tmp_path / "a.gif") as image:
        for frame, pixels in zip(ImageSequence.Iterator(image), (gradient, gradient[::-1]), strict=True):
            assert np.abs(np.asarray(frame.convert("RGB")).astype(int) - pixels).mean() < 8


def test_an_encoder_that_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "ANIMATION_ENCODERS", {".webp": {"none": {}}})
    with pytest.raises(VideoError, match="this PyAV has none of the encoders none. Install it from PyPI"):
        VideoWriter(tmp_path / "a.webp")


# Sessions


@pytest.fixture
def session(sam, tmp_path):
    """A video whose frames come at irregular times."""
    with VideoWriter(tmp_path / "video.mkv") as out:
        for image, time in zip(moving_square(12), IRREGULAR, strict=True):
            out.write(image, time / 1000)
    session = sam.video(tmp_path / "video.mkv")
    session.prompt(4, "cup", **CUP)
    return session


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "gif"])
@pytest.mark.parametrize(
    ("tracking", "frames"),
    [
        ({"start": 0}, range(12)),
        ({"start": 0, "every": 3}, range(0, 12, 3)),
        ({"start": 8, "end": 2, "direction": "backward"}, range(2, 9)),
        ({"start": 4, "direction": "both"}, range(12)),
    ],
    ids=["whole", "every third", "backward", "both"],
)
def test_written_frames_keep_the_intervals_of_their_times(session, suffix, tracking, frames, tmp_path):
    list(session.track(**tracking))
    session.write(tmp_path / f"masks.{suffix}")
    times = [IRREGULAR[frame] - IRREGULAR[frames[0]] for frame in frames]
    np.testing.assert_allclose(times_of(tmp_path / f"masks.{suffix}"), times, atol=0.1)


def test_frames_that_were_not_tracked_leave_a_gap(session, tmp_path):
    list(session.track(start=1, end=2))
    list(session.track(start=7, end=9))
    session.write(tmp_path / "masks.mp4")
    np.testing.assert_allclose(times_of(tmp_path / "masks.mp4"), [0, 260, 2960, 3000, 4960], atol=0.1)


def test_frames_that_come_backward_are_refused_while_tracking(session, tmp_path):
    results = session.track(start=4, direction="backward")
    with open_writers(tmp_path / "o.mp4", fps=25, size_hw=session.video.size_hw) as writers:
        writers.write(next(results))
        with pytest.raises(
            VideoError, match=r"is shown at 0\.34 s, but the one before at 1 s: expected times that inc"
        ):
            writers.write(next(results))


def test_a_written_animation_can_be_read_as_a_video(session, tmp_path):
    list(session.track(start=0))
    session.write(tmp_path / "masks.gif")
    np.testing.assert_allclose([frame.time * 1000 for frame in open_video(tmp_path / "masks.gif")], IRREGULAR)
