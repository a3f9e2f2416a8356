"""Against what Meta's own video predictor computed: see ../shared/reference/README.md."""

import numpy as np
import pytest
from PIL import Image

FRAMES = 8


@pytest.fixture(scope="module")
def golden(shared):
    return np.load(shared / "reference/meta_sam2.1_hiera_tiny/video.npz")


@pytest.fixture(scope="module")
def features():
    """Encoded frames, shared by the runs: only time is saved."""
    return {}


@pytest.fixture
def session(seeded_sam, shared, features):
    images = [np.array(Image.open(p)) for p in sorted((shared / "data/samples/bedroom-frames").glob("*.jpg"))]
    assert len(images) == FRAMES
    session = seeded_sam.video(images, max_prompted=None)
    encode = session._features_of
    session._features_of = lambda index, at_hand=None: features.setdefault(index, encode(index, at_hand))
    return session


def check(session, golden, run, results):
    """Every frame's logits, scores and pointers."""
    count = 0
    for result in results:
        for name in result.object_ids:
            key = f"{run}.f{result.index}.o{name}"
            ours, theirs = result[name].logits[0].astype(np.float64), golden[f"{key}.low_res"].astype(np.float64)
            assert np.linalg.norm(ours - theirs) < 1e-2 * np.linalg.norm(theirs), key
            assert ((ours > 0) == (theirs > 0)).mean() > 0.999, key
            score = result.object_scores[result.object_ids.index(name)]
            np.testing.assert_allclose(score, golden[f"{key}.object_score"].item(), atol=1e-3, err_msg=key)
            pointer = session._tracks.objects[name].bank.pointer(result.index)
            np.testing.assert_allclose(pointer, golden[f"{key}.obj_ptr"][0], atol=1e-3, err_msg=key)
            count += 1
    assert count == FRAMES * len(session.object_ids)


@pytest.mark.slow
def test_clicks_a_box_and_a_correction_are_followed_as_metas_predictor_does(session, golden):
    session.prompt(0, 1, points=[(210, 350), (250, 220)])
    session.prompt(0, 2, box=(300, 0, 500, 400))
    check(session, golden, "forward", session.track())
    session.prompt(4, 1, points=[(82, 410, 0)])
    check(session, golden, "corrected", session.track())


@pytest.mark.slow
def test_an_object_is_followed_backward_as_metas_predictor_does(session, golden):
    session.prompt(7, 1, points=[(210, 350), (250, 220, 0)])
    check(session, golden, "reverse", session.track(direction="backward"))


@pytest.mark.slow
def test_a_mask_is_followed_as_metas_predictor_does(session, golden):
    mask = np.zeros((540, 960), bool)
    mask[100:300, 200:400] = True
    session.prompt(0, 1, mask=mask)
    check(session, golden, "mask", session.track())
