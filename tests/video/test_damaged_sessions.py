"""Whatever stands in a saved session: it is continued, or refused with a message."""

import io
import json
import zipfile
import zlib

import numpy as np
import pytest
import safetensors.torch
import torch
from damage import attempt, damaged_bytes, damaged_documents, fuzzed
from hypothesis import given
from hypothesis import strategies as st
from video.test_saved import write_images
from video.test_tracking import BALL, CUP, HEIGHT, WIDTH, moving_square

from masklet.errors import MaskletError, SessionError, SpoolError

FRAMES = 4


@pytest.fixture(scope="module")
def session_files(sam, tmp_path_factory):
    """The parts of a saved session with clicks, a box and a refined mask, of which one frame remains."""
    folder = tmp_path_factory.mktemp("sessions")
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[30:44, 50:76] = True
    session = sam.video(write_images(folder / "clip", moving_square(FRAMES)))
    session.prompt(1, "cup", **CUP)
    session.prompt(0, 7, mask=mask, **BALL)
    tracking = session.track()
    for _ in range(FRAMES - 1):
        next(tracking)
    tracking.close()
    session.save(folder / "s")
    with zipfile.ZipFile(folder / "s") as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def packed(files, compression=zipfile.ZIP_STORED):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return file.getvalue()


def resume_and_track(sam, path):
    session = sam.resume(path)
    results = list(session.resume_tracking()) if session._remaining else []
    for result in [*results, *session.results()]:
        assert np.isfinite(result.iou_scores).all()
        assert np.isfinite(result.time)
    return session


def as_json(document):
    return json.dumps(document, default=str).encode(errors="surrogatepass")


@given(data=st.data())
@fuzzed(20)
def test_a_damaged_header_is_continued_or_refused(sam, session_files, tmp_path, data):
    header = data.draw(damaged_documents(json.loads(session_files["session.json"])))
    (tmp_path / "s").write_bytes(packed(session_files | {"session.json": as_json(header)}))
    session, message = attempt(lambda: resume_and_track(sam, tmp_path / "s"), MaskletError)
    assert session is not None or len(message) > 20


@given(data=st.data())
@fuzzed(20)
def test_a_damaged_file_is_continued_or_refused(sam, session_files, tmp_path, data):
    (tmp_path / "s").write_bytes(data.draw(damaged_bytes(packed(session_files))))
    session, message = attempt(lambda: resume_and_track(sam, tmp_path / "s"), MaskletError)
    assert session is not None or str(tmp_path) in message


ODD_TENSORS = [
    torch.zeros(0),
    torch.tensor(-1),
    torch.tensor(2**62),
    torch.tensor([5, 1]),
    torch.tensor([-1, 2, 3]),
    torch.tensor([0, 2**62, 2**62 + 2]),
    torch.tensor([0.0, torch.nan, 1.0], dtype=torch.float64),
    torch.tensor([[0.5, torch.inf]]),
    torch.ones(3, 2),
    torch.ones(2, 3, 4, dtype=torch.int64),
    torch.tensor([True, False, True]),
    torch.tensor([[0, 0], [1, 5]]),
    torch.zeros(3, 2, dtype=torch.complex64),
]


@given(data=st.data())
@fuzzed(20)
def test_damaged_tensors_are_continued_or_refused(sam, session_files, tmp_path, data):
    tensors = safetensors.torch.load(session_files["tensors.safetensors"])
    for name in data.draw(st.sets(st.sampled_from(sorted(tensors)), min_size=1, max_size=2)):
        if (other := data.draw(st.sampled_from([None, *ODD_TENSORS]))) is None:
            del tensors[name]
        else:
            tensors[name] = other.clone()
    content = safetensors.torch.save(tensors)
    (tmp_path / "s").write_bytes(packed(session_files | {"tensors.safetensors": content}))
    session, message = attempt(lambda: resume_and_track(sam, tmp_path / "s"), MaskletError)
    assert session is not None or "is damaged" in message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_hw": [64, 10**9]}, r"is damaged .*input_hw is \[64, 1000000000\]: expected \(height, width\)"),
        ({"input_hw": "64"}, "is damaged .*input_hw is '64': expected a list"),
        ({"max_objects": 0}, "is damaged .*max_objects is 0: expected a whole number, 1 or more"),
        ({"object_ids": ["cup", "cup"]}, "is damaged .*object_ids is .*: expected texts and whole numbers, each once"),
        ({"object_ids": ["cup", "lid", "hat"]}, "is damaged or was cut off"),
        ({"remaining": [[0, 3, 0]]}, r"is damaged .*remaining has \[0, 3, 0\]: expected \[start, stop, step\]"),
        ({"policy": {"name": "other"}}, "has an unknown memory policy"),
        ({"policy": {"num_maskmem": 1000}}, "was saved with another model"),
        ({"video": {"name": "x"}}, "is damaged .*the video has no path: expected one, or null"),
        ({"format": 5}, "is not a saved session"),
    ],
)
def test_a_header_that_makes_no_sense_is_refused_by_name(sam, session_files, tmp_path, change, message):
    header = json.loads(session_files["session.json"]) | change
    (tmp_path / "s").write_bytes(packed(session_files | {"session.json": as_json(header)}))
    with pytest.raises(SessionError, match=message):
        sam.resume(tmp_path / "s")


def test_a_file_that_would_unpack_to_more_than_it_is_is_refused(sam, session_files, tmp_path):
    (tmp_path / "s").write_bytes(packed(session_files, zipfile.ZIP_DEFLATED))
    with pytest.raises(SessionError, match="is damaged or was cut off"):
        sam.resume(tmp_path / "s")
    tensors = safetensors.torch.load(session_files["tensors.safetensors"])
    huge = zlib.compress(bytes(10**7)) + bytes(200)  # a mask of 10 million bytes in a few thousand
    tensors["0.result_bytes"] = torch.tensor([len(huge)])
    tensors["0.frames"], tensors["0.is_prompted"] = torch.tensor([1]), torch.tensor([True])
    files = session_files | {"tensors.safetensors": safetensors.torch.save(tensors), "results/0": huge}
    (tmp_path / "s").write_bytes(packed(files))
    with pytest.raises(SpoolError, match="a stored mask is damaged"):
        resume_and_track(sam, tmp_path / "s")
