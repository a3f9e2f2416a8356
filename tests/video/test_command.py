"""masklet video."""

import json

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from masklet.cli import app
from masklet.errors import MaskletError
from masklet.video.frames import open_video

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


def test_part_of_a_video_is_tracked_backward(video, tiny_folder, tmp_path):
    lines = tmp_path / "masks.jsonl"
    options = ("--start", 4, "--end", 1, "--reverse")
    assert run(video, "--point", "4:20,20", "--model", tiny_folder, "--jsonl", lines, *options).exit_code == 0
    assert [json.loads(line)["frame"] for line in lines.read_text().splitlines()] == [4, 3, 2, 1]


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
