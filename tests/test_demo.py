"""The examples that need no training run as they are."""

import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from masklet.video.frames import open_video

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.mark.slow
def test_the_demo_prints_its_tables_and_writes_its_images_and_its_video(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(EXAMPLES / "demo.py"), run_name="__main__")
    printed = capsys.readouterr().out
    original = np.array(Image.open(EXAMPLES / "images/truck.jpg"))
    for name in ("click", "box", "click-and-background"):
        score, area = re.search(rf"│ {name}\s*│ (\S+)\s*│ (\d+)\s*│", printed).groups()
        assert 0.4 < float(score) <= 1
        overlay = np.array(Image.open(tmp_path / f"demo/{name}.png"))
        assert overlay.shape == original.shape
        changed = (overlay != original).any(-1).sum()
        assert int(area) <= changed < 1.2 * int(area)  # the mask and its contour
    frames, score = re.search(r"│ dog\s*│ (\d+)\s*│ \S+\s*│ (\S+)\s*│", printed).groups()
    assert frames == "30"
    assert 0.5 < float(score) <= 1
    before, after = open_video(EXAMPLES / "videos/dog.mp4"), open_video(tmp_path / "demo/dog.mp4")
    assert (len(after), after.size_hw, after.fps) == (len(before), before.size_hw, before.fps)
    bluer = after[0].image[..., 2].astype(int) - before[0].image[..., 2]
    assert bluer[130:170, 340:420].mean() > 30  # the dog
    assert abs(bluer[200:, :240].mean()) < 3  # the ground in front of it


def test_the_image_of_everything_is_made_by_its_example(tmp_path, monkeypatch, capsys):
    out = tmp_path / "docs" / "everything.png"
    monkeypatch.setattr(sys, "argv", ["everything.py", "--out", str(out), "--points", "3", "--frames", "2"])
    runpy.run_path(str(EXAMPLES / "everything.py"), run_name="__main__")
    with Image.open(out) as made, Image.open(EXAMPLES.parent / "docs" / "everything.png") as published:
        assert made.size == published.size == (1311, 400)
    masks, objects, frame = re.search(
        r"(\d+) masks in the image, (\d+) objects in video frame (\d+)", capsys.readouterr().out
    ).groups()
    assert int(masks) > 0
    assert int(objects) > 0
    assert frame == "1"


def test_the_image_of_words_is_made_by_its_example(tmp_path, monkeypatch, capsys):
    out = tmp_path / "docs" / "words.png"
    monkeypatch.setattr(sys, "argv", ["words.py", "--out", str(out)])
    runpy.run_path(str(EXAMPLES / "words.py"), run_name="__main__")
    with Image.open(out) as made, Image.open(EXAMPLES.parent / "docs" / "words.png") as published:
        assert made.size == published.size
    assert "truck, wheel, wheel" in capsys.readouterr().out


@pytest.mark.slow
def test_the_animation_of_the_readme_is_made_by_its_example(tmp_path, monkeypatch, capsys):
    out = tmp_path / "dog.gif"
    monkeypatch.setattr(sys, "argv", ["tracked_dog.py", "--out", str(out), "--frames", "2"])
    runpy.run_path(str(EXAMPLES / "tracked_dog.py"), run_name="__main__")
    assert capsys.readouterr().out.startswith("2 frames")
    with Image.open(out) as made, Image.open(EXAMPLES.parent / "docs" / "tracked-dog.gif") as published:
        assert made.size == published.size == (480, 270)
        assert (made.n_frames, published.n_frames) == (22, 50)


@pytest.mark.slow
def test_the_policy_of_ones_own_tracks_a_video(tmp_path, monkeypatch):
    out = tmp_path / "samite.mp4"
    video = EXAMPLES / "videos" / "dog.mp4"
    monkeypatch.setattr(sys, "argv", ["samite.py", str(video), "--box", "340,110,440,190", "--out", str(out)])
    runpy.run_path(str(EXAMPLES / "samite_policy.py"), run_name="__main__")
    assert len(open_video(out)) == 30


def test_the_demo_video_is_small_and_named_with_its_licence():
    video = EXAMPLES / "videos" / "dog.mp4"
    assert video.stat().st_size < 300_000
    assert (len(open_video(video)), open_video(video).size_hw) == (30, (270, 480))
    readme = (video.parent / "README.md").read_text()
    assert "`dog.mp4` comes from" in readme
    assert "Apache-2.0" in readme
