"""Videos, against the results of Meta's video predictor: see tests/golden/README.md."""

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.xdist_group("meta")

FRAMES = 8
FOREGROUND = [(210, 350), (250, 220)]
BOX = (300, 0, 500, 400)


@pytest.fixture(scope="module")
def golden(golden_folder):
    with np.load(golden_folder / "meta/video.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def images(golden_folder):
    paths = sorted((golden_folder / "inputs/bedroom").glob("*.jpg"))
    assert len(paths) == FRAMES
    return [np.array(Image.open(path)) for path in paths]


@pytest.fixture(scope="module")
def sam(seeded_runtime):
    """Encodes each frame once for all tests of this module."""
    encoder = getattr(seeded_runtime, "engine", None) or seeded_runtime.network
    encode, features = encoder.encode, {}

    def encode_once(pixel_values):
        key = hash(np.asarray(pixel_values).tobytes())
        if key not in features:
            features[key] = encode(pixel_values)
        return features[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoder, "encode", encode_once)
        yield seeded_runtime


@pytest.fixture
def session(sam, images):
    return sam.video(images, max_prompted=None)


def assert_matches(session, golden, run, results, *, frames):
    """Compare the logits, scores and pointers of all objects in all frames."""
    compared = []
    for result in results:
        for name in result.object_ids:
            key = f"{run}.f{result.index}.o{name}"
            logits = result[name].logits[0].astype(np.float64)
            expected = golden[f"{key}.low_res.every_2nd"].astype(np.float64)
            assert np.linalg.norm(logits[::2, ::2] - expected) < 1e-2 * np.linalg.norm(expected), key
            is_positive = np.unpackbits(golden[f"{key}.low_res.positive"]).reshape(logits.shape) > 0
            assert ((logits > 0) == is_positive).mean() > 0.999, key
            score = result.object_scores[result.object_ids.index(name)]
            np.testing.assert_allclose(score, golden[f"{key}.object_score"].item(), atol=1e-3, err_msg=key)
            track = session._tracks.objects[name]
            pointer = getattr(track, "bank", track).pointer(result.index)
            np.testing.assert_allclose(pointer, golden[f"{key}.obj_ptr"][0], atol=1e-3, err_msg=key)
            compared.append((result.index, name))
    assert compared == [(frame, name) for frame in frames for name in session.object_ids]


def test_two_objects_are_tracked_as_metas_predictor_does(session, golden):
    session.prompt(0, 1, points=FOREGROUND)
    session.prompt(0, 2, box=BOX)
    assert_matches(session, golden, "forward", session.track(end=1), frames=range(2))


@pytest.mark.slow
def test_a_full_memory_and_a_correction_are_tracked_as_metas_predictor_does(session, golden):
    """The last frame reads seven memories. After the correction, frames read two prompted ones."""
    session.prompt(0, 1, points=FOREGROUND)
    assert_matches(session, golden, "forward", session.track(), frames=range(FRAMES))
    session.prompt(4, 1, points=[(82, 410, 0)])
    assert_matches(session, golden, "corrected", session.track(end=5), frames=range(6))


@pytest.mark.slow
def test_an_object_is_tracked_backward_as_metas_predictor_does(session, golden):
    session.prompt(7, 1, points=[FOREGROUND[0], (*FOREGROUND[1], 0)])
    assert_matches(session, golden, "reverse", session.track(end=4, direction="backward"), frames=range(7, 3, -1))


@pytest.mark.slow
def test_a_mask_prompt_is_tracked_as_metas_predictor_does(session, golden):
    mask = np.zeros((540, 960), bool)
    mask[100:300, 200:400] = True
    session.prompt(0, 1, mask=mask)
    assert_matches(session, golden, "mask", session.track(end=3), frames=range(4))
