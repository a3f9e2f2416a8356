"""benchmarks/baselines.py, on generated data. Needs OpenCV."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from masklet.evaluation.agreement import region_j
from masklet.evaluation.video import read_videos

pytest.importorskip("cv2")

SCRIPT = Path(__file__).parents[1] / "benchmarks/baselines.py"
HEIGHT, WIDTH = 48, 64


@pytest.fixture(scope="module")
def baselines():
    spec = importlib.util.spec_from_file_location("baselines", SCRIPT)
    module = sys.modules["baselines"] = importlib.util.module_from_spec(spec)  # dataclasses look up their module
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPT.parent)  # as for a script that is run
        spec.loader.exec_module(module)
    yield module
    del sys.modules["baselines"]


def scene(shift):
    """A bright, speckled square that moves over a dark, speckled background, and its mask."""
    rng = np.random.default_rng(0)
    background, square = (rng.integers(low, low + 60, (HEIGHT, WIDTH, 3), dtype=np.uint8) for low in (0, 190))
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[14:34, 10 + shift : 30 + shift] = True
    background[mask] = square[14:34, 10:30].reshape(-1, 3)
    return background, mask


@pytest.fixture
def folder(tmp_path):
    for index in range(5):
        for kind, pixels in zip(("JPEGImages", "Annotations"), scene(2 * index), strict=True):
            path = tmp_path / "videos" / kind / "square" / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(path)
    for kind, pixels in zip(("images", "masks"), scene(0), strict=True):
        (tmp_path / "images" / kind).mkdir(parents=True)
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "images" / kind / "square.png")
    return tmp_path


def test_grabcut_finds_a_bright_object_in_its_box(baselines):
    image, mask = scene(0)
    assert region_j(baselines.grabcut(image, (6, 10, 36, 40), 5), mask) > 0.95


def test_a_box_without_background_is_the_mask(baselines):
    assert baselines.grabcut(scene(0)[0], (0, 0, WIDTH, HEIGHT), 5).all()


def test_the_flow_moves_the_first_mask(baselines, folder):
    (video,) = read_videos(folder / "videos")
    (score,) = baselines.flow_scores(video)
    baseline = np.mean([region_j(scene(0)[1], scene(2 * index)[1]) for index in (1, 2, 3)])
    assert (score.video, score.object) == ("square", 1)
    assert score.flow_j > max(0.85, baseline)
    assert score.flow_j_and_f == pytest.approx((score.flow_j + score.flow_f) / 2)


def test_both_are_reported_beside_a_model(baselines, folder, tiny_folder, monkeypatch):
    out = folder / "baselines.json"
    places = ["--images", folder / "images", "--videos", folder / "videos", "--json", out]
    monkeypatch.setattr(sys, "argv", ["baselines.py", *map(str, places), "--model", str(tiny_folder)])
    baselines.main()
    results = json.loads(out.read_text())["results"]
    assert {"box", "grabcut"} <= results["images"]["summary"].keys()
    assert {"j", "baseline_j", "flow_j"} <= results["videos"]["summary"].keys()
    assert [len(results[kind]["objects"]) for kind in ("images", "videos")] == [1, 1]
    assert results["images"]["summary"]["grabcut"] > 0.8
    assert results["videos"]["summary"]["flow_j"] > 0.85
