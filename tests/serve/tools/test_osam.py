import base64
import io

import numpy as np
import pytest
from PIL import Image
from serve.tools.conftest import is_nearly, square_mask


def generate(client, text, prompt):
    return client.post("/osam/api/generate", json={"model": "sam2:small", "image": text, "prompt": prompt})


@pytest.mark.parametrize(
    "prompt",
    [
        {"points": [[36, 45]], "point_labels": [1]},
        {"points": [[20, 30], [52, 62], [100, 80]], "point_labels": [2, 3, 0]},
    ],
)
def test_masks_are_cropped_to_boxes_that_include_their_last_pixel(client, texts, prompt):
    reply = generate(client, texts[0], prompt).json()
    assert reply["model"] == "sam2:small"
    (one,) = reply["annotations"]
    box = one["bounding_box"]
    inside = np.asarray(Image.open(io.BytesIO(base64.b64decode(one["mask"]))))
    assert inside.shape == (box["ymax"] - box["ymin"] + 1, box["xmax"] - box["xmin"] + 1)
    mask = np.zeros((96, 128), bool)
    mask[box["ymin"] : box["ymax"] + 1, box["xmin"] : box["xmax"] + 1] = inside == 255
    assert is_nearly(mask, square_mask(0))


@pytest.mark.slow
def test_osam_itself_reads_the_reply(client, texts):
    osam = pytest.importorskip("osam", reason="reads replies with osam's own types: pip install osam")
    prompt = osam.types.Prompt(points=np.array([[36.0, 45.0]]), point_labels=np.array([1]))
    reply = generate(client, texts[0], prompt.model_dump(mode="json")).json()
    box = osam.types.BoundingBox.model_validate(reply["annotations"][0]["bounding_box"])
    inside = osam._json.image_b64data_to_ndarray(reply["annotations"][0]["mask"]) > 0
    osam.types.Annotation(bounding_box=box, mask=inside, score=reply["annotations"][0]["score"])


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ({"points": [[1, 1]], "point_labels": [7]}, "expected for each point one of 0 background"),
        ({"points": [[1, 1]], "point_labels": []}, "1 points and the labels []"),
        ({"points": [[1, 1]], "point_labels": [2]}, "1 top left and 0 bottom right corners"),
        ({"points": [[1, 1]], "point_labels": [0]}, "there are only background points"),
        ({"texts": ["dog"]}, "texts are not understood"),
    ],
)
def test_a_prompt_that_makes_no_sense_is_a_400(client, texts, prompt, message):
    reply = generate(client, texts[0], prompt)
    assert reply.status_code == 400
    assert message in reply.json()["detail"]
