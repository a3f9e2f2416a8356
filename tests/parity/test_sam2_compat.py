"""Meta's goldens through the classes with Meta's names: see tests/golden/README.md."""

import numpy as np
import pytest
import torch
from PIL import Image

from masklet.compat.sam2.network import SAM2Base
from masklet.compat.sam2.sam2_image_predictor import SAM2ImagePredictor
from masklet.compat.sam2.sam2_video_predictor import SAM2VideoPredictor

pytestmark = pytest.mark.xdist_group("meta")

POINTS = {"point_coords": np.array([[500, 375]]), "point_labels": np.array([1])}
TWO = {"point_coords": np.array([[500, 375], [1125, 625]]), "multimask_output": False}
BOX = np.array([425, 600, 700, 875])
CASES = {
    "point": POINTS,
    "points": {**TWO, "point_labels": np.array([1, 0])},
    "box": {"box": BOX, "multimask_output": False},
    "box_point": {
        "box": BOX,
        "point_coords": np.array([[575, 750]]),
        "point_labels": np.array([0]),
        "multimask_output": False,
    },
    "mask_input": {**TWO, "point_labels": np.array([1, 1])},
}


@pytest.fixture(scope="module")
def predictor(seeded_sam, golden_folder):
    predictor = SAM2ImagePredictor(SAM2Base(seeded_sam.model, seeded_sam.image_processor))
    predictor.set_image(Image.open(golden_folder / "inputs/truck.jpg"))
    return predictor


@pytest.mark.parametrize("case", CASES)
def test_images(predictor, golden_folder, case):
    with np.load(golden_folder / "meta/image.npz") as golden:
        expected, ious = golden[f"{case}.low_res"].astype(np.float64), golden[f"{case}.ious"]
    prompt = dict(CASES[case])
    if case == "mask_input":
        _, scores, logits = predictor.predict(**POINTS)
        prompt["mask_input"] = logits[scores.argmax()][None]
    _, scores, logits = predictor.predict(**prompt)
    assert logits.shape == expected.shape
    assert np.linalg.norm(logits - expected) < 2e-3 * np.linalg.norm(expected)
    np.testing.assert_allclose(scores, ious, atol=1e-4, rtol=0)


@pytest.mark.slow
def test_a_video(seeded_sam, golden_folder):
    with np.load(golden_folder / "meta/video.npz") as golden:
        expected = {
            frame: [np.unpackbits(golden[f"forward.f{frame}.o{one}.low_res.positive"]) > 0 for one in (1, 2)]
            for frame in range(2)
        }
    predictor = SAM2VideoPredictor(seeded_sam.model, seeded_sam.image_processor)
    state = predictor.init_state(golden_folder / "inputs/bedroom")
    predictor.add_new_points_or_box(state, 0, 1, np.array([[210, 350], [250, 220]], np.float32), np.array([1, 1]))
    predictor.add_new_points_or_box(state, 0, 2, box=np.array([300, 0, 500, 400], np.float32))
    for frame, ids, logits in predictor.propagate_in_video(state, max_frame_num_to_track=1):
        assert ids == [1, 2]
        assert logits.shape == (2, 1, 540, 960)
        outputs = [state["output_dict_per_obj"][row] for row in range(2)]
        for row, output in enumerate(outputs):
            kind = "cond_frame_outputs" if frame == 0 else "non_cond_frame_outputs"
            low_res = output[kind][frame]["pred_masks"]
            assert ((low_res.numpy().ravel() > 0) == expected[frame][row]).mean() > 0.999
            torch.testing.assert_close(
                torch.nn.functional.interpolate(low_res, (540, 960), mode="bilinear", align_corners=False)[0],
                logits[row],
            )
