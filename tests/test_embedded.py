"""The embedded model, on the image and the video of the examples."""

import json
from pathlib import Path

import numpy as np
import pytest

import masklet
from masklet.masks import decode_rle, encode_rle, mask_ious

pytestmark = pytest.mark.xdist_group("embedded")

EXAMPLES = Path(__file__).parent.parent / "examples"
TRUCK, DOG = EXAMPLES / "images/truck.jpg", EXAMPLES / "videos/dog.mp4"
CLICK, BOX = (410, 315), (40, 130, 862, 440)
DOG_BOX = (288, 108, 480, 200)
RESOLUTIONS = [None, (512, 768), (768, 1024), pytest.param(1536, marks=pytest.mark.slow)]
"""Up to three times the size the model was trained at."""


@pytest.fixture(scope="module")
def sam():
    return masklet.load(device="cpu", dtype="float32")


@pytest.fixture(scope="module", params=RESOLUTIONS, ids=str)
def resolution(request):
    return request.param


@pytest.fixture(scope="module")
def truck(sam, resolution):
    return sam.image(TRUCK, resolution=resolution)


@pytest.fixture
def assert_golden(request, golden_folder):
    """Asserts that a (height, width) mask is that of a golden file; ``--update-golden`` writes it instead."""

    def assert_golden(file, name, mask):
        path = golden_folder / f"embedded/{file}.json"
        if request.config.getoption("--update-golden"):
            masks = json.loads(path.read_text()) if path.exists() else {}
            masks |= {name: encode_rle(mask[None])[0]}
            path.write_text(json.dumps(masks, indent=2) + "\n")
        expected = decode_rle([json.loads(path.read_text())[name]])
        assert mask_ious(mask[None], expected)[0, 0] >= 0.98

    return assert_golden


def test_the_model_is_as_small_as_its_entry_says(sam):
    file = Path(masklet.__file__).parent / "weights/nano/model.safetensors"
    assert file.stat().st_size < 12e6
    parameters = sum(p.numel() for p in sam.model.parameters())
    assert 3e6 < parameters < 6e6
    [known] = [model for model in masklet.checkpoints.KNOWN_MODELS if model.name == "nano"]
    assert known.parameters == parameters
    assert known.megabytes == round(file.stat().st_size / 1e6)


def test_maps_and_logits_follow_the_resolution(sam, truck, resolution):
    side = resolution or sam.model.config.image_size
    height, width = (side, side) if isinstance(side, int) else side
    assert truck.input_hw == (height, width)
    assert truck.features.stride16.shape[-2:] == (height // 16, width // 16)
    mask = truck.predict(box=BOX)
    assert mask.logits.shape == (1, height // 4, width // 4)
    assert mask.masks.shape == (1, 600, 900)
    assert np.isfinite(mask.logits).all()
    assert 0.5 < mask.iou_scores[0] <= 1


def test_a_box_gives_the_truck(truck, resolution, assert_golden):
    mask = truck.predict(box=BOX).masks[0]
    assert_golden("truck", f"box, resolution {resolution}", mask)
    x0, y0, x1, y1 = BOX
    inside = mask[y0:y1, x0:x1]
    assert inside.mean() > 0.35
    assert inside.sum() > 0.8 * mask.sum()


def test_a_click_gives_the_object_under_it(sam, assert_golden):
    masks, again = (sam.image(TRUCK).predict(points=[CLICK]) for _ in range(2))
    np.testing.assert_array_equal(masks.logits, again.logits)
    (mask,) = masks.masks
    assert mask[CLICK[1], CLICK[0]]
    assert_golden("truck", "click", mask)


def test_a_dog_is_tracked(sam, assert_golden):
    video = sam.video(DOG)
    video.prompt(frame=0, object="dog", box=DOG_BOX)
    for result in video.track(end=12):
        assert result.visible.all()
        if result.index % 4 == 0:
            assert_golden("dog", f"frame {result.index}", result.masks.masks[0])
