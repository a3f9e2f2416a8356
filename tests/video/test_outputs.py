"""Written results: videos, folders of masks, lines of JSON, notebooks."""

import io
import json
import weakref
from base64 import b64encode

import av
import numpy as np
import pytest
from av.video.frame import VideoFrame
from PIL import Image
from video.test_tracking import BALL, CUP, HEIGHT, WIDTH, moving_square

from masklet.errors import PromptError, VideoError
from masklet.masks import PackedMasks, decode_rle
from masklet.results import Masks
from masklet.results.visualisation import PALETTE
from masklet.video import outputs
from masklet.video.frame_result import FrameResult
from masklet.video.frames import open_video
from masklet.video.outputs import Writers, index_image, json_line, open_writers
from masklet.video.writer import VideoWriter

SIZE_HW = (HEIGHT, WIDTH)


@pytest.fixture(scope="module")
def session(sam):
    """Two objects, tracked through all but the frames 6 to 8 of 12, the later frames first."""
    session = sam.video(moving_square(12))
    session.prompt(9, "cup", **CUP)
    session.prompt(2, "ball", **BALL)
    list(session.track(start=9))
    list(session.track(start=5, direction="backward"))
    return session


@pytest.fixture(scope="module")
def results(session):
    return list(session.results(with_images=True))


def assert_look_alike(first, second):
    """Videos of the same images: nearly always equal, but encoders with several threads do not guarantee it."""
    for ours, theirs in zip(open_video(first), open_video(second), strict=True):
        assert np.abs(ours.image.astype(int) - theirs.image).mean() < 3


TRACKED = [0, 1, 2, 3, 4, 5, 9, 10, 11]


def result_of(masks, logits=None, index=0, object_ids=None):
    """A frame with these masks, (objects, height, width) bool."""
    count = len(masks)
    logits = np.where(masks, 1.0, -1.0).astype(np.float32) if logits is None else logits
    scores = np.full(count, 0.5, np.float32)
    made = Masks(masks, logits, scores, np.arange(count), np.zeros((*masks.shape[1:], 3), np.uint8))
    return FrameResult(index, index / 25, object_ids or tuple(range(1, count + 1)), made, np.ones(count, np.float32))


def test_the_video_itself_is_not_overwritten(sam, tmp_path):
    file, folder = tmp_path / "video.mp4", tmp_path / "video"
    folder.mkdir()
    with VideoWriter(file) as out:
        for index, image in enumerate(moving_square(4)):
            out.write(image)
            Image.fromarray(image).save(folder / f"{index}.png")
    for path in (file, folder):
        session = sam.video(path)
        session.prompt(0, "cup", **CUP)
        list(session.track())
        with pytest.raises(VideoError, match="is the video itself"):
            session.write(path)
        assert open_video(path).count == 4


def test_a_video_of_every_third_frame_is_as_long_as_the_video(sam, tmp_path):
    session = sam.video(moving_square(12))
    session.prompt(1, "cup", **CUP)
    results = list(session.track(every=3))
    session.write(tmp_path / "masks.mp4")
    written = open_video(tmp_path / "masks.mp4")
    assert written.fps == session.video.fps / 3
    assert written.count == len(results) == 4


@pytest.mark.parametrize(("fps", "every"), [(1, 300), (2000, 1)])
def test_a_video_is_written_whose_frames_are_far_apart_or_close(fps, every, sam, tmp_path):
    with av.open(str(tmp_path / "video.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", fps)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for _ in range(3 * every):
            container.mux(stream.encode(VideoFrame(48, 32, "yuv420p")))
        container.mux(stream.encode())
    session = sam.video(tmp_path / "video.mp4")
    session.prompt(0, "all", box=(5, 5, 40, 30))
    assert len(list(session.track(every=every))) == 3
    session.write(tmp_path / "masks.mp4")
    times = [frame.time for frame in open_video(tmp_path / "masks.mp4")]
    np.testing.assert_allclose(times, np.arange(3) * every / fps, atol=1e-5)


def test_masks_are_written_to_a_folder_as_in_davis(session, results, tmp_path):
    session.write(tmp_path / "new" / "masks")
    files = sorted((tmp_path / "new" / "masks").iterdir())
    assert [file.name for file in files] == [f"{index:05}.png" for index in TRACKED]
    for file, result in zip(files, results, strict=True):
        image = Image.open(file)
        assert image.mode == "P"
        assert image.getpalette()[:9] == [0, 0, 0, *PALETTE[0], *PALETTE[1]]
        values = np.asarray(image)
        np.testing.assert_array_equal(values > 0, result.masks.masks.any(0))
        for number, mask in enumerate(result.masks.masks, start=1):
            assert mask[values == number].all()


def test_a_single_object_has_the_number_one(tmp_path):
    mask = np.zeros((1, *SIZE_HW), bool)
    mask[0, :10] = True
    with open_writers(masks=tmp_path / "masks", fps=25, size_hw=SIZE_HW) as writers:
        writers.write(result_of(mask, index=123456))
    values = np.asarray(Image.open(tmp_path / "masks" / "123456.png"))
    np.testing.assert_array_equal(values, mask[0])


def test_where_masks_overlap_the_higher_logit_is_on_top():
    logits = np.zeros((2, 4, 6), np.float32)
    logits[0, :, :4], logits[1, :, 2:] = (1, 2, 3, 4), (4, 3, 2, 1)
    image = index_image(result_of(logits > 0, logits).masks)
    assert np.asarray(image)[0].tolist() == [1, 1, 2, 1, 2, 2]


def test_a_mask_that_nothing_overlaps_is_drawn_whatever_its_logits():
    mask = np.ones((1, 4, 6), bool)
    assert (np.asarray(index_image(result_of(mask, -np.ones((1, 4, 6), np.float32)).masks)) == 1).all()


@pytest.mark.parametrize(("count", "mode"), [(0, "P"), (1, "P"), (255, "P"), (256, "I;16"), (300, "I;16")])
def test_beyond_255_objects_numbers_have_16_bits(count, mode, tmp_path):
    masks = np.arange(1, 321).reshape(16, 20) == np.arange(1, count + 1)[:, None, None]
    index_image(result_of(masks).masks).save(tmp_path / "m.png")
    image = Image.open(tmp_path / "m.png")
    assert image.mode == mode
    numbers = np.arange(1, 321).reshape(16, 20)
    np.testing.assert_array_equal(np.asarray(image), np.where(numbers <= count, numbers, 0))


def test_more_objects_than_a_png_has_values_are_refused():
    masks = Masks(np.ones((1, 2, 2), bool), np.ones((1, 2, 2), "f4"), np.ones(1, "f4"), np.array([65535]))
    with pytest.raises(VideoError, match=r"object 65536 does not fit .* write JSON lines \(\.jsonl\)"):
        index_image(masks)


def test_lines_of_json_are_written_from_packed_masks(session, tmp_path, monkeypatch):
    kinds, write_line = [], outputs.json_line

    def json_line(result):
        kinds.append(type(result.masks.masks))
        return write_line(result)

    monkeypatch.setattr(outputs, "json_line", json_line)
    session.write(tmp_path / "masks.jsonl")
    assert kinds == [PackedMasks] * len(TRACKED)


def test_lines_of_json_hold_the_results_of_a_frame(session, results, tmp_path):
    session.write(tmp_path / "masks.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "masks.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["frame"] for line in lines] == TRACKED
    for line, result in zip(lines, results, strict=True):
        assert line["time"] == result.time
        assert [entry["object_id"] for entry in line["objects"]] == list(result.object_ids)
        np.testing.assert_array_equal(decode_rle([o["segmentation"] for o in line["objects"]]), result.masks.masks)
        for place, entry in enumerate(line["objects"]):
            x0, y0, x1, y1 = result.masks.boxes[place].tolist()
            assert entry["bbox"] == [x0, y0, x1 - x0, y1 - y0]
            assert entry["area"] == result.masks.areas[place]
            assert entry["iou_score"] == result.iou_scores[place]
            assert entry["object_score"] == result.object_scores[place]


def test_ids_in_json_keep_their_type_if_json_has_it():
    object_ids = ("Becher süß", np.int64(7), frozenset({1}), float("inf"))
    line = json_line(result_of(np.zeros((4, 2, 2), bool), object_ids=object_ids))
    assert "Becher süß" in line
    assert "\n" not in line
    read = [entry["object_id"] for entry in json.loads(line)["objects"]]
    assert read == ["Becher süß", 7, "frozenset({1})", "inf"]


def test_a_frame_without_objects_has_a_line_and_an_image(tmp_path):
    with open_writers(tmp_path / "o.mp4", tmp_path / "m", tmp_path / "l.jsonl", fps=25, size_hw=SIZE_HW) as writers:
        writers.write(result_of(np.zeros((0, *SIZE_HW), bool)))
    assert json.loads((tmp_path / "l.jsonl").read_text()) == {"frame": 0, "time": 0.0, "objects": []}
    assert not np.asarray(Image.open(tmp_path / "m" / "00000.png")).any()
    assert len(open_video(tmp_path / "o.mp4")) == 1


def test_a_notebook_shows_frames_of_the_video_with_masks(session, results):
    png = np.array(Image.open(io.BytesIO(session._repr_png_())))
    four = [results[place].masks.overlay() for place in (0, 3, 5, 8)]
    np.testing.assert_array_equal(png, np.concatenate(four, axis=1))
    assert repr(session) == "VideoSession(the list of images, 12 frames of 80×48, 2 objects)"


def test_a_notebook_lists_the_objects_of_a_video(sam):
    session = sam.video(moving_square(3))
    assert "<table>" not in session._repr_html_()
    session.prompt(1, "<a&b>", box=(20, 10, 50, 30))
    list(session.track(start=1))
    page = session._repr_html_()
    assert "<td>&lt;a&amp;b&gt;</td><td>1</td><td>2 frames</td>" in page, page[-400:]
    assert b64encode(session._repr_png_()).decode() in page


def test_a_notebook_shows_a_video_without_prompts(sam):
    one = moving_square(1)
    session = sam.video(one)
    np.testing.assert_array_equal(Image.open(io.BytesIO(session._repr_png_())), one[0])
    assert repr(session) == "VideoSession(the list of images, 1 frame of 80×48, no objects)"
    once = sam.video(iter(one))
    assert once._repr_png_() is None
    assert repr(once) == "VideoSession(the list_iterator of images, frames of 80×48, no objects)"
    assert len(list(once.video)) == 1, "showing it takes no frame"


def test_a_notebook_shows_a_frame_and_a_stream(sam, image):
    live = sam.stream()
    assert (repr(live), live._repr_png_()) == ("VideoStream(0 frames, no objects)", None)
    assert live._repr_html_() is None
    result = live.push(image, prompts={"square": {"box": (20, 10, 50, 30)}})
    for shown in (result, live):
        np.testing.assert_array_equal(Image.open(io.BytesIO(shown._repr_png_())), result.masks.overlay())
        assert shown._repr_html_() == result.masks._repr_html_()
    assert repr(live) == "VideoStream(1 frame, 1 object)"


def test_a_written_video_shows_the_masks_over_its_frames(session, results, tmp_path):
    session.write(tmp_path / "masks.mp4")
    video = open_video(tmp_path / "masks.mp4")
    assert (video.size_hw, len(video)) == (SIZE_HW, len(TRACKED))
    assert [frame.time for frame in video] == pytest.approx([index / 25 for index in TRACKED])
    with VideoWriter(tmp_path / "expected.mp4", session.video.fps) as expected:
        for result in results:
            expected.write(result.masks.overlay(), result.time)
    assert_look_alike(tmp_path / "masks.mp4", tmp_path / "expected.mp4")


def test_results_are_the_same_written_while_tracking_or_afterwards(sam, tmp_path, monkeypatch):
    session = sam.video(moving_square(6))
    session.prompt(0, "cup", **CUP)
    session.prompt(0, "ball", **BALL)
    now, later = tmp_path / "now", tmp_path / "later"
    paths = [now / name for name in ("o.mkv", "m", "l.jsonl")]
    with open_writers(*paths, fps=session.video.fps, size_hw=session.video.size_hw) as writers:
        for result in session.track():
            writers.write(result)
    # Nothing is computed again.
    monkeypatch.setattr(sam.engine, "encode", None)
    monkeypatch.setattr(sam.engine, "decode", None)
    for path in paths:
        session.write(later / path.name)
    written = sorted(path.relative_to(now) for path in now.rglob("*") if path.is_file())
    assert len(written) == 8
    for path in written:
        if path.suffix != ".mkv":  # its header has a random number
            assert (now / path).read_bytes() == (later / path).read_bytes()
    assert_look_alike(now / "o.mkv", later / "o.mkv")


@pytest.mark.parametrize("name", ["masks.mp4", "masks", "masks.jsonl"])
def test_at_most_two_frames_are_held_while_writing(session, tmp_path, monkeypatch, name):
    alive = weakref.WeakSet()
    write = Writers.write

    def counting(self, result):
        alive.add(result)
        assert len(alive) <= 2
        write(self, result)

    monkeypatch.setattr(Writers, "write", counting)
    session.write(tmp_path / name)


def test_masks_of_a_video_that_is_read_once_can_be_written(sam, tmp_path):
    session = sam.video(iter(moving_square(5)))
    session.prompt(0, "cup", **CUP)
    list(session.track())
    session.write(tmp_path / "masks")
    session.write(tmp_path / "masks.jsonl")
    assert len(list((tmp_path / "masks").iterdir())) == 5
    with pytest.raises(VideoError, match="cannot be read again"):
        session.write(tmp_path / "masks.mp4")
    assert not (tmp_path / "masks.mp4").exists()


@pytest.mark.parametrize("name", ["masks.json", "masks.png", "masks.xyz"])
def test_an_unknown_suffix_is_refused(session, tmp_path, name):
    with pytest.raises(
        VideoError, match=r"cannot write masks to .*: expected a video \(\.m.*\.webp\), .*\.jsonl.* or a folder"
    ):
        session.write(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_folder_may_have_a_dot_in_its_name(session, tmp_path):
    (tmp_path / "clip.v2").mkdir()
    session.write(tmp_path / "clip.v2")
    assert len(list((tmp_path / "clip.v2").iterdir())) == len(TRACKED)


def test_before_tracking_nothing_can_be_written(sam, tmp_path):
    session = sam.video(moving_square(3))
    session.prompt(0, **CUP)
    with pytest.raises(PromptError, match="nothing to write: track first"):
        session.write(tmp_path / "masks.jsonl")
    assert not list(tmp_path.iterdir())


def test_a_frame_of_another_size_is_refused(tmp_path):
    with (
        pytest.raises(VideoError, match="frame 4 is 6×4, but the video to write is 80×48"),
        open_writers(jsonl=tmp_path / "l.jsonl", fps=25, size_hw=SIZE_HW) as writers,
    ):
        writers.write(result_of(np.ones((1, 4, 6), bool), index=4))


@pytest.mark.parametrize("kind", ["overlay", "masks", "jsonl"])
def test_the_path_that_cannot_be_written_is_named(tmp_path, kind):
    (tmp_path / "file").touch()
    path = tmp_path / "file" / {"overlay": "o.mp4", "masks": "m", "jsonl": "l.jsonl"}[kind]
    with (
        pytest.raises(VideoError, match=rf"cannot write {path}: (Not a directory|File exists)"),
        open_writers(**{kind: path}, fps=25, size_hw=SIZE_HW),
    ):
        pass


def test_a_read_only_folder_of_masks_is_refused_before_starting(tmp_path, monkeypatch):
    def refuse(self, *args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.touch", refuse)
    (tmp_path / "masks").mkdir()
    with (
        pytest.raises(VideoError, match=f"cannot write {tmp_path / 'masks'}: Permission denied"),
        open_writers(masks=tmp_path / "masks", fps=25, size_hw=SIZE_HW),
    ):
        pytest.fail("it was opened")


def test_a_full_disk_is_reported_and_leaves_older_files(results, tmp_path, monkeypatch):
    (tmp_path / "00000.png").write_bytes(b"old")

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with (
        pytest.raises(VideoError, match=f"cannot write {tmp_path}: No space left on device"),
        open_writers(masks=tmp_path, fps=25, size_hw=SIZE_HW) as writers,
    ):
        writers.write(results[0])
    assert [file.name for file in tmp_path.iterdir()] == ["00000.png"]
    assert (tmp_path / "00000.png").read_bytes() == b"old"


def test_if_tracking_fails_no_partial_files_are_left(results, tmp_path):
    def tracking():
        yield results[0]
        raise OSError("the camera is gone")

    with (
        pytest.raises(OSError, match="the camera is gone"),
        open_writers(tmp_path / "o.mp4", None, tmp_path / "l.jsonl", fps=25, size_hw=SIZE_HW) as writers,
    ):
        list(map(writers.write, tracking()))
    assert not list(tmp_path.iterdir())
