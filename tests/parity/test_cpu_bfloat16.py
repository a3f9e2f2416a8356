"""Products in bfloat16 against float32, with the prompts and the weights of Meta's golden files."""

import numpy as np
import pytest
import torch
from parity.test_meta_goldens import CASES
from parity.test_meta_video_goldens import BOX, FOREGROUND
from PIL import Image

from masklet.engine import CpuEngine
from masklet.segmenter import Segmenter

pytestmark = [pytest.mark.xdist_group("meta"), pytest.mark.slow]

SAME, SAME_CANDIDATES, SAME_IN_VIDEOS = 0.99, 0.98, 0.98
"""Least IoU of the masks that are returned by default, and of all candidates for a click."""


@pytest.fixture(scope="module")
def both(seeded_sam):
    """(float32, products in bfloat16)."""
    if seeded_sam.engine.name != "cpu":
        pytest.skip("compares precisions of the cpu engine")
    processor = seeded_sam.image_processor
    return [Segmenter(CpuEngine(seeded_sam.model, dtype), processor) for dtype in (torch.float32, torch.bfloat16)]


def ious(ours, expected):
    """(masks,), of masks (masks, height, width)."""
    return (ours & expected).sum((-2, -1)) / np.maximum((ours | expected).sum((-2, -1)), 1)


def test_masks_of_an_image_are_the_same(both, golden_folder):
    images = [sam.image(golden_folder / "inputs/truck.jpg") for sam in both]
    mask = images[0].predict(**CASES["point"]).best.logits
    for name, prompts in CASES.items():
        given = prompts | ({"mask": mask} if name == "mask_input" else {})
        exact, narrow = (image.predict(**given) for image in images)
        if name == "point":
            candidates = [one[0].masks for one in (exact, narrow)]
            assert (ious(*candidates) >= SAME_CANDIDATES).all(), ious(*candidates)
            exact, narrow = exact.best, narrow.best
        assert exact.masks.any((-2, -1)).all()
        assert (ious(narrow.masks, exact.masks) >= SAME).all(), (name, ious(narrow.masks, exact.masks))


def test_masks_of_a_video_are_the_same(both, golden_folder):
    frames = [np.array(Image.open(path)) for path in sorted((golden_folder / "inputs/bedroom").glob("*.jpg"))]
    found = []
    for sam in both:
        video = sam.video(frames)
        video.prompt(0, 1, points=FOREGROUND)
        video.prompt(0, 2, box=BOX)
        found.append([result.masks.masks for result in video.track()])
    for index, (exact, narrow) in enumerate(zip(*found, strict=True)):
        assert exact.any((-2, -1)).all()
        assert (ious(narrow, exact) >= SAME_IN_VIDEOS).all(), (index, ious(narrow, exact))
