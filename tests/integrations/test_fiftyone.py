"""The zoo's models in FiftyOne itself. ``apply_model`` needs a MongoDB as well: FIFTYONE_DATABASE_URI."""

import warnings

import numpy as np
import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # FiftyOne's own, while it is imported
    fiftyone = pytest.importorskip("fiftyone", reason="needs FiftyOne: pip install fiftyone")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]


@pytest.fixture
def zoo(tmp_path, monkeypatch):
    import fiftyone.zoo as zoo

    from masklet.integrations.fiftyone import register

    monkeypatch.setattr(fiftyone.config, "model_zoo_dir", str(tmp_path))
    monkeypatch.setattr(fiftyone.config, "model_zoo_manifest_cache_enabled", False)
    register()
    return zoo


def square():
    image = np.random.default_rng(0).integers(0, 80, (96, 128, 3), dtype=np.uint8)
    image[30:62, 20:52] = 230, 60, 40
    return image


def test_a_box_gives_a_detection_with_a_cropped_mask(zoo):
    model = zoo.load_zoo_model("masklet-image")
    model.needs_fields = {"prompt_field": "boxes"}
    box = fiftyone.Detection(label="red", bounding_box=[20 / 128, 30 / 96, 32 / 128, 32 / 96])
    sample = fiftyone.Sample(filepath="a.png", boxes=fiftyone.Detections(detections=[box]))
    (found,) = model.predict(square(), sample=sample).detections
    assert found.label == "red"
    np.testing.assert_allclose(found.bounding_box, box.bounding_box, atol=0.02)
    assert found.mask.mean() > 0.95


def test_without_prompts_everything_is_found(zoo):
    model = zoo.load_zoo_model("masklet-image", points_per_side=4)
    assert len(model.predict(square()).detections) > 0
