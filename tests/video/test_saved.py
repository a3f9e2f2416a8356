"""A saved session continues to the bit; files that cannot be continued are refused."""

import copy
import json
import signal
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from video.test_tracking import BALL, CUP, HEIGHT, WIDTH, assert_same, logits_of, moving_square

from masklet.engine import make_engine
from masklet.errors import SessionError, SpoolError
from masklet.segmenter import Segmenter, load
from masklet.video import autosave, saved, spool
from masklet.video.spool import Spool

FRAMES = 20


def write_images(folder, frames):
    folder.mkdir()
    for index, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"{index:03}.png")
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A video as a folder of images."""
    return write_images(tmp_path_factory.mktemp("videos") / "clip", moving_square(FRAMES))


def begun(sam, video, **options):
    """A session with clicks, a box, a mask, a correction, and frames tracked in both directions."""
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[30:44, 50:76] = True
    session = sam.video(video, **options)
    session.prompt(2, "cup", **CUP)
    session.prompt(0, 7, **BALL)
    session.prompt(4, "lid", mask=mask)
    list(session.track(end=11))
    list(session.track(start=5, direction="backward"))
    session.prompt(8, "cup", points=[(40, 30, 0)])
    session.prompt(9, "lid", mask=mask, points=[(40, 30, 0)])
    return session


@pytest.fixture(scope="module")
def session_file(sam, clip, tmp_path_factory):
    path = tmp_path_factory.mktemp("sessions") / "clip.masklet"
    begun(sam, clip).save(path)
    return path


def test_a_resumed_session_continues_to_the_bit(sam, clip, session_file):
    uninterrupted, resumed = begun(sam, clip), sam.resume(session_file)
    assert resumed.object_ids == uninterrupted.object_ids == ("cup", 7, "lid")
    assert resumed.tracked_frames == uninterrupted.tracked_frames == tuple(range(12))
    for continuing in (
        lambda s: s.track(start=12),
        lambda s: s.track(start=6, end=9),
        lambda s: s.track(start=9, direction="backward"),
    ):
        assert_same(logits_of(continuing(resumed)), logits_of(continuing(uninterrupted)))
    corrected = [s.prompt(5, "cup", points=[(10, 40, 0)]).logits for s in (resumed, uninterrupted)]
    np.testing.assert_array_equal(*corrected)
    assert_same(logits_of(resumed.track()), logits_of(uninterrupted.track()))


def test_past_results_are_restored_without_tracking(sam, clip, session_file):
    def everything(session):
        return [
            (r.index, r.time, r.object_ids, r.iou_scores.tolist(), r.object_scores.tolist(), r.masks.masks.tobytes())
            for r in session.results()
        ]

    assert everything(sam.resume(session_file)) == everything(begun(sam, clip))


def test_a_resumed_session_can_be_saved_again(sam, session_file, tmp_path):
    sam.resume(session_file).save(tmp_path / "again")
    with zipfile.ZipFile(session_file) as first, zipfile.ZipFile(tmp_path / "again") as second:
        assert first.namelist() == second.namelist()
        assert "tensors.safetensors" in first.namelist()
        for name in first.namelist():
            assert first.read(name) == second.read(name)


def test_the_resolution_and_the_policy_are_saved(sam, clip, tmp_path):
    session = begun(sam, clip, resolution=(96, 64), max_prompted=2)
    session.save(tmp_path / "s")
    resumed = sam.resume(tmp_path / "s")
    assert resumed.processor.input_hw == (96, 64)
    assert resumed._tracks.policy == session._tracks.policy
    assert_same(logits_of(resumed.track(start=12)), logits_of(session.track(start=12)))


def test_a_session_without_objects_can_be_saved(sam, clip, tmp_path):
    sam.video(clip).save(tmp_path / "s")
    resumed = sam.resume(tmp_path / "s")
    assert resumed.object_ids == resumed.tracked_frames == ()


def test_a_session_in_bfloat16_keeps_its_dtype(sam, clip, tmp_path):
    half = Segmenter(make_engine(copy.deepcopy(sam.model).to(torch.bfloat16)), sam.image_processor)
    session = half.video(clip)
    session.prompt(0, "cup", **CUP)
    list(session.track(end=11))
    session.save(tmp_path / "s")
    assert_same(logits_of(half.resume(tmp_path / "s").track(start=12)), logits_of(session.track(start=12)))
    with pytest.raises(SessionError, match=r"in another dtype: load the model it was saved with, in torch\.bfloat16"):
        sam.resume(tmp_path / "s")


def test_a_resumed_session_holds_no_tensors_before_they_are_read(sam, session_file):
    bank = sam.resume(session_file)._tracks.objects["cup"].bank
    assert not bank.maps
    assert bank.tensor_bytes() == 0


def test_a_video_may_have_moved(sam, clip, session_file, tmp_path):
    moved = write_images(tmp_path / "moved", moving_square(FRAMES))
    expected = logits_of(sam.resume(session_file).track(start=12))
    assert_same(logits_of(sam.resume(session_file, video=moved).track(start=12)), expected)


def test_images_in_memory_are_passed_again(sam, tmp_path):
    video = moving_square(FRAMES)
    session = begun(sam, video)
    session.save(tmp_path / "s")
    with pytest.raises(SessionError, match=r"was saved from the list of images, not .*video=…"):
        sam.resume(tmp_path / "s")
    assert_same(logits_of(sam.resume(tmp_path / "s", video=video).track(start=12)), logits_of(session.track(start=12)))
    with pytest.raises(SessionError, match=r"has 3 frames of 80×48, but .* was saved from 20 frames of 80×48"):
        sam.resume(tmp_path / "s", video=video[:3])
    with pytest.raises(SessionError, match="has frames of 40×24, but"):
        sam.resume(tmp_path / "s", video=(image[::2, ::2] for image in video))


def rewritten(source, path, **changes):
    """The same file with another header."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name == "session.json":
                content = json.dumps(json.loads(content) | changes).encode()
            new.writestr(name, content)


def of_another_version(source, path):
    rewritten(source, path, format="masklet-session-9", masklet="7.0")


def of_another_archive(source, path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("word/document.xml", "Dear Sir,")


def with_a_flipped_bit(source, path):
    content = bytearray(source.read_bytes())
    content[content.index(b"results/1") + 60] ^= 4
    path.write_bytes(content)


DAMAGED = {
    "missing": (lambda source, path: None, "there is no saved session at"),
    "a folder": (lambda source, path: path.mkdir(), "cannot read .*: Is a directory"),
    "text": (lambda source, path: path.write_text("no zip"), "is not a saved session: expected a file that"),
    "empty": (lambda source, path: path.touch(), "is not a saved session"),
    "another archive": (of_another_archive, "is not a saved session"),
    "cut off": (lambda source, path: path.write_bytes(source.read_bytes()[:-100]), "is damaged or was cut off"),
    "cut in half": (
        lambda source, path: path.write_bytes(source.read_bytes()[: source.stat().st_size // 2]),
        "is damaged or was cut off",
    ),
    "a flipped bit": (with_a_flipped_bit, "is damaged or was cut off"),
    "another version": (of_another_version, "in version 9 of the format by masklet 7.0: masklet .* reads version 2"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_file_that_is_not_a_complete_session_is_refused(sam, session_file, tmp_path, case):
    damage, message = DAMAGED[case]
    damage(session_file, tmp_path / "s")
    with pytest.raises(SessionError, match=message):
        sam.resume(tmp_path / "s")


def test_another_model_is_refused(sam, session_file):
    other = copy.deepcopy(sam.model)
    other.memory_attention.layers[0].linear1.bias[0] += 1
    with pytest.raises(SessionError, match="was saved with another model"):
        Segmenter(make_engine(other), sam.image_processor).resume(session_file)


def test_another_or_a_missing_video_is_refused(sam, tmp_path):
    video = write_images(tmp_path / "video", moving_square(4))
    session = sam.video(video)
    session.prompt(0, **CUP)
    session.save(tmp_path / "s")
    other = write_images(tmp_path / "other", moving_square(5))
    with pytest.raises(SessionError, match="other is not the video that .* was saved from.* its checksum is"):
        sam.resume(tmp_path / "s", video=other)
    video.rename(tmp_path / "renamed")
    with pytest.raises(
        SessionError, match=r"is no longer at .*video: pass its new place, sam\.resume\('.*', video=…\)"
    ):
        sam.resume(tmp_path / "s")
    assert sam.resume(tmp_path / "s", video=tmp_path / "renamed").object_ids == (1,)


def test_a_file_that_cannot_be_written_leaves_the_old_one(sam, clip, tmp_path, monkeypatch):
    session = begun(sam, clip)
    session.save(tmp_path / "s")
    before = (tmp_path / "s").read_bytes()

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(saved.ZipFile, "writestr", full)
    with pytest.raises(SessionError, match="cannot save the session to .*No space left on device"):
        session.save(tmp_path / "s")
    assert (tmp_path / "s").read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["s"]


def test_whole_numbers_of_any_type_are_saved_as_ids(sam, clip, tmp_path):
    session = sam.video(clip)
    for object_id in (1.0, np.int64(2), np.float64(3)):
        session.prompt(0, object_id, **CUP)
    session.save(tmp_path / "s")
    assert sam.resume(tmp_path / "s").object_ids == (1, 2, 3)


def test_ids_that_cannot_be_saved_are_refused(sam, clip, tmp_path):
    session = sam.video(clip)
    session.prompt(0, ("cup", 1), **CUP)
    with pytest.raises(SessionError, match=r"object \('cup', 1\) cannot be saved: expected ids that are text or"):
        session.save(tmp_path / "s")


@pytest.mark.parametrize(("cost", "saves"), [(0, [20, 40, 60, 60]), (3, [20, 53, 66])])
def test_autosave_saves_at_intervals_and_at_the_end(monkeypatch, cost, saves):
    now, calls = 0, []
    monkeypatch.setattr(autosave, "monotonic", lambda: now)

    def results():
        nonlocal now
        for index in range(6):
            now += 10
            yield index

    def save():
        nonlocal now
        calls.append(now)
        now += cost

    assert list(autosave.autosaving(results(), save, seconds=15)) == list(range(6))
    assert calls == saves


def test_autosave_saves_an_interrupted_session(sam, clip, tmp_path):
    session = sam.video(clip)
    session.prompt(0, **CUP)
    results = session.track(autosave=1000, autosave_to=tmp_path / "s")
    for result in results:
        if result.index == 6:
            break
    results.close()
    assert sam.resume(tmp_path / "s").tracked_frames == tuple(range(7))


@pytest.mark.parametrize("given", [{"autosave": 5}, {"autosave_to": "here"}])
def test_autosave_needs_an_interval_and_a_path(sam, clip, given):
    session = sam.video(clip)
    session.prompt(0, **CUP)
    with pytest.raises(SessionError, match="autosave=seconds and autosave_to=path go together"):
        session.track(**given)


CHILD = """
import sys, masklet
session = masklet.load(sys.argv[1], device="cpu").video(sys.argv[2])
session.prompt(0, "cup", points=[(20, 20), (30, 24)])
session.prompt(3, "ball", box=(40, 8, 70, 40))
for result in session.track(autosave=0, autosave_to=sys.argv[3]):
    print(result.index, flush=True)
"""


def test_a_killed_process_is_continued_from_the_last_autosave(sam, tmp_path):
    sam.model.save_pretrained(tmp_path / "model")
    video = write_images(tmp_path / "video", moving_square(30))
    arguments = [str(tmp_path / name) for name in ("model", "video", "s")]
    with subprocess.Popen([sys.executable, "-c", CHILD, *arguments], stdout=subprocess.PIPE, text=True) as child:
        assert any(line.strip() == "10" for line in child.stdout)
        child.kill()
    assert child.returncode == -signal.SIGKILL
    here = load(tmp_path / "model", device="cpu")
    uninterrupted, resumed = here.video(video), here.resume(tmp_path / "s")
    uninterrupted.prompt(0, "cup", **CUP)
    uninterrupted.prompt(3, "ball", **BALL)
    expected = logits_of(uninterrupted.track())
    last = resumed.tracked_frames[-1]
    assert 0 <= last < 29
    assert_same(logits_of(resumed.results()), expected, [k for k in expected if k[0] <= last])
    assert_same(logits_of(resumed.resume_tracking()), expected, [k for k in expected if k[0] > last])


@pytest.mark.parametrize(
    ("track", "interrupted_at"),
    [
        ({}, 9),
        ({"start": 10, "direction": "backward"}, 6),
        ({"every": 3}, 9),
        ({"start": 8, "direction": "both"}, 14),
        ({"start": 8, "direction": "both"}, 5),
        ({"start": 2, "end": 12}, 11),
    ],
)
def test_tracking_continues_where_it_was_interrupted(sam, clip, tmp_path, track, interrupted_at):
    uninterrupted, interrupted = begun(sam, clip), begun(sam, clip)  # all frames are tracked a second time
    expected = logits_of(uninterrupted.track(**track))
    first = []
    for result in (results := interrupted.track(**track, autosave=1000, autosave_to=tmp_path / "s")):
        first.append(result)
        if result.index == interrupted_at:
            break
    results.close()
    resumed = sam.resume(tmp_path / "s")
    found = logits_of(first) | logits_of(resumed.resume_tracking())
    assert list(found) == list(expected)
    assert_same(found, expected)
    assert list(resumed.resume_tracking()) == []


def test_a_full_disk_loses_no_results(sam, clip, tmp_path, monkeypatch):
    session = begun(sam, clip)
    tracks = session._tracks
    before = logits_of(session.results())
    session.save(tmp_path / "s")

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    tracks.spool._limit = 0  # the next result would move all of it to disk
    monkeypatch.setattr(spool.tempfile, "TemporaryFile", full)
    with pytest.raises(SpoolError, match="No space left on device.*what was tracked so far is kept"):
        list(session.track(start=12, autosave=0, autosave_to=tmp_path / "s"))
    assert_same(logits_of(session.results()), before)
    monkeypatch.undo()
    resumed = sam.resume(tmp_path / "s")
    assert_same(logits_of(resumed.results()), before)
    assert_same(logits_of(resumed.track(start=12)), logits_of(begun(sam, clip).track(start=12)))


def test_a_spool_keeps_what_it_stored_before_the_disk_was_full(tmp_path, monkeypatch):
    held = Spool(limit_bytes=10)
    places = [held.put(bytes([number]) * 8) for number in range(4)]
    file = held._file
    monkeypatch.setattr(held, "_file", Full(file))
    with pytest.raises(SpoolError, match="No space left"):
        held.put(b"x" * 8)
    monkeypatch.undo()
    assert [held.read(place) for place in places] == [bytes([number]) * 8 for number in range(4)]
    held.free(places[1])
    assert held.put(b"y" * 5) == (places[1][0], 5)
    assert held.put(b"z" * 3)[0] == places[1][0] + 5
    assert held.read(places[1]) == b"yyyyyzzz"
    file.truncate(4)
    with pytest.raises(SpoolError, match="are gone"):
        held.read(places[3])


class Full:
    """A file on a disk with space for three more bytes."""

    def __init__(self, file):
        self.file, self.space = file, 3

    def __getattr__(self, name):
        return getattr(self.file, name)

    def write(self, data):
        taken = min(self.space, len(data))
        if not taken:
            raise OSError(28, "No space left on device")
        self.space -= taken
        return self.file.write(data[:taken])


@pytest.mark.gpu
def test_a_session_moves_between_devices(sam, clip, tmp_path):
    there = Segmenter(make_engine(copy.deepcopy(sam.model).to("cuda")), sam.image_processor)
    for saver, reader in ((sam, there), (there, sam), (there, there)):
        session = begun(saver, clip)
        session.save(tmp_path / "s")
        ours = logits_of(reader.resume(tmp_path / "s").track(start=12))
        theirs = logits_of(session.track(start=12))
        for key, logits in theirs.items():
            np.testing.assert_allclose(ours[key], logits, rtol=0, atol=0 if saver is reader else 1e-3)
