"""Images, against the results of Meta's image predictor: see tests/golden/README.md."""

import numpy as np
import pytest
import torch

from masklet.model.prompt_encoder import Prompts

pytestmark = pytest.mark.xdist_group("meta")

SIZE_HW = (1200, 1800)
FOREGROUND, BACKGROUND = (500, 375), (1125, 625)
BOX = (425, 600, 700, 875)
CASES = {
    "point": {"points": [FOREGROUND], "candidates": True},
    "points": {"points": [FOREGROUND, (*BACKGROUND, 0)], "multimask": False},
    "box": {"box": BOX, "multimask": False},
    "box_point": {"box": BOX, "points": [(575, 750, 0)], "multimask": False},
    "mask_input": {"points": [FOREGROUND, BACKGROUND], "multimask": False},
}


@pytest.fixture(scope="module")
def golden(golden_folder):
    with np.load(golden_folder / "meta/image.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def encoded(seeded_sam, golden_folder):
    return seeded_sam.image(golden_folder / "inputs/truck.jpg")


@pytest.fixture(scope="module")
def encoded_by_runtime(seeded_runtime, golden_folder):
    return seeded_runtime.image(golden_folder / "inputs/truck.jpg")


def relative_error(ours, theirs):
    """The norm of the difference of two tensors, relative to the norm of the second."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape
    return np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)


def test_the_image_embedding_is_metas(encoded, golden):
    no_memory = encoded.engine.model.no_memory_embedding.view(-1, 1, 1)
    assert relative_error(no_memory + encoded.features.stride16[0], golden["image_embed"]) < 1e-3


@pytest.mark.parametrize("case", CASES)
def test_a_prompt_gives_metas_logits_and_scores(encoded_by_runtime, golden, case):
    encoded = encoded_by_runtime
    prompts = dict(CASES[case])
    if case == "mask_input":
        prompts["mask"] = encoded.predict(**CASES["point"]).best.logits
    masks = encoded.predict(**prompts)
    masks = masks[0] if case == "point" else masks
    assert relative_error(masks.logits, golden[f"{case}.low_res"]) < 2e-3
    np.testing.assert_allclose(masks.iou_scores, golden[f"{case}.ious"], atol=1e-4, rtol=0)


@pytest.mark.slow
def test_the_decoder_gives_metas_logits_with_gradients_enabled(encoded, golden):
    """As in training."""
    points = torch.tensor([[[FOREGROUND]]]) * torch.tensor([1024 / SIZE_HW[1], 1024 / SIZE_HW[0]])
    labels = torch.ones(1, 1, 1, dtype=torch.long)
    with torch.enable_grad():
        decoded = encoded.engine.model.decode(encoded.features, Prompts(points, labels), multimask=True)
    assert relative_error(decoded.logits[0, 0], golden["point.low_res"]) < 2e-3
    np.testing.assert_allclose(decoded.iou_scores[0, 0], golden["point.ious"], atol=1e-4, rtol=0)
