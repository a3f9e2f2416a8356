import pytest

DETECTOR = {"x-nuclio-function-name": "masklet-detector"}


@pytest.mark.parametrize(
    ("path", "body", "headers"),
    [
        ("/cvat/api/function_invocations", {}, DETECTOR),
        ("/xanylabeling/v1/predict", {"model": "masklet-everything"}, {}),
        pytest.param("/osam/api/generate", {"model": "masklet"}, {}, marks=pytest.mark.slow),
    ],
    ids=["cvat", "xanylabeling", "osam"],
)
def test_clicks_come_in_between_while_a_tool_asks_for_all_objects(path, body, headers, app, client, texts, monkeypatch):
    pauses = []
    monkeypatch.setattr(app.state.runtime.scheduler, "run_waiting_clicks", lambda: pauses.append(path))
    reply = client.post(path, json={**body, "image": texts[0]}, headers=headers)
    assert reply.status_code == 200
    assert len(pauses) > 1
