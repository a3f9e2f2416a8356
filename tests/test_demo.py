"""The examples run as they are."""

import runpy
import sys
from pathlib import Path

import pytest
from PIL import Image

from masklet.video.frames import open_video

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.mark.slow
def test_the_demo_prints_its_tables_and_writes_its_images_and_its_video(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(EXAMPLES / "demo.py"), run_name="__main__")
    printed = capsys.readouterr().out
    for name in ("click", "box", "click-and-background"):
        assert name in printed
        with Image.open(tmp_path / "demo" / f"{name}.png") as image:
            assert image.size == (900, 600)
    assert "frames/s" in printed
    assert "dog" in printed
    shown, painted = open_video(EXAMPLES / "videos" / "dog.mp4"), open_video(tmp_path / "demo" / "dog.mp4")
    assert (len(painted), painted.size_hw, painted.fps) == (len(shown), shown.size_hw, shown.fps)
    bluer = painted[0].image[..., 2].astype(int) - shown[0].image[..., 2]
    assert bluer[130:170, 340:420].mean() > 30  # the dog
    assert abs(bluer[200:, :240].mean()) < 3  # the ground before it


@pytest.mark.slow
def test_the_image_of_everything_is_made_by_its_example(tmp_path, monkeypatch, capsys):
    out = tmp_path / "docs" / "everything.png"
    monkeypatch.setattr(sys, "argv", ["everything.py", "--out", str(out), "--points", "3", "--frames", "2"])
    runpy.run_path(str(EXAMPLES / "everything.py"), run_name="__main__")
    with Image.open(out) as made, Image.open(EXAMPLES.parent / "docs" / "everything.png") as shown:
        assert made.size == shown.size == (1311, 400)
    assert "in video frame" in capsys.readouterr().out


def test_the_demo_video_is_small_and_named_with_its_licence():
    video = EXAMPLES / "videos" / "dog.mp4"
    assert video.stat().st_size < 300_000
    assert (len(open_video(video)), open_video(video).size_hw) == (30, (270, 480))
    assert "`dog.mp4` comes from" in (said := (video.parent / "README.md").read_text())
    assert "Apache-2.0" in said
