"""Live video: only the newest frame is held, the source is connected again, and nothing waits forever."""

import gc
import math
import socket
import subprocess
import sys
import threading
import time
import traceback

import av
import numpy as np
import pytest

from masklet import LiveVideo, PromptError, VideoError
from masklet.video import address, live_reader
from masklet.video.address import is_live_address, read_address
from masklet.video.live_reader import Clock
from masklet.video.newest_frame import Newest, Received

from .live_server import GOP, frame_of, mjpeg, mpegts, number_of, send_http, send_rtsp, serving


@pytest.fixture(scope="module")
def chunks():
    return mpegts(60)


@pytest.fixture
def short_pauses(monkeypatch):
    monkeypatch.setattr(live_reader, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(live_reader, "LAST_PAUSE", 0.02)


def tcp(chunks, fps=100, burst=30):
    def script(server, client):
        for chunk in server.paced(chunks, fps, burst):
            client.sendall(chunk)

    return script


def stalling(chunks):
    """Sends some frames, and then nothing more."""

    def script(server, client):
        client.sendall(b"".join(chunks))
        while client.recv(4096):  # until the client is gone
            pass

    return script


def url(server, scheme="tcp"):
    return f"{scheme}://user:secret@127.0.0.1:{server.port}/path?token=hidden"


def received_from(camera):
    """All frames, and the message of the error that ends them."""
    frames = []
    try:
        for frame in camera:
            frames.append(frame)
    except VideoError as error:
        return frames, str(error)
    pytest.fail("live video ended without an error")


def http(chunks, kind="video/mp2t"):
    return lambda server, client: send_http(client, server.paced(chunks, 100, burst=30), kind)


SOURCES = {
    "tcp": ("tcp", lambda chunks: tcp(chunks)),
    "http": ("http", http),
    "mjpeg": ("http", lambda _: http(mjpeg(60), "multipart/x-mixed-replace;boundary=frame")),
    "rtsp": ("rtsp", lambda chunks: lambda server, client: send_rtsp(client, server.paced(chunks, 100, burst=30))),
}


@pytest.mark.parametrize("source", SOURCES)
def test_frames_come_with_their_numbers_and_times(source, chunks):
    scheme, script = SOURCES[source]
    with serving(script(chunks)) as server, LiveVideo(url(server, scheme), reconnect=0, timeout=5) as camera:
        assert camera.size_hw == (48, 64)
        frames, _ = received_from(camera)
    assert len(frames) > 5
    assert frames[-1].index >= 58  # the end of the last packet is not marked in RTP
    assert [number_of(frame.image) for frame in frames] == [frame.index for frame in frames]
    assert camera.received == frames[-1].index + 1
    assert camera.received - camera.dropped == len(frames)
    if source != "mjpeg":  # which has no times
        np.testing.assert_allclose([frame.time for frame in frames], [frame.index / 30 for frame in frames], atol=1e-4)


def test_a_slow_consumer_gets_the_newest_frame_and_the_others_are_dropped(chunks):
    with serving(tcp(chunks, burst=10)) as server, LiveVideo(url(server), reconnect=0, timeout=5) as camera:
        for _ in range(2):
            time.sleep(0.2)  # twenty frames are sent
            sent = server.sent
            frame = next(camera)
            assert sent - 10 <= number_of(frame.image) == frame.index
            assert sum(type(held) is Received for held in gc.get_objects()) <= 2  # one kept, one being replaced
    assert camera.dropped >= 20


def test_the_source_is_connected_again_and_numbers_and_times_go_on(chunks, short_pauses, caplog):
    server = serving(tcp(chunks[:40]), tcp(chunks[:40]))
    with server as server, LiveVideo(url(server), reconnect=0.3, timeout=5) as camera:
        frames, message = received_from(camera)
    assert [number_of(frame.image) for frame in frames] == [frame.index % 40 for frame in frames]
    assert frames[-1].index == 79
    times = [frame.time for frame in frames]
    assert all(a < b for a, b in zip(times, times[1:], strict=False))
    again = [frame for frame in frames if frame.index >= 40]
    np.testing.assert_allclose(
        [frame.time - again[-1].time for frame in again],
        [(frame.index - again[-1].index) / 30 for frame in again],
        atol=1e-4,
    )
    assert camera.reconnects == 1
    assert "Connection refused" in message
    assert "is lost (it has ended)" in caplog.text
    assert "secret" not in caplog.text + message


def test_a_source_that_stalls_is_connected_again(chunks, short_pauses, caplog):
    with (
        serving(stalling(chunks[:35]), tcp(chunks)) as server,
        LiveVideo(url(server), reconnect=5, timeout=0.2) as camera,
    ):
        while next(camera).index < 50:
            pass
    assert "no answer for 0.2 s" in caplog.text


def test_a_source_that_is_gone_is_given_up(chunks, short_pauses):
    with serving(tcp(chunks[:35])) as server, LiveVideo(url(server), reconnect=0.1, timeout=5) as camera:
        _, message = received_from(camera)
        assert message.startswith("tcp://***@127.0.0.1")
        with pytest.raises(VideoError, match="is gone"):
            next(camera)
    assert not camera._thread.is_alive()


def test_a_source_that_never_answers_ends_with_an_error():
    with serving(stalling([]), stalling([])) as server:
        with pytest.raises(VideoError, match=r"no answer for 0.2 s"):
            LiveVideo(url(server), timeout=0.2)
        with pytest.raises(VideoError, match=r"no answer for 0.2 s"):
            LiveVideo(url(server, "http"), timeout=0.2)


def test_a_call_that_cannot_be_interrupted_ends_with_an_error(monkeypatch):
    released = threading.Event()
    monkeypatch.setattr(av, "open", lambda *_, **__: released.wait())
    monkeypatch.setattr("masklet.video.live.CLOSING_SECONDS", 0.01)
    with pytest.raises(VideoError, match="camera 0 does not respond"):
        LiveVideo(0, timeout=0.05)
    released.set()


def test_a_source_that_sends_for_long_is_alive(chunks):
    with serving(tcp(chunks, fps=50)) as server, LiveVideo(url(server), reconnect=0, timeout=5) as camera:
        camera._newest.patience = 0.3  # 0.6 s are sent
        assert received_from(camera)[0][-1].index == 59


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rtsp://user:secret@127.0.0.1:1/x?token=hidden", "Connection refused"),
        ("http://user:s/e@cret@127.0.0.1:1/x?token=hidden", "."),
        ("nonsense://user:secret@127.0.0.1/?hidden", "Protocol not found"),
        ("/dev/video63", "No such file"),
        ("nothing.mp4", "expected a camera .* a URL .* or a video file"),
    ],
)
def test_a_source_that_cannot_be_opened_is_reported_without_passwords(text, message, capfd):
    with pytest.raises(VideoError, match=message) as caught:
        LiveVideo(text, timeout=2)
    reported = "".join(traceback.format_exception(caught.value)) + "".join(capfd.readouterr())
    for secret in ("secret", "cret@", "hidden"):
        assert secret not in reported.replace(text, "")  # this test's own lines in the traceback
    assert caught.value.__context__ is None


def test_what_is_not_a_video_is_refused(tmp_path):
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(VideoError, match="Invalid data"):
        LiveVideo(tmp_path / "text.mp4", timeout=2)
    with pytest.raises(VideoError, match="no input format|nonsense"):
        LiveVideo(tmp_path / "text.mp4", timeout=2, format="nonsense")


@pytest.mark.parametrize("arguments", [{"timeout": 0}, {"timeout": math.inf}, {"reconnect": -1}])
def test_times_that_make_no_sense_are_refused(arguments):
    with pytest.raises(VideoError, match="expected a .*number of seconds"):
        LiveVideo("rtsp://127.0.0.1:1", **arguments)


def test_close_ends_the_thread_and_an_iteration(chunks, monkeypatch):
    monkeypatch.setattr("masklet.video.live.CLOSING_SECONDS", 0.01)
    with serving(stalling(chunks[:35])) as server:
        camera = LiveVideo(url(server), timeout=5)
        closing = threading.Timer(0.1, camera.close)
        closing.start()
        assert len(list(camera)) <= 35  # and no more are awaited
        closing.join()
        camera.close()
        server.close()
        camera._thread.join()
        assert list(camera) == []


def test_frames_that_were_not_taken_are_gone_after_close():
    newest = Newest(patience=10)
    newest.put(frame_of(0), 0.0)
    newest.close()
    newest.put(frame_of(1), 1.0)
    assert newest.take("camera") is None


def test_the_thread_ends_when_the_video_is_forgotten(chunks):
    with serving(tcp(chunks, fps=30)) as server:
        thread = LiveVideo(url(server), timeout=5)._thread
        gc.collect()
        thread.join(10)
        assert not thread.is_alive()


def test_frames_of_another_size_and_the_same_shape_are_resized(chunks, short_pauses):
    server = serving(tcp(chunks[:35]), tcp(mpegts(40, (96, 128))))
    with server as server, LiveVideo(url(server), reconnect=0.2, timeout=5) as camera:
        frames, _ = received_from(camera)
    assert frames[-1].index == 74
    assert {frame.image.shape for frame in frames} == {(48, 64, 3)}
    assert number_of(frames[-1].image) == 39


def test_frames_of_another_shape_are_refused(chunks, short_pauses):
    server = serving(tcp(chunks[:35]), tcp(mpegts(40, (64, 48))))
    with server as server, LiveVideo(url(server), reconnect=5, timeout=5) as camera:
        _, message = received_from(camera)
    assert "now sends 48×64 instead of 64×48" in message


def test_the_first_frames_are_whole_where_the_video_starts_between_keyframes(chunks):
    with serving(tcp(chunks[GOP - 3 :])) as server, LiveVideo(url(server), reconnect=0, timeout=5) as camera:
        frames, _ = received_from(camera)
    assert [number_of(frame.image) for frame in frames] == [frame.index + GOP for frame in frames]
    assert camera.received == 60 - GOP


@pytest.fixture
def file(tmp_path):
    with av.open(str(tmp_path / "file.mp4"), "w") as container:
        stream = container.add_stream("libx264", 100, options={"g": "10", "crf": "1", "bf": "2"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv444p"
        for number in range(60):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame_of(number))))
        container.mux(stream.encode(None))
    return tmp_path / "file.mp4"


def test_a_file_is_played_at_its_own_rate_and_ends(file):
    start = time.monotonic()
    with LiveVideo(file) as video:
        assert video.fps == 100
        frames = list(video)
    assert time.monotonic() - start >= 0.57
    assert frames[-1].index == 59
    assert [number_of(frame.image) for frame in frames] == [frame.index for frame in frames]
    np.testing.assert_allclose([frame.time for frame in frames], [frame.index / 100 for frame in frames], atol=1e-4)
    assert video.reconnects == 0


def test_a_file_with_metadata_in_an_unknown_encoding_is_played(file):
    content = file.read_bytes()
    assert b"Lavf" in content  # the name of the program
    file.write_bytes(content.replace(b"Lavf", b"Caf\xe9"))
    with LiveVideo(file) as video:
        assert [number_of(frame.image) for frame in video][-1] == 59


def test_a_file_whose_decoder_cannot_be_opened_is_refused(tmp_path):
    with av.open(str(tmp_path / "file.mov"), "w") as container:
        stream = container.add_stream("rawvideo", 100)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"  # which MOV does not store
        for number in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame_of(number))))
    with (
        pytest.raises(VideoError, match="it has no frame that can be decoded"),
        LiveVideo(tmp_path / "file.mov") as video,
    ):
        list(video)


def test_a_decoder_that_is_too_slow_drops_what_piles_up(file, monkeypatch):
    decoded, packets = live_reader.Connection._decoded, []

    def slowly_decoded(self, packet):
        packets.append(packet)
        time.sleep(0.02)  # a frame comes every 0.01 s
        return decoded(self, packet)

    monkeypatch.setattr(live_reader.Connection, "_decoded", slowly_decoded)
    monkeypatch.setattr(live_reader, "MAX_BEHIND", 0.1)
    with LiveVideo(file) as video:
        frames = list(video)
    assert [number_of(frame.image) for frame in frames] == [frame.index for frame in frames]
    assert frames[-1].index > 20  # it recovers at a keyframe
    assert len(packets) < 50
    assert video.received == 60


def test_times_rise_whatever_the_source_says():
    clock = Clock()
    assert clock.time_of(100.0, 5.0) == 0
    assert clock.time_of(100.5, 5.1) == 0.5
    assert clock.time_of(100.5, 5.2) == 0.5 + live_reader.MIN_STEP  # the same time twice
    assert clock.time_of(None, 6.0) == 1.0  # no time: when it came
    assert clock.time_of(7.0, 7.0) == 2.0  # another clock
    assert clock.time_of(7.5, 7.1) == 2.5
    clock.restart()
    assert clock.time_of(8.0, 10.0) == 5.0
    clock.restart()  # the frames before came faster than they were shown
    assert clock.time_of(0.0, 6.0) == 5.0 + live_reader.MIN_STEP
    assert clock.time_of(0.5, 6.1) == pytest.approx(5.5 + live_reader.MIN_STEP)


@pytest.mark.parametrize(
    ("platform", "text", "opened"),
    [
        ("linux", "0", ("/dev/video0", "v4l2")),
        ("linux", "/dev/video2", ("/dev/video2", "v4l2")),
        ("darwin", "1", ("1", "avfoundation")),
        ("win32", "0", ("video=Front", "dshow")),
        ("win32", "video=Back", ("video=Back", "dshow")),
        ("linux", "rtsp://host/x", ("rtsp://host/x", None)),
    ],
)
def test_a_camera_is_opened_as_its_platform_does(monkeypatch, platform, text, opened):
    class Device:
        name, media_types = "Front", ["video"]

    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(address.av, "enumerate_input_devices", lambda _: [Device])
    read = read_address(text)
    assert (read.url, read.format) == opened


def test_live_addresses_are_distinguished_from_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert all(map(is_live_address, ("0", "/dev/video0", "rtsp://host", "HTTP://host/x.mp4", "video=Front")))
    (tmp_path / "0").mkdir()
    assert not any(map(is_live_address, ("0", "clip.mp4", "folder/clip", "C:/clip.mp4", "x" * 5000)))


def test_live_frames_are_tracked_with_their_times(sam, file):
    live = sam.stream()
    results = []
    with LiveVideo(file) as video:
        for frame in video:
            prompts = {"all": {"box": (5, 5, 60, 40)}} if live.count == 0 else None
            results.append((frame.time, live.push(frame.image, prompts, time=frame.time)))
    assert [result.time for _, result in results] == [time for time, _ in results]
    assert live.correct("all", points=[(30, 20)]).time == results[-1][0]
    with pytest.raises(PromptError, match="expected increasing times"):
        live.push(frame_of(0), time=results[-1][0])
    for wrong in (math.nan, 10**400, "60"):
        with pytest.raises(PromptError, match="expected a finite number"):
            live.push(frame_of(0), time=wrong)
    assert live.count == len(results)


SERVER = """
import sys, time
import av, numpy as np

with av.open(f"tcp://127.0.0.1:{sys.argv[1]}?listen=1", "w", format="mpegts") as container:
    stream = container.add_stream("libx264", 30, options={"g": "10", "tune": "zerolatency"})
    stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
    while True:
        container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8))))
        time.sleep(1 / 60)
"""


@pytest.mark.slow
def test_a_server_that_is_killed_and_started_again_is_found_again():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]

    def start():
        return subprocess.Popen([sys.executable, "-c", SERVER, str(port)])

    def open_when_started():
        for _ in range(200):
            try:
                return LiveVideo(f"tcp://127.0.0.1:{port}", timeout=5, reconnect=30)
            except VideoError:
                time.sleep(0.1)
        raise AssertionError("the server did not start")

    server = start()
    with open_when_started() as camera:
        before = next(camera)
        server.kill()
        server.wait()
        time.sleep(1)
        server = start()
        while camera.reconnects == 0:
            after = next(camera)
        server.kill()
        server.wait()
    assert after.index > before.index
    assert after.time - before.time > 1
