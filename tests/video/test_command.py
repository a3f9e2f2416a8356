"""masklet video."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import av
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import masklet
from masklet.cli import app
from masklet.errors import MaskletError, PromptError
from masklet.video.frames import open_video
from masklet.video.outputs import open_writers
from masklet.video.writer import VideoWriter

from .live_server import frame_of, mpegts, number_of, serving

FRAMES, HEIGHT, WIDTH = 6, 48, 80


@pytest.fixture
def video(tmp_path):
    folder = tmp_path / "video"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(FRAMES):
        Image.fromarray(rng.integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)).save(folder / f"frame{index}.png")
    return folder


def run(*arguments):
    return CliRunner().invoke(app, ["video", *map(str, arguments)])


def test_a_video_is_tracked_and_written_in_every_format(video, tiny_folder, tmp_path):
    lines, pngs, overlay = tmp_path / "masks.jsonl", tmp_path / "masks", tmp_path / "masked.mp4"
    result = run(
        video, "--point", "0:20,20", "--point", "0:70,40,0", "--box", "ball@2:10,5,60,40", "--model", tiny_folder,
        "--jsonl", lines, "--masks", pngs, "--out", overlay,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert result.output.splitlines()[0] == "object\tvisible frames\tmean IoU score"
    written = [json.loads(line) for line in lines.read_text().splitlines()]
    assert [line["frame"] for line in written] == list(range(FRAMES))
    assert all([entry["object_id"] for entry in line["objects"]] == ["1", "ball"] for line in written)
    assert len(list(pngs.glob("*.png"))) == FRAMES
    with Image.open(pngs / "00000.png") as first:
        assert first.size == (WIDTH, HEIGHT)
    assert open_video(overlay).count == FRAMES


@pytest.mark.parametrize("policy", ["samurai", "sam2long"])
def test_masks_are_those_of_the_policy_when_all_frames_are_done(video, tiny_folder, tmp_path, policy):
    masks = tmp_path / "masks"
    result = run(video, "--box", "0:10,5,60,40", "--model", tiny_folder, "--policy", policy, "--masks", masks)
    assert result.exit_code == 0, result.output
    session = masklet.load(tiny_folder).video(video, policy=policy)
    session.prompt(0, 1, box=(10, 5, 60, 40))
    assert len(list(session.track())) == FRAMES
    for result in session.results():
        with Image.open(masks / f"{result.index:05}.png") as written:
            np.testing.assert_array_equal(np.asarray(written) > 0, result.masks.masks[0])
    refused = run(video, "--box", "0:10,5,60,40", "--model", tiny_folder, "--policy", "sam9")
    assert "policy is 'sam9': expected 'paper', 'sam3'" in str(refused.exception)


def test_part_of_a_video_is_tracked_backward(video, tiny_folder, tmp_path):
    lines, overlay = tmp_path / "masks.jsonl", tmp_path / "masked.mkv"
    options = ("--start", 4, "--end", 1, "--reverse", "--jsonl", lines, "--out", overlay)
    result = run(video, "--point", "4:20,20", "--model", tiny_folder, *options)
    assert result.exit_code == 0, result.output
    assert [json.loads(line)["frame"] for line in lines.read_text().splitlines()] == [4, 3, 2, 1]
    assert [frame.time for frame in open_video(overlay)] == [0, 0.04, 0.08, 0.12]  # it is played forward


def test_every_other_frame_is_tracked_one_object_at_a_time(video, tiny_folder, tmp_path):
    lines, overlay = tmp_path / "masks.jsonl", tmp_path / "masked.mp4"
    options = ("--every", 2, "--max-objects", 1, "--out", overlay, "--jsonl", lines)
    result = run(video, "--point", "0:20,20", "--box", "ball@0:10,5,60,40", "--model", tiny_folder, *options)
    assert result.exit_code == 0, result.output
    assert [json.loads(line)["frame"] for line in lines.read_text().splitlines()] == [0, 2, 4]
    assert open_video(overlay).fps == open_video(video).fps / 2  # as long as the video itself


def test_a_mask_is_read_from_an_image(video, tiny_folder, tmp_path):
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[10:30, 10:50] = 255
    Image.fromarray(mask).save(tmp_path / "prompt.png")
    result = run(video, "--mask", f"0:{tmp_path / 'prompt.png'}", "--model", tiny_folder, "--object", "cup", "--end", 1)
    assert result.exit_code == 0, result.output
    assert "cup" in result.output


def test_a_mask_that_numbers_objects_is_refused(video, tiny_folder, tmp_path):
    numbers = np.tile(np.arange(WIDTH, dtype=np.uint8) * 4 // WIDTH, (HEIGHT, 1))
    Image.fromarray(numbers).save(tmp_path / "prompt.png")
    result = run(video, "--mask", f"0:{tmp_path / 'prompt.png'}", "--model", tiny_folder)
    assert isinstance(result.exception, PromptError)
    assert str(result.exception).endswith("If the values are numbers of masks, select one: mask == 1")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "nothing to track"),
        (("--point", "20,20"), "expected .*FRAME:"),
        (("--point", "0:20"), "expected 2 or 3 numbers"),
        (("--point", "99:20,20"), "99"),
        (("--box", "0:1,1,9,9", "--box", "0:2,2,8,8"), "several boxes"),
    ],
)
def test_invalid_options_are_refused(video, tiny_folder, options, message):
    result = run(video, "--model", tiny_folder, *options)
    assert isinstance(result.exception, MaskletError)
    assert result.exit_code != 0
    with pytest.raises(MaskletError, match=message):
        raise result.exception


def test_a_missing_video_is_refused(tmp_path, tiny_folder):
    result = run(tmp_path / "nothing.mp4", "--point", "0:1,1", "--model", tiny_folder)
    assert "there is no video" in str(result.exception)


BOX = ("--box", "ball@0:10,5,60,40")


@pytest.fixture
def clip(tmp_path):
    """A file of 0.6 s, which is played as if it was live."""
    with VideoWriter(tmp_path / "clip.mp4", fps=50) as out:
        for number in range(30):
            out.write(frame_of(number))
    return tmp_path / "clip.mp4"


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def times_of(path):
    return [frame.time for frame in open_video(path)]


def test_live_video_is_tracked_and_recorded_with_its_times(clip, tiny_folder, tmp_path):
    lines, pngs, recording = tmp_path / "masks.jsonl", tmp_path / "masks", tmp_path / "recording.mp4"
    outputs = ("-o", recording, "--json", lines, "--masks", pngs)
    result = run(clip, "--live", *BOX, "--point", "rest@60,45", "--model", tiny_folder, *outputs)
    assert result.exit_code == 0, result.output
    written = lines_of(lines)
    assert [line["frame"] for line in written] == list(range(len(written)))
    assert {entry["object_id"] for entry in written[-1]["objects"]} == {"ball", "rest"}
    times = [line["time"] for line in written]
    assert times[0] == 0
    np.testing.assert_allclose(np.array(times) * 50, np.round(np.array(times) * 50), atol=0.1)  # those of the clip
    np.testing.assert_allclose(times_of(recording), times, atol=2e-3)
    assert len(list(pngs.iterdir())) == len(written)
    assert f"masklet: {len(written)} of " in result.output
    assert not list(tmp_path.glob("*.part.*"))


def test_live_video_ends_after_so_many_frames(clip, tiny_folder, tmp_path):
    assert (
        run(clip, "--live", *BOX, "--model", tiny_folder, "--frames", 2, "--json", tmp_path / "a.jsonl").exit_code == 0
    )
    assert len(lines_of(tmp_path / "a.jsonl")) == 2


@pytest.fixture
def endless():
    """A server that sends frames until it is closed."""
    chunks = mpegts(600)

    def script(server, client):
        for chunk in server.paced(chunks, 30, burst=30):
            client.sendall(chunk)

    with serving(script, script) as server:
        yield f"tcp://user:secret@127.0.0.1:{server.port}"


def test_live_video_ends_after_so_many_seconds(endless, tiny_folder, tmp_path):
    result = run(endless, "--live", *BOX, "--model", tiny_folder, "--duration", 0.4, "--json", tmp_path / "a.jsonl")
    assert result.exit_code == 0, result.output
    times = [line["time"] for line in lines_of(tmp_path / "a.jsonl")]
    assert times[0] == 0
    assert times[-1] < 5


def test_live_video_without_a_frame_is_an_error(clip, tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("masklet.cli.video.track_live", lambda *_: iter(()))
    result = run(clip, "--live", *BOX, "--model", tiny_folder, "--duration", 0.5, "-o", tmp_path / "a.mp4")
    assert "no frame came within --duration 0.5" in str(result.exception)
    assert not (tmp_path / "a.mp4").exists()


@pytest.fixture(params=[signal.SIGINT, signal.SIGTERM])
def number(request):
    """A signal that is not ignored, as Ctrl-C is by jobs in the background."""
    before = signal.signal(request.param, signal.default_int_handler)
    yield request.param
    signal.signal(request.param, before)


def test_an_interrupt_ends_live_video_with_whole_files(endless, tiny_folder, tmp_path, number):
    before = signal.getsignal(number)

    def interrupt():
        while signal.getsignal(number) == before or not (tmp_path / "a.part.jsonl").exists():
            time.sleep(0.01)
        while (tmp_path / "a.part.jsonl").read_text().count("\n") < 3:  # lines appear as frames are tracked
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=interrupt)
    thread.start()
    outputs = ("--json", tmp_path / "a.jsonl", "-o", tmp_path / "a.mp4")
    result = run(endless, "--live", *BOX, "--model", tiny_folder, *outputs)
    thread.join()
    assert result.exit_code == 0, result.output
    lines = lines_of(tmp_path / "a.jsonl")
    assert len(lines) >= 3
    np.testing.assert_allclose(times_of(tmp_path / "a.mp4"), [line["time"] for line in lines], atol=2e-3)
    assert signal.getsignal(number) == before


def test_a_source_that_is_gone_leaves_whole_files_and_an_error(tiny_folder, tmp_path):
    def script(server, client):
        for chunk in server.paced(mpegts(60), 30, burst=30):
            client.sendall(chunk)

    outputs = ("--json", tmp_path / "a.jsonl", "-o", tmp_path / "a.mkv")
    with serving(script) as server:
        address = f"tcp://user:secret@127.0.0.1:{server.port}"
        result = run(address, "--live", "--reconnect", 0, *BOX, "--model", tiny_folder, *outputs)
    assert result.exit_code != 0
    assert "is gone (it has ended)" in str(result.exception)
    assert "secret" not in str(result.exception) + result.output
    lines = lines_of(tmp_path / "a.jsonl")
    np.testing.assert_allclose(times_of(tmp_path / "a.mkv"), [line["time"] for line in lines], atol=2e-3)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov"])
def test_a_recording_can_be_played_before_it_is_complete(tmp_path, suffix):
    recording, copy = tmp_path / f"a{suffix}", tmp_path / f"copy{suffix}"
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 255, (100, 48, 64, 3), dtype=np.uint8)
    with VideoWriter(recording, 30, live=True) as out:
        for number, frame in enumerate(frames):
            out.write(frame, number / 10)
        shutil.copy(tmp_path / f"a.part{suffix}", copy)  # as after a kill: nothing was closed
        assert not recording.exists()
    assert len(list(open_video(copy))) >= 80
    assert len(list(open_video(recording))) == 100
    assert not (tmp_path / f"a.part{suffix}").exists()


def test_lines_of_live_video_can_be_read_at_once(sam, image, tmp_path):
    stream = sam.stream()
    with open_writers(jsonl=tmp_path / "a.jsonl", fps=30, size_hw=image.shape[:2], live=True) as writers:
        for number in range(3):
            writers.write(stream.push(image, {1: {"box": (20, 10, 50, 30)}} if number == 0 else None))
            assert [line["frame"] for line in lines_of(tmp_path / "a.part.jsonl")] == list(range(number + 1))


def test_what_a_killed_run_has_recorded_is_not_replaced(clip, tiny_folder, tmp_path):
    for name in ("a.part.mp4", "a.part.jsonl"):
        (tmp_path / name).write_text("an earlier recording")
        result = run(
            clip, "--live", *BOX, "--model", tiny_folder, "-o", tmp_path / "a.mp4", "--json", tmp_path / "a.jsonl"
        )
        assert f"{name} is what an interrupted run has written" in str(result.exception)
        assert (tmp_path / name).read_text() == "an earlier recording"
        (tmp_path / name).unlink()


def test_a_snapshot_shows_where_objects_are(clip, tmp_path):
    result = run(clip, "--live", "--snapshot", tmp_path / "frame.png")
    assert result.exit_code == 0, result.output
    with Image.open(tmp_path / "frame.png") as image:
        assert image.size == (64, 48)
        assert number_of(np.asarray(image)) < 30
    assert "64×48 pixels" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("rtsp://u:secret@host/x", *BOX), r"rtsp://\*\*\*@host/x is a camera or a stream: add --live"),
        (("0", *BOX), "0 is a camera or a stream: add --live"),
        (("/dev/video63", "--live", *BOX), "cannot receive video from camera /dev/video63"),
        (("rtsp://u:secret@host/x", "--live"), "nothing to track: .* --snapshot frame.png"),
        (("clip.mp4", *BOX, "--duration", "3"), "--duration is for live video: give --live as well"),
        (("clip.mp4", *BOX, "--reconnect", "0"), "--reconnect is for live video"),
        (("0", "--live", *BOX, "--end", "3"), "--start, --end, --every and --reverse are for files"),
        (("0", "--live", "--point", "1:20,20"), "expected frame 0, the only one"),
        (("0", "--live", *BOX, "--duration", "0"), "--duration 0: expected a positive number"),
        (("0", "--live", *BOX, "--input-option", "video_size"), "--input-option video_size: expected NAME=VALUE"),
        (("0", "--live", "--snapshot", "frame.txt"), "--snapshot frame.txt: expected a name that ends in .png"),
        (("0", "--live", *BOX, "-o", "a.gif"), "a.gif: expected a name ending in .mkv, .mov, .mp4"),
        (("0", "--live", *BOX, "-o", "-"), "only JSON goes to the standard output"),
    ],
)
def test_invalid_requests_for_live_video_are_refused(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    result = run(*arguments)
    assert result.exit_code != 0
    assert "secret" not in str(result.exception)
    with pytest.raises(MaskletError, match=message):
        raise result.exception


def test_options_of_the_source_reach_ffmpeg(clip, tmp_path, monkeypatch):
    opened = []

    def record(*_, **keywords):
        opened.append(keywords["options"])
        raise ValueError("recorded")

    monkeypatch.setattr(av, "open", record)
    size = ("--input-option", "video_size=1280x720", "--input-option", "framerate=60")
    run("0", "--live", "--snapshot", tmp_path / "a.png", *size)
    run("rtsp://host/x", "--live", "--snapshot", tmp_path / "a.png", "--input-option", "rtsp_transport=udp")
    assert opened == [
        {"video_size": "1280x720", "framerate": "60"},
        {"rtsp_flags": "prefer_tcp", "rtsp_transport": "udp"},
    ]


def start(*arguments):
    command = [sys.executable, "-m", "masklet", "video", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_process_that_is_ended_prints_lines_at_once_and_leaves_a_recording(endless, tiny_folder, tmp_path, number):
    process = start(endless, "--live", *BOX, "--model", tiny_folder, "--json", "-", "-o", tmp_path / "a.mp4")
    lines = []
    while not lines or lines[-1]["time"] < 2.5:
        lines.append(json.loads(process.stdout.readline()))  # while the process runs
    process.send_signal(number)
    rest, errors = process.communicate()
    lines += map(json.loads, rest.splitlines())
    assert "secret" not in errors
    if number == signal.SIGKILL:
        assert process.returncode == -number
        assert times_of(tmp_path / "a.part.mp4")[-1] > 0.5
    else:
        assert process.returncode == 0, errors
        np.testing.assert_allclose(times_of(tmp_path / "a.mp4"), [line["time"] for line in lines], atol=2e-3)
