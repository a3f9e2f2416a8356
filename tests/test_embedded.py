"""The model in the package, on the image in the repository."""

from pathlib import Path

import numpy as np
import pytest

import masklet

ROOT = Path(__file__).parent.parent
TRUCK = ROOT / "examples/images/truck.jpg"
CLICK, BOX = (410, 315), (40, 130, 862, 440)


@pytest.fixture(scope="module")
def sam():
    return masklet.load(device="cpu")


def iou(first, second):
    return (first & second).sum() / (first | second).sum()


def test_it_is_small_enough_to_come_along(sam):
    folder = Path(masklet.__file__).parent / "weights/nano"
    assert (folder / "model.safetensors").stat().st_size < 12e6
    parameters = sum(p.numel() for p in sam.model.parameters())
    assert 3e6 < parameters < 6e6
    [known] = [model for model in masklet.checkpoints.KNOWN_MODELS if model.name == "nano"]
    assert known.parameters == parameters
    assert known.megabytes == round((folder / "model.safetensors").stat().st_size / 1e6)


@pytest.mark.parametrize("resolution", [None, 512, (768, 1024), 1536], ids=str)
def test_the_network_runs_at_any_size(sam, resolution):
    encoded = sam.image(TRUCK, resolution=resolution)
    side = resolution or sam.model.config.image_size
    height, width = (side, side) if isinstance(side, int) else side
    assert encoded.input_hw == (height, width)
    assert encoded.features[2].shape[-2:] == (height // 16, width // 16)
    mask = encoded.predict(box=BOX)
    assert mask.logits.shape == (1, height // 4, width // 4)
    assert mask.masks.shape == (1, 600, 900)
    assert np.isfinite(mask.logits).all()
    assert 0 <= mask.iou_scores[0] <= 1
    np.testing.assert_array_equal(sam.image(TRUCK, resolution=resolution).predict(box=BOX).logits, mask.logits)


@pytest.mark.parametrize("resolution", [512, (512, 768), (768, 1024), 1536], ids=str)
def test_a_box_gives_a_mask_of_what_is_in_it(sam, resolution):
    """Up to three times the size it was trained at; positions and windows that did not follow would spoil them."""
    mask = sam.image(TRUCK, resolution=resolution).predict(box=BOX).masks[0]
    x0, y0, x1, y1 = BOX
    inside = mask[y0:y1, x0:x1]
    assert inside.mean() > 0.35
    assert inside.sum() > 0.8 * mask.sum()


def test_a_click_is_in_its_mask(sam):
    masks = sam.image(TRUCK).predict(points=[CLICK])
    assert len(masks) == 1
    assert masks.masks[0][CLICK[1], CLICK[0]]
