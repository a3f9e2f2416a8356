"""Random requests to every endpoint of the API."""

import pytest
from serve.conftest import TRUCK, upload

schemathesis = pytest.importorskip("schemathesis", reason="needs schemathesis")
from hypothesis import HealthCheck, Phase, settings  # noqa: E402


@pytest.mark.slow
def test_no_request_makes_the_server_fail(make_client):
    client = make_client()
    project = client.post("/v1/projects", json={"name": "x"}).json()["id"]
    media = upload(client, project, TRUCK)["id"]
    client.post(f"/v1/media/{media}/objects", json={})
    schema = schemathesis.openapi.from_dict(client.app.openapi())
    known = {"media_id": media, "project_id": project, "number": 1, "frame": 0}
    tried = set()
    for operation in schema.get_all_operations():
        one = operation.ok()

        @settings(
            max_examples=6,
            database=None,
            deadline=None,
            derandomize=True,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @schemathesis_given(one)
        def check(case):
            deletes = case.method == "DELETE" and not case.path.endswith("/prompts")
            if not deletes:  # what the others need stays
                case.path_parameters = {k: known.get(k, v) for k, v in (case.path_parameters or {}).items()}
            reply = sent(client, case)
            assert reply.status_code < 500, f"{case.method} {case.formatted_path}: {reply.status_code} {reply.text}"
            if reply.status_code >= 400:
                assert reply.json()["detail"]
                assert "/tmp" not in reply.text

        check()
        tried.add((one.method, one.path))
    assert len(tried) > 25


def schemathesis_given(operation):
    from hypothesis import given

    return given(case=operation.as_strategy())


def sent(client, case):
    asked = case.as_transport_kwargs(base_url="http://127.0.0.1")
    data = asked.pop("data", None)
    body = {"content": data} if isinstance(data, bytes | str) else {"data": data}
    known = {name: asked[name] for name in ("method", "url", "params", "headers", "json", "files") if asked.get(name)}
    known["headers"] = {name: value for name, value in dict(known.get("headers", {})).items() if name != "User-Agent"}
    return client.request(**known, **body)
