import json
import time

import numpy as np
import pytest
from serve.tools.conftest import COUNT, square_box

BASE = "/xanylabeling/v1"


def predict(client, text, **params):
    return client.post(
        f"{BASE}/predict", json={"model": "masklet", "image": f"data:image/png;base64,{text}", "params": params}
    )


def extent(shape):
    points = np.array(shape["points"])
    return [*points.min(0), *points.max(0)]


def largest(shapes):
    """The polygon of a mask's largest part; it may have small ones elsewhere."""
    return max(shapes, key=lambda shape: np.prod(np.ptp(np.array(shape["points"]), axis=0)))


def test_models_name_their_widgets(client):
    models = client.get(f"{BASE}/models").json()["data"]
    assert models["masklet-video"]["batch_processing_mode"] == "video"
    for name, model in models.items():
        assert all({"name", "value"} <= widget.keys() for widget in model["widgets"])
        assert client.get(f"{BASE}/models/{name}/info").json()["data"] == {"model_id": name, **model}


def test_a_rectangle_and_a_point_to_remove_give_one_polygon(client, texts):
    marks = [
        {"type": "rectangle", "label": 1, "data": [52, 62, 20, 30]},
        {"type": "point", "label": 0, "data": [100, 80]},
    ]
    (shape,) = predict(client, texts[0], marks=marks).json()["data"]["shapes"]
    assert (shape["label"], shape["shape_type"]) == ("AUTOLABEL_OBJECT", "polygon")
    np.testing.assert_allclose(extent(shape), square_box(0), atol=2)


def test_a_larger_epsilon_leaves_fewer_points(client, texts):
    marks = [{"type": "point", "label": 1, "data": [100, 10]}]
    fine, coarse = (
        sum(
            len(shape["points"])
            for shape in predict(client, texts[0], marks=marks, epsilon_factor=epsilon).json()["data"]["shapes"]
        )
        for epsilon in (0, 0.02)
    )
    assert coarse < fine


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"model": "sam9"}, "MODEL_NOT_FOUND"),
        ({"image": "?"}, "INVALID_IMAGE"),
        ({"image": "aGVsbG8="}, "INVALID_IMAGE"),
        ({"params": {"marks": []}}, "INFERENCE_ERROR"),
        ({"params": {"marks": [{"type": "point", "data": [500, 5]}]}}, "INFERENCE_ERROR"),
    ],
)
def test_a_failed_prediction_deletes_nothing_and_says_why(client, texts, body, code):
    reply = client.post(f"{BASE}/predict", json={"model": "masklet", "image": texts[0], **body})
    assert reply.status_code == 200
    content = reply.json()
    assert content["success"] is False
    assert content["error"]["code"] == code
    assert content["data"] == {"shapes": [], "description": content["error"]["message"], "replace": False}


@pytest.fixture
def session(client, texts):
    opened = client.post(f"{BASE}/video/init", json={"frames": texts}).json()["data"]
    assert opened["total_frames"] == COUNT
    return opened["session_id"]


def prompt(client, session, frame, points, labels=(1,)):
    relative = [[x / 128, y / 96] for x, y in points]
    body = {
        "session_id": session,
        "frame_index": frame,
        "points": relative,
        "point_labels": list(labels),
        "obj_id": 10000,
    }
    return client.post(f"{BASE}/video/prompt", json=body)


def events(reply):
    return [json.loads(line.removeprefix("data: ")) for line in reply.text.splitlines() if line]


@pytest.mark.slow
def test_a_video_is_tracked_with_progress(client, session):
    shape = largest(prompt(client, session, 0, [(36, 45)]).json()["data"]["masks"])
    np.testing.assert_allclose(extent(shape), square_box(0), atol=2)
    stream = events(client.post(f"{BASE}/video/propagate/stream", json={"session_id": session, "start_frame": 0}))
    assert [event["type"] for event in stream] == ["started", *["progress"] * COUNT, "completed"]
    assert stream[0]["total_frames"] == COUNT
    results = stream[-1]["results"]
    for frame in range(COUNT):
        shape = largest(results[str(frame)]["masks"])
        np.testing.assert_allclose(extent(shape), square_box(frame), atol=3)


def test_points_of_a_frame_replace_those_before(client, session):
    prompt(client, session, 0, [(100, 10)])
    (shape,) = prompt(client, session, 0, [(36, 45), (100, 10)], [1, 0]).json()["data"]["masks"]
    np.testing.assert_allclose(extent(shape), square_box(0), atol=2)


@pytest.mark.slow
def test_a_task_can_be_watched_and_its_end_frame_counts(client, session):
    prompt(client, session, 0, [(36, 45)])
    body = {"session_id": session, "start_frame": 0, "end_frame": 1}
    task = client.post(f"{BASE}/video/propagate", json=body).json()["data"]["task_id"]
    while (state := client.get(f"{BASE}/video/status/{task}").json()["data"])["status"] == "running":
        time.sleep(0.01)
    assert state["status"] == "completed"
    assert list(state["results"]) == ["0", "1"]


def test_a_session_ends_with_cleanup(client, session):
    assert client.post(f"{BASE}/video/cleanup/{session}").json()["data"]["removed"] is True
    reply = prompt(client, session, 0, [(36, 45)])
    assert reply.status_code == 404
    assert reply.json()["error"]["code"] == "SESSION_NOT_FOUND"


def test_tracking_without_a_prompt_is_refused(client, session):
    reply = client.post(f"{BASE}/video/propagate/stream", json={"session_id": session})
    assert reply.status_code == 422
    assert "nothing to track: click on an object first" in reply.json()["error"]["message"]


@pytest.mark.slow
def test_another_user_does_not_find_a_video(tmp_path, texts):
    from fastapi.testclient import TestClient

    from masklet.serve.app import create_app
    from masklet.serve.settings import Settings

    app = create_app(Settings(data=tmp_path, tokens={"first-token": "ann", "second-token": "bob"}))
    ann, bob = (
        TestClient(app, headers={"Token": token}, base_url="http://127.0.0.1")
        for token in ("first-token", "second-token")
    )
    video = ann.post(f"{BASE}/video/init", json={"frames": texts[:1]}).json()["data"]["session_id"]
    assert prompt(bob, video, 0, [(36, 45)]).status_code == 404
    assert bob.post(f"{BASE}/video/cleanup/{video}").json()["data"]["removed"] is False
    assert prompt(ann, video, 0, [(36, 45)]).status_code == 200
    nobody = TestClient(app, base_url="http://127.0.0.1").get(f"{BASE}/models")
    assert nobody.status_code == 401
    assert nobody.json()["error"]["code"] == "UNAUTHORIZED"
    app.state.runtime.close()
