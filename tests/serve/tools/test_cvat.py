import json

import cc3d
import numpy as np
import pytest
from serve.tools.conftest import is_nearly, square_box, square_mask


def call(client, name, **body):
    return client.post(
        "/cvat/api/function_invocations", headers={"x-nuclio-function-name": f"masklet-{name}"}, json=body
    )


def test_functions_have_what_cvat_reads(client):
    listed = client.get("/cvat/api/functions").json()
    assert {one["metadata"]["annotations"]["type"] for one in listed.values()} == {"interactor", "tracker", "detector"}
    for name, one in listed.items():
        assert client.get(f"/cvat/api/functions/{name}").json() == one
        assert one["metadata"]["name"] == name
        json.loads(one["metadata"]["annotations"]["spec"])  # CVAT parses it
        assert one["spec"]["description"]
        # CVAT takes bool() of it, of which "false" would be true.
        assert "startswith_box" not in one["metadata"]["annotations"]


def full_mask(reply):
    x0, y0, x1, y1 = reply["bounds"]
    mask = np.zeros((96, 128), bool)
    mask[y0 : y1 + 1, x0 : x1 + 1] = reply["mask"]
    return mask


@pytest.mark.parametrize(
    "prompts",
    [
        {"pos_points": [[36, 45]], "neg_points": [], "obj_bbox": None},
        {"pos_points": [], "neg_points": [], "obj_bbox": [[20, 30], [52, 62]]},
        {"pos_points": [[36, 45]], "neg_points": [[100, 10]], "obj_bbox": [20, 30, 52, 62]},
    ],
)
def test_the_interactor_gives_the_mask_within_inclusive_bounds(client, texts, prompts):
    reply = call(client, "interactor", image=texts[0], **prompts).json()
    assert is_nearly(full_mask(reply), square_mask(0))


@pytest.mark.slow
def test_detections_end_with_their_box(client, texts):
    found = call(client, "detector", image=texts[0], threshold=0.9).json()
    masks = []
    for one in found:
        assert one["label"] == "object"
        assert float(one["confidence"]) >= 0.9
        *pixels, x0, y0, x1, y1 = one["mask"]
        masks.append(np.zeros((96, 128), bool))
        masks[-1][y0 : y1 + 1, x0 : x1 + 1] = np.reshape(pixels, (y1 - y0 + 1, x1 - x0 + 1))
        # The polygon is of the largest part, simplified to within a pixel.
        rows, columns = np.nonzero(cc3d.largest_k(masks[-1], k=1, connectivity=4))
        corner = np.reshape(one["points"], (-1, 2)).min(0)
        np.testing.assert_allclose(corner, [columns.min(), rows.min()], atol=1)
    assert any(is_nearly(mask, square_mask(0)) for mask in masks)


@pytest.mark.slow
def test_the_tracker_goes_on_from_states_that_were_json(client, texts):
    polygon = {"type": "polygon", "points": [20, 30, 52, 30, 52, 62, 20, 62]}
    shapes, states = [square_box(0), polygon], [None, None]
    for frame, text in enumerate(texts):
        reply = call(client, "tracker", image=text, shapes=shapes if frame == 0 else [], states=states).json()
        states = json.loads(json.dumps(reply["states"]))
        rectangle, outline = reply["shapes"]
        np.testing.assert_allclose(rectangle, square_box(frame), atol=2)
        assert outline["type"] == "polygon"
        corners = np.reshape(outline["points"], (-1, 2))
        np.testing.assert_allclose([*corners.min(0), *corners.max(0)], square_box(frame), atol=2)


@pytest.mark.slow
def test_a_frame_that_is_sent_again_gives_the_same_shapes(client, texts):
    begun = call(client, "tracker", image=texts[0], shapes=[square_box(0)], states=[None]).json()["states"]
    first, again = (call(client, "tracker", image=texts[1], states=begun).json() for _ in range(2))
    assert first["shapes"] == again["shapes"]


@pytest.mark.slow
def test_a_track_goes_on_after_its_stream_left_the_cache(app, client, texts):
    states = call(client, "tracker", image=texts[0], shapes=[square_box(0)], states=[None]).json()["states"]
    app.state.runtime.cache.clear()
    shapes = call(client, "tracker", image=texts[1], states=states).json()["shapes"]
    np.testing.assert_allclose(shapes[0], square_box(1), atol=4)


@pytest.mark.parametrize(
    ("name", "body", "status", "message"),
    [
        ("interactor", {"image": "?"}, 422, "the image is not base64"),
        ("interactor", {"pos_points": []}, 422, "nothing to segment"),
        ("interactor", {"obj_bbox": [1, 2]}, 422, "expected two corners"),
        ("tracker", {"states": [{"id": "x"}]}, 422, "a tracker state is not one of this server"),
        ("tracker", {"states": [None]}, 422, "a track begins without a shape"),
        ("nothing", {}, 404, "no function masklet-nothing"),
    ],
)
def test_errors_say_what_is_wrong(client, texts, name, body, status, message):
    reply = call(client, name, **{"image": texts[0], **body})
    assert reply.status_code == status
    assert message in reply.text
