"""Against what Meta's own predictor computed: see ../shared/reference/README.md for how the files were made."""

import numpy as np
import pytest
import torch

SIZE_HW = (1200, 1800)
POINT, BESIDE = (500, 375), (1125, 625)
BOX = (425, 600, 700, 875)
CASES = {
    "point": {"points": [POINT], "candidates": True},
    "points": {"points": [POINT, (*BESIDE, 0)], "multimask": False},
    "box": {"box": BOX, "multimask": False},
    "box_point": {"box": BOX, "points": [(575, 750, 0)], "multimask": False},
    "mask_input": {"points": [POINT, BESIDE], "multimask": False},
}


@pytest.fixture(scope="module")
def golden(shared):
    return np.load(shared / "reference/meta_sam2.1_hiera_tiny/image.npz")


@pytest.fixture(scope="module")
def encoded(seeded_sam, shared):
    return seeded_sam.image(shared / "data/samples/images/truck.jpg")


def distance(ours, theirs):
    """Relative, over the whole tensor."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape
    return np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)


def test_the_image_embedding_is_metas(encoded, golden):
    assert distance(encoded.embeddings[2][0], golden["image_embed"]) < 1e-3


@pytest.mark.parametrize("case", CASES)
def test_a_prompt_gives_metas_logits_and_scores(encoded, golden, case):
    prompts = dict(CASES[case])
    if case == "mask_input":
        prompts["mask"] = encoded.predict(**CASES["point"]).best.logits
    masks = encoded.predict(**prompts)
    masks = masks[0] if case == "point" else masks
    assert distance(masks.logits, golden[f"{case}.low_res"]) < 2e-3
    np.testing.assert_allclose(masks.iou_scores, golden[f"{case}.ious"], atol=1e-4, rtol=0)


def test_the_plain_way_to_decode_gives_metas_logits_too(encoded, golden):
    """The way taken on accelerators; a CPU takes another one to the same masks."""
    model = encoded.model
    decoder = model.mask_decoder
    map_hw = tuple(encoded.embeddings[2].shape[-2:])
    points = torch.tensor([[[POINT]]]) * torch.tensor([1024 / SIZE_HW[1], 1024 / SIZE_HW[0]])
    labels = torch.ones(1, 1, 1, dtype=torch.long)
    with torch.inference_mode():
        prompts = model.prompt_encoder(points, labels, None, None, map_hw=map_hw, image_hw=(1024, 1024))
        positions = model.shared_image_embedding.grid(map_hw)
        logits, ious, _, _ = decoder._decode(
            encoded.embeddings[2][:, None],
            positions,
            prompts,
            lambda cells, kernels: decoder.draw(cells, kernels, tuple(encoded.embeddings[:2])),
        )
    assert distance(logits[0, 0, 1:], golden["point.low_res"]) < 2e-3
    np.testing.assert_allclose(ious[0, 0, 1:], golden["point.ious"], atol=1e-4, rtol=0)
