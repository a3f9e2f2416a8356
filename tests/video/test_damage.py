"""Damaged videos: frames keep the numbers and times of the undamaged one, and lost ones are named."""

import itertools
import json
import warnings
from functools import lru_cache

import av
import numpy as np
import pytest
from typer.testing import CliRunner

from masklet.cli import app
from masklet.errors import VideoError
from masklet.video.frames import VideoWarning, open_video
from masklet.video.picture_order import counters_of, picture_of
from masklet.video.writer import VideoWriter

FRAMES, SIZE_HW, RATE = 40, (48, 64), 25
CODECS = {
    "h264": ("libx264", "yuv420p", {"g": "10", "bf": "0", "x264-params": "scenecut=0:fps=25"}),
    "h264 with B-frames": ("libx264", "yuv420p", {"g": "10", "bf": "2", "x264-params": "scenecut=0:b-adapt=0"}),
    "h264, open GOP": (
        "libx264",
        "yuv420p",
        {"x264-params": "open-gop=1:keyint=10:bframes=2:b-adapt=0:scenecut=0"},
    ),
    "hevc": ("libx265", "yuv420p", {"x265-params": "qp=16:keyint=10:bframes=2:scenecut=0:log-level=none:pools=1"}),
    "mpeg4": ("mpeg4", "yuv420p", {"g": "10", "bf": "0", "qmax": "4"}),
    "mpeg4 with B-frames": ("mpeg4", "yuv420p", {"g": "10", "bf": "2", "qmax": "4"}),
    "mpeg2": ("mpeg2video", "yuv420p", {"g": "10", "bf": "2", "qmax": "4"}),
    "mjpeg": ("mjpeg", "yuvj420p", {"qmax": "4"}),
    "vp8": ("libvpx", "yuv420p", {"g": "10", "b": "1M", "cpu-used": "8", "deadline": "realtime"}),
    "vp9": ("libvpx-vp9", "yuv420p", {"g": "10", "b": "1M", "cpu-used": "8", "lag-in-frames": "0"}),
    "ffv1": ("ffv1", "yuv420p", {"g": "10", "level": "3"}),
}
FITTING = {
    "mp4": ("h264", "h264 with B-frames", "h264, open GOP", "hevc", "mpeg4", "mpeg4 with B-frames", "vp9"),
    "mov": ("h264 with B-frames", "mpeg4 with B-frames", "mjpeg"),
    "mkv": tuple(CODECS),
    "avi": ("h264", "h264 with B-frames", "mpeg4", "mpeg4 with B-frames", "mjpeg", "ffv1"),
    "webm": ("vp8", "vp9"),
    "ts": ("h264", "h264 with B-frames", "mpeg2"),
}
POSITIONS = ("first", "keyframe", "after a keyframe", "P-frame", "B-frame", "end")
DAMAGES = ("zeroed", "missing")
QUICK = [
    ("mp4", "h264 with B-frames", "zeroed", "first"),
    ("mp4", "h264 with B-frames", "zeroed", "keyframe"),
    ("mp4", "h264 with B-frames", "zeroed", "B-frame"),
    ("mp4", "h264, open GOP", "zeroed", "keyframe"),
    ("mkv", "h264 with B-frames", "missing", "keyframe"),
    ("mkv", "mpeg4 with B-frames", "missing", "first"),
    ("avi", "h264 with B-frames", "zeroed", "keyframe"),
    ("avi", "mpeg4 with B-frames", "missing", "keyframe"),
    ("avi", "mpeg4", "zeroed", "first"),
    ("avi", "mjpeg", "missing", "P-frame"),
    ("mp4", "mpeg4 with B-frames", "missing", "B-frame"),
    ("webm", "vp9", "zeroed", "keyframe"),
    ("ts", "h264 with B-frames", "missing", "keyframe"),
]


def image_of(index):
    """Its brightness identifies it, and its details move, so that every frame needs the one before it."""
    y, x = np.mgrid[: SIZE_HW[0], : SIZE_HW[1]]
    image = np.stack([(x * 3 + index * 5) % 64, (y + index * 3) % 48, (x + y) % 64], axis=-1)
    return (image + 30 + index * 4).astype(np.uint8)


def write(path, codec):
    """The video of 40 frames."""
    name, pix_fmt, options = CODECS[codec]
    if name not in av.codecs_available:
        pytest.skip(f"this PyAV cannot write {name}")
    muxer = {"movflags": "+faststart"} if path.suffix in (".mp4", ".mov") else {}
    with av.open(str(path), "w", options=muxer) as container:
        stream = container.add_stream(name, rate=RATE, options=options)
        stream.height, stream.width, stream.pix_fmt = *SIZE_HW, pix_fmt
        packets = [p for index in range(FRAMES) for p in stream.encode(av.VideoFrame.from_ndarray(image_of(index)))]
        packets += stream.encode(None)
        container.mux(packets)
    return path


def without(source, place, path):
    """Copy a video but one packet."""
    with av.open(str(source)) as container, av.open(str(path), "w") as copy:
        stream = copy.add_stream_from_template(container.streams.video[0])
        for number, packet in enumerate(packet for packet in container.demux(video=0) if packet.size):
            packet.stream = stream
            if number != place:
                copy.mux(packet)
    return path


def packets_of(path):
    with av.open(str(path)) as container:
        return [
            (packet.pts, packet.is_keyframe, packet.pos, bytes(packet))
            for packet in container.demux(container.streams.video[0])
            if packet.size
        ]


class Original:
    """An undamaged video: its frames as masklet reads them, and the order in which they are stored."""

    def __init__(self, path, codec):
        self.path = write(path, codec)
        self.codec = codec
        self.frames = list(open_video(path))
        assert [frame.index for frame in self.frames] == list(range(FRAMES))
        for frame in self.frames:  # else a shift would not be noticed
            assert np.argmin([abs(frame.image.mean() - image_of(i).mean()) for i in range(FRAMES)]) == frame.index
            assert frame.time == pytest.approx(frame.index / RATE, abs=1e-3)
        self.packets = packets_of(path)
        if path.suffix == ".avi" and "h264" in codec:  # it does not store the order in which frames are shown
            twin = write(path.with_suffix(".twin.mkv"), codec)  # x264 does not always write the same bytes
            times = [packet[0] for packet in packets_of(twin)]
        else:
            times = [packet[0] for packet in self.packets]
        self.shown = [sorted(times).index(time) for time in times]  # the number of each packet's frame
        self.keys = [place for place, packet in enumerate(self.packets) if packet[1]]

    def place(self, position):
        """The packet at a position; None if the codec has none."""
        key = self.keys[min(2, len(self.keys) - 2)]
        is_b = [place for place in range(key + 1, FRAMES) if self.shown[place] < max(self.shown[:place])]
        is_p = [place for place in range(key + 2, FRAMES) if place not in is_b and place not in self.keys[:9]]
        return {
            "first": 0,
            "keyframe": key,
            "after a keyframe": key + 1,
            "P-frame": is_p[0],
            "B-frame": is_b[0] if is_b else None,
            "end": FRAMES - 1,
        }[position]

    def dependent(self, place):
        """Numbers of frames that may depend on a packet: up to the next keyframe, and those shown before it."""
        next_key = next((key for key in self.keys if key > place), FRAMES)
        leading = itertools.takewhile(
            lambda other: next_key < FRAMES and self.shown[other] < self.shown[next_key], range(next_key + 1, FRAMES)
        )
        return {self.shown[other] for other in (*range(place, next_key), *leading)}


@pytest.fixture(scope="session")
def original(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    return lru_cache(lambda suffix, codec: Original(folder / f"{list(CODECS).index(codec)}.{suffix}", codec))


def zeroed(path, packet):
    """The file with zeros over the bytes of a packet, of which the header is kept."""
    data = path.read_bytes()
    at = packet[2] if path.suffix == ".ts" else data.index(packet[3], packet[2])  # TS stores packets in pieces
    return data[:at] + bytes(len(packet[3])) + data[at + len(packet[3]) :]


def damage(original, place, kind, tmp_path):
    path = tmp_path / f"damaged{original.path.suffix}"
    if kind == "missing":
        return without(original.path, place, path)
    path.write_bytes(zeroed(original.path, original.packets[place]))
    return path


def read_in_every_way(path):
    """The frames that can be read, if all ways of reading agree."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", VideoWarning)
        frames = {frame.index: frame for frame in open_video(path)}
        assert list(frames) == sorted(frames)
        assert [frame.index for frame in open_video(path).frames(step=-1)] == sorted(frames, reverse=True)
        others = list(open_video(path).frames(step=3))
        assert [frame.index for frame in others] == [index for index in frames if index % 3 == 0]
    video = open_video(path)
    for index in range(len(video)):
        if index in frames:
            others.append(video[index])
        else:
            with pytest.raises(VideoError, match=f"frame {index} of .* cannot be read: it is damaged, use frame "):
                video[index]
    for other in others:
        assert other.time == frames[other.index].time
        np.testing.assert_array_equal(other.image, frames[other.index].image)
    return frames


def check(original, path, may_be_lost, must_be_lost=frozenset()):
    frames = read_in_every_way(path)
    lost = {*range(FRAMES)} - frames.keys()
    assert must_be_lost <= lost <= may_be_lost
    for index, frame in frames.items():
        assert frame.time == pytest.approx(original.frames[index].time, abs=2e-3)
        np.testing.assert_array_equal(frame.image, original.frames[index].image)
    return lost


def is_knowable(suffix, codec, kind, position):
    """Whether a file shows that something is lost, and where."""
    if position == "first":
        if suffix == "ts":
            return False  # as if the recording had begun later
        if suffix == "avi" and codec.startswith("h264"):
            return False  # FFmpeg cannot open it
        # MP4 stores times that begin with what is there; a video of keyframes seems to begin later; and FFmpeg cannot
        # write H.264 and HEVC to Matroska without the first packet.
        can_be_told = suffix not in ("mp4", "mov") and codec != "mjpeg"
        return kind == "zeroed" or (can_be_told and not (suffix == "mkv" and codec.startswith(("h264", "hevc"))))
    # AVI stores no times, and counts the frames that are there.
    return not (kind == "missing" and position == "end" and suffix == "avi" and "B-frames" in codec)


def is_told(suffix, codec, kind, position):
    """Whether anything but a hole in the times shows that a packet is missing. A recorder may have dropped a frame."""
    if suffix == "ts" and position == "end":
        return True  # broadcasts are recorded up to any moment, so a hole before the last frames is a cut
    has_b_frames = "B-frames" in codec or codec in ("h264, open GOP", "hevc", "mpeg2")
    # The rest of a video without its first packet has no keyframe; one without its last frame is shorter.
    is_at_end = position == "first" or (position == "end" and not has_b_frames)
    return kind == "zeroed" or is_at_end or codec.startswith("h264")  # which counts its pictures


def matrix(are_told):
    for suffix, codecs in FITTING.items():
        for case in itertools.product([suffix], codecs, DAMAGES, POSITIONS):
            if is_knowable(*case) and is_told(*case) == are_told:
                yield pytest.param(*case, marks=() if case in QUICK else pytest.mark.slow, id=", ".join(case))


@pytest.mark.parametrize(("suffix", "codec", "kind", "position"), list(matrix(are_told=True)))
def test_frames_of_a_damaged_video_keep_their_numbers_times_and_pixels(
    suffix, codec, kind, position, original, tmp_path
):
    whole = original(suffix, codec)
    if (place := whole.place(position)) is None:
        pytest.skip(f"{codec} has no {position}")
    path = damage(whole, place, kind, tmp_path)
    may_be_lost = whole.dependent(place)
    if kind == "missing" or suffix in ("avi", "ts"):
        # Where the lost packet was is known only up to the reordering of frames.
        before = whole.shown[max(0, place - 3) : place]
        may_be_lost |= {*range(min(before, default=0), max(before, default=-1) + 1)}
    lost = check(whole, path, may_be_lost, {whole.shown[place]})
    video = open_video(path)
    if len(video) == FRAMES:
        with pytest.warns(VideoWarning, match=f"is damaged: {len(lost)} of 40 frames could not be decoded") as caught:
            list(video)
        assert len(caught) == 1
        assert {number for gap in video.gaps for number in gap} == lost


@pytest.mark.parametrize(("suffix", "codec", "kind", "position"), list(matrix(are_told=False)))
def test_frames_keep_their_times_if_nothing_shows_that_some_are_missing(
    suffix, codec, kind, position, original, tmp_path
):
    whole = original(suffix, codec)
    if (place := whole.place(position)) is None:
        pytest.skip(f"{codec} has no {position}")
    missing = whole.shown[place]
    path = damage(whole, place, kind, tmp_path)
    video = open_video(path)
    assert (len(video), video.gaps) == (FRAMES - 1, [])
    others = [frame for frame in whole.frames if frame.index != missing]
    # What a decoder makes of frames that depend on the missing one is not known. Some it refuses, and with them the one
    # that it holds back.
    dependent = {missing} if codec == "mjpeg" else whole.dependent(place) | {*whole.shown[max(0, place - 3) : place]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", VideoWarning)
        frames = list(video)
    assert [frame.index for frame in frames] == sorted({frame.index for frame in frames})
    assert {frame.index for frame in frames} >= {i for i in range(FRAMES - 1) if others[i].index not in dependent}
    # AVI stores no times of B-frames. They are derived from the order, in which one is missing.
    tolerance = 1 / RATE + 2e-3 if suffix == "avi" and "B-frames" in codec else 2e-3
    for frame in frames:
        other = others[frame.index]
        assert frame.time == pytest.approx(other.time, abs=tolerance)
        if other.index not in dependent:
            np.testing.assert_array_equal(frame.image, other.image)
            np.testing.assert_array_equal(video[frame.index].image, other.image)


@pytest.mark.parametrize("suffix", FITTING)
@pytest.mark.parametrize("part", [0.7, pytest.param(0.85, marks=pytest.mark.slow)])
def test_a_truncated_video_is_read_up_to_the_cut(suffix, part, original, tmp_path):
    whole = original(suffix, FITTING[suffix][min(1, len(FITTING[suffix]) - 1)])
    path = tmp_path / f"cut.{suffix}"
    path.write_bytes(whole.path.read_bytes()[: int(whole.path.stat().st_size * part)])
    frames = read_in_every_way(path)
    if suffix != "ts":  # which does not say how long it is, so that the last frames seem to be missing between others
        assert list(frames) == list(range(len(frames)))
    assert len(frames) > 9
    for index, frame in frames.items():
        np.testing.assert_array_equal(frame.image, whole.frames[index].image)
        assert frame.time == pytest.approx(index / RATE, abs=2e-3)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        list(open_video(path))
    if suffix != "ts":
        assert any("is cut off or damaged: its first" in str(warning.message) for warning in caught)


@pytest.mark.parametrize(
    ("suffix", "codec"),
    [
        ("mkv", "h264 with B-frames"),
        ("mkv", "mpeg4 with B-frames"),  # only the file's stated size tells that it is cut
        ("ts", "h264 with B-frames"),
        ("avi", "mpeg4 with B-frames"),
        *(pytest.param(suffix, codec, marks=pytest.mark.slow) for suffix in FITTING for codec in FITTING[suffix]),
    ],
)
def test_the_last_frames_before_a_cut_are_whole_wherever_it_is(suffix, codec, original, tmp_path):
    """Frames that are stored ahead of missing ones are not shown, but those before them need them."""
    whole = original(suffix, codec)
    data, path = whole.path.read_bytes(), tmp_path / f"cut.{suffix}"
    for size in range(int(0.55 * len(data)), len(data) - 1, len(data) // 40 + 3):
        path.write_bytes(data[:size])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", VideoWarning)
            *_, last = open_video(path)
        np.testing.assert_array_equal(last.image, whole.frames[last.index].image)


def test_a_video_that_is_cut_in_its_first_frame_has_no_frames(original, tmp_path):
    whole, path = original("avi", "h264"), tmp_path / "cut.avi"
    path.write_bytes(whole.path.read_bytes()[: whole.packets[0][2] + 100])
    with pytest.raises(VideoError, match=r"has no frames that can be read"):
        open_video(path)


@pytest.mark.parametrize(("codec", "place"), [("mpeg4", 0), ("mpeg4", 12), ("mjpeg", 3)])
def test_a_destroyed_header_in_a_matroska_file_shifts_no_frame(codec, place, original, tmp_path):
    whole = original("mkv", codec)
    data = bytearray(whole.path.read_bytes())
    position, size = whole.packets[place][2], len(whole.packets[place][3])
    data[position : position + size] = bytes(size)  # the header too, so the reader goes on at the next cluster
    path = tmp_path / "damaged.mkv"
    path.write_bytes(data)
    frames = read_in_every_way(path)
    for index, frame in frames.items():
        assert frame.time == pytest.approx(index / RATE, abs=2e-3)
        np.testing.assert_array_equal(frame.image, whole.frames[index].image)
    assert place not in frames


@pytest.fixture(scope="module")
def damaged(original, tmp_path_factory):
    """An MP4 without its frames 0 to 9 and 20 to 29, whose keyframes are zeroed."""
    whole = original("mp4", "h264 with B-frames")
    path = tmp_path_factory.mktemp("damaged") / "damaged.mp4"
    path.write_bytes(zeroed(whole.path, whole.packets[0]))
    path.write_bytes(zeroed(path, whole.packets[20]))
    return path


READABLE = [*range(10, 20), *range(30, 40)]


def test_gaps_are_known_and_named_once(damaged):
    video = open_video(damaged)
    assert (len(video), video.gaps, video.fps) == (40, [range(10), range(20, 30)], RATE)
    with pytest.warns(VideoWarning) as caught:
        assert [frame.index for frame in video] == READABLE
    message = "damaged.mp4 is damaged: 20 of 40 frames could not be decoded and were left out: 0-9, 20-29"
    assert [str(warning.message).endswith(message) for warning in caught] == [True]
    with pytest.raises(VideoError, match="frame 25 of .* it is damaged, use frame 19 or 30, the nearest that can be"):
        video[25]
    with pytest.raises(VideoError, match="frame 3 of .* it is damaged, use frame 10, the nearest that can be read"):
        video[3]


def test_tracking_goes_on_after_a_gap(sam, damaged, tmp_path):
    session = sam.video(damaged)
    with pytest.raises(VideoError, match="frame 0 of .* cannot be read: it is damaged, use frame 10"):
        session.prompt(0, points=[(20, 20)])
    session.prompt(12, points=[(20, 20)])
    with pytest.warns(VideoWarning, match="could not be decoded and were left out: 20-29"):
        results = list(session.track())
    assert [result.index for result in results] == [*range(12, 20), *range(30, 40)]
    assert [result.time for result in results] == pytest.approx([result.index / RATE for result in results])
    with pytest.warns(VideoWarning, match="left out: 0-9"):
        assert [result.index for result in session.track(direction="backward")] == [12, 11, 10]
    with pytest.warns(VideoWarning, match="left out: 20-28"):
        assert [result.index for result in session.track(every=4)] == [12, 16, 32, 36]
    session.write(tmp_path / "masks.jsonl")
    with pytest.warns(VideoWarning, match="left out: 20-29"):
        session.write(tmp_path / "masked.mp4")
    written = [json.loads(line) for line in (tmp_path / "masks.jsonl").read_text().splitlines()]
    assert [line["frame"] for line in written] == READABLE
    assert [line["time"] for line in written] == pytest.approx([frame / RATE for frame in READABLE])


def test_an_interrupted_tracking_resumes_after_a_gap(sam, damaged, tmp_path):
    session = sam.video(damaged)
    session.prompt(15, points=[(20, 20)])
    for result in session.track():
        if result.index == 19:
            break
    session.save(tmp_path / "session.zip")
    resumed = sam.resume(tmp_path / "session.zip")
    with pytest.warns(VideoWarning, match="left out: 20-29"):
        assert [result.index for result in resumed.resume_tracking()] == list(range(30, 40))


def test_everything_searches_the_next_frame_if_one_is_lost(sam, damaged, monkeypatch):
    searched = []
    monkeypatch.setattr(
        "masklet.video.discovery.ObjectFinder._find", lambda self, frame, *others: searched.append(frame.index) or {}
    )
    with pytest.warns(VideoWarning):
        assert [result.index for result in sam.video(damaged).everything(every=5)] == READABLE
    assert searched == [10, 15, 30, 35]


def test_a_notebook_shows_a_damaged_video(sam, damaged):
    assert sam.video(damaged)._repr_png_()


def test_the_command_tracks_through_a_damaged_video(damaged, tiny_folder, tmp_path):
    lines = tmp_path / "masks.jsonl"
    arguments = ["video", damaged, "--point", "12:20,20", "--model", tiny_folder, "--jsonl", lines]
    with pytest.warns(VideoWarning, match="left out: 20-29"):
        result = CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exit_code == 0, result.output
    assert [json.loads(line)["frame"] for line in lines.read_text().splitlines()] == [*range(12, 20), *range(30, 40)]


def test_a_video_of_variable_rate_is_not_taken_for_a_damaged_one(tmp_path):
    """A camera that skips frames now and then leaves holes in its rate, and nothing is missing."""
    numbers = [number for number in range(80) if number % 7]
    path = tmp_path / "video.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=RATE)
        stream.height, stream.width, stream.pix_fmt = *SIZE_HW, "yuv420p"
        for number in numbers:
            frame = av.VideoFrame.from_ndarray(image_of(number % FRAMES))
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    frames = list(open_video(path))
    assert [frame.index for frame in frames] == list(range(len(numbers)))
    np.testing.assert_allclose([frame.time for frame in frames], (np.array(numbers) - numbers[0]) / RATE, atol=2e-3)


def write_without(path, codec, dropped, count=60):
    """A video whose recorder dropped frames before it encoded them."""
    name, pix_fmt, options = CODECS[codec]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(name, rate=RATE, options=options)
        stream.height, stream.width, stream.pix_fmt = *SIZE_HW, pix_fmt
        sound = container.add_stream("pcm_s16le", rate=8000) if path.suffix == ".mkv" else None
        for number in range(count):
            if number not in dropped:
                frame = av.VideoFrame.from_ndarray(image_of(number % FRAMES))
                frame.pts = number
                container.mux(stream.encode(frame))
            if sound:
                audio = av.AudioFrame(format="s16", layout="mono", samples=8000 // RATE)
                audio.sample_rate, audio.pts = 8000, number * 8000 // RATE
                container.mux(sound.encode(audio))
        container.mux(stream.encode(None))
    return path


DROPPED = (20, 41)
RECORDED = [number for number in range(60) if number not in DROPPED]


@pytest.mark.parametrize(
    ("suffix", "codec"),
    [
        ("mkv", "h264 with B-frames"),
        ("mkv", "mpeg4"),
        ("mp4", "h264, open GOP"),
        ("ts", "h264 with B-frames"),
        ("avi", "mjpeg"),
        pytest.param("mp4", "hevc", marks=pytest.mark.slow),
        pytest.param("webm", "vp9", marks=pytest.mark.slow),
    ],
)
def test_a_video_whose_recorder_dropped_frames_is_whole(suffix, codec, tmp_path):
    path = write_without(tmp_path / f"video.{suffix}", codec, DROPPED)
    video = open_video(path)
    assert (len(video), video.gaps) == (len(RECORDED), [])
    frames = list(video)  # a warning would be an error
    assert [frame.index for frame in frames] == list(range(len(RECORDED)))
    np.testing.assert_allclose([frame.time for frame in frames], np.array(RECORDED) / RATE, atol=2e-3)


@pytest.mark.parametrize("suffix", ["mkv", "mp4"])
@pytest.mark.parametrize("live", [True, False])
def test_a_written_video_may_lack_frames(suffix, live, tmp_path):
    path = tmp_path / f"video.{suffix}"
    with VideoWriter(path, 30, live=live) as out:
        for number in RECORDED:
            out.write(np.full((*SIZE_HW, 3), 4 * number, np.uint8), number / 30)
    video = open_video(path)
    assert video.gaps == []
    frames = list(video)
    assert [frame.index for frame in frames] == list(range(len(RECORDED)))
    np.testing.assert_allclose([frame.time for frame in frames], np.array(RECORDED) / 30, atol=2e-3)
    np.testing.assert_allclose([frame.image.mean() for frame in frames], 4 * np.array(RECORDED), atol=2)


def test_a_recording_that_is_cut_may_lack_frames(tmp_path):
    path, copy = tmp_path / "video.mp4", tmp_path / "cut.mp4"
    noise = np.random.default_rng(0).integers(0, 255, (150, *SIZE_HW, 3), np.uint8)
    numbers = [number for number in range(150) if number not in DROPPED]
    with VideoWriter(path, 30, live=True) as out:
        for number in numbers:
            out.write(noise[number], number / 30)
        data = (tmp_path / "video.part.mp4").read_bytes()
    copy.write_bytes(data[: len(data) * 4 // 5])
    video = open_video(copy)
    assert (len(video) > 60, video.gaps) == (True, [])
    with pytest.warns(VideoWarning, match="is cut off"):
        frames = list(video)
    np.testing.assert_allclose([frame.time for frame in frames], np.array(numbers[: len(frames)]) / 30, atol=2e-3)


@pytest.mark.parametrize("suffix", ["mp4", "h264"])  # lengths or start codes before the units
@pytest.mark.parametrize(
    ("options", "order_step"),
    [
        ({"bf": "2", "g": "10"}, 2),
        ({"bf": "2", "g": "10", "x264-params": "cqm=jvt:interlaced=1:scenecut=0"}, 2),
        ({"bf": "0", "g": "10", "profile": "baseline"}, None),
    ],
)
def test_pictures_of_h264_are_counted(suffix, options, order_step, tmp_path):
    path = tmp_path / f"video.{suffix}"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options=options)
        stream.height, stream.width, stream.pix_fmt = *SIZE_HW, "yuv420p"
        packets = [p for index in range(35) for p in stream.encode(av.VideoFrame.from_ndarray(image_of(index)))]
        packets += stream.encode(None)
        times = [packet.pts for packet in packets]
        container.mux(packets)
    shown = [sorted(times).index(time) for time in times]
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        counters = counters_of(bytes(stream.codec_context.extradata))
        stored = [packet for packet in container.demux(stream) if packet.size]
        pictures = [picture_of(bytes(packet), counters) for packet in stored]
    assert [picture.is_idr for picture in pictures] == [packet.is_keyframe for packet in stored]
    begin = number = 0
    for place, picture in enumerate(pictures):
        if picture.is_idr:
            begin, number = place, 0
        assert picture.number == number % (1 << counters.number_bits)
        number += picture.is_reference
        if order_step is None:
            assert picture.order is None
        else:
            order = order_step * (shown[place] - shown[begin])
            assert picture.order == (pictures[begin].order + order) % (1 << counters.order_bits)
