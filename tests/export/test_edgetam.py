"""An EdgeTAM as exported folders, against the eager engine."""

import json
from dataclasses import replace

import numpy as np
import pytest
from edgetam import TINY, random_edgetam
from export.test_runtime import ious, track_and_correct

import masklet
from masklet.config import SpatialPerceiverConfig
from masklet.engine import make_engine
from masklet.errors import ConfigError
from masklet.export import to_onnx
from masklet.processing import ImageProcessor
from masklet.segmenter import Segmenter

pytestmark = pytest.mark.xdist_group("export")


@pytest.fixture(scope="module")
def edgetam():
    return Segmenter(make_engine(random_edgetam(TINY), "eager"), ImageProcessor(TINY.image_size))


@pytest.fixture(scope="module")
def frames():
    """Two squares that move over noise."""
    frames = np.random.default_rng(0).integers(0, 60, (14, 48, 80, 3), dtype=np.uint8)
    for index, frame in enumerate(frames):
        frame[8:26, 4 + 2 * index : 28 + 2 * index] += 150
        frame[28:42, 50 - 2 * index : 68 - 2 * index, 0] += 180
    return frames


@pytest.mark.slow
def test_images_and_videos_are_segmented_as_by_eager(edgetam, frames, tmp_path):
    to_onnx(edgetam, tmp_path)
    onnx = masklet.load(tmp_path, engine="onnx", threads=1)
    ours, theirs = (sam.image(frames[0]).predict(points=[(12, 16)], candidates=True) for sam in (onnx, edgetam))
    np.testing.assert_allclose(ours.logits, theirs.logits, atol=1e-4 * np.abs(theirs.logits).max())
    ours, theirs = track_and_correct(onnx, frames), track_and_correct(edgetam, frames)
    assert [(r.index, r.object_ids) for r in ours] == [(r.index, r.object_ids) for r in theirs]
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one.object_scores, other.object_scores, atol=1e-2)
        assert (ious(one.masks.masks, other.masks.masks) >= 0.99).all()
    assert sum(result.visible.all() for result in theirs) > len(theirs) // 2


@pytest.mark.slow
def test_layouts_for_other_programs_hold_its_images(edgetam, tmp_path):
    """The export itself compares each graph with torch."""
    for layout in ("transformersjs", "samexporter"):
        graphs = to_onnx(edgetam, tmp_path / layout, layout=layout)
        assert all(graph.difference < 1e-4 for graph in graphs)
    assert json.loads((tmp_path / "transformersjs/config.json").read_text())["model_type"] == "edgetam"


def test_an_input_that_the_perceiver_cannot_divide_is_refused_before_anything_is_written(tmp_path):
    network = random_edgetam(replace(TINY, perceiver=SpatialPerceiverConfig(num_latents=8, num_latents_2d=16)))
    sam = Segmenter(make_engine(network, "eager"), ImageProcessor(64))
    with pytest.raises(ConfigError, match="64 x 96 pixels: expected sides that are multiples of 64 for videos"):
        to_onnx(sam, tmp_path / "out", resolution=(64, 96))
    assert not (tmp_path / "out").exists()
