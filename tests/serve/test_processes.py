"""Several servers, each a process, on one data folder, with SQLite and with PostgreSQL."""

import threading
import time
from contextlib import ExitStack, suppress
from urllib.error import HTTPError

import pytest
from serve.conftest import TRUCK
from serve.postgresql import postgresql
from serve.server_process import PATIENCE, Server

from masklet.errors import ConfigError

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def servers(request, tmp_path_factory):
    """Two servers that start at the same time, so that both want to make the tables."""
    with ExitStack() as stack:
        options = ["--database", stack.enter_context(postgresql())] if request.param == "postgresql" else []
        data, started = tmp_path_factory.mktemp("data"), []
        starting = [
            threading.Thread(target=lambda: started.append(Server(data, *options)), daemon=True) for _ in range(2)
        ]
        for thread in starting:
            thread.start()
        for thread in starting:
            thread.join(PATIENCE)
        for server in started:
            stack.callback(lambda server=server: server.process.poll() is not None or server.kill())
        assert len(started) == 2
        yield started


def patient(ask, *arguments):
    """Asks again while another process works on the image or video."""
    until = time.monotonic() + PATIENCE
    while True:
        try:
            return ask(*arguments)
        except HTTPError as error:
            if error.code != 503 or time.monotonic() > until:
                raise
            time.sleep(0.02)


def wait_for(server, job):
    until = time.monotonic() + PATIENCE
    while server.get(f"/v1/jobs/{job}")["status"] == "running":
        assert time.monotonic() < until
        time.sleep(0.02)


def test_clicks_through_two_servers_at_once_are_all_kept(servers, sam):
    first, second = servers
    project = first.post("/v1/projects", {"name": "x"})["id"]
    media = first.upload(project, TRUCK)
    assert second.post(f"/v1/media/{media}/objects", {})["number"] == 1
    prompts, sent, errors = f"/v1/media/{media}/objects/1/prompts", [], []

    def click(server, x):
        try:
            for y in (200, 250, 300):
                patient(server.post, prompts, {"points": [[x, y]]})
                sent.append((x, y, 1))
        except Exception as error:
            errors.append(error)

    threads = [
        threading.Thread(target=click, args=(server, x), daemon=True) for server, x in ((first, 300), (second, 400))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert errors == []
    (mask,) = second.get(f"/v1/media/{media}/masks")
    points = [tuple(point) for point in mask["prompts"]["points"]]
    assert sorted((*point, 1)[:3] for point in points) == sorted(sent)
    image, logits = sam.image(TRUCK), None
    for count in range(1, len(points) + 1):
        found = image.predict(points=points[:count], mask=logits)
        logits = found.logits
    assert mask["segmentation"] == found.to_rle()[0]
    assert first.get(f"/v1/media/{media}/masks") == [mask]


def test_a_server_goes_on_with_what_another_one_tracked_until_it_was_killed(servers, sam, short_dog):
    first, second = servers
    project = first.post("/v1/projects", {"name": "y"})["id"]
    video = first.upload(project, short_dog)
    patient(second.post, f"/v1/media/{video}/objects", {})
    prompts = f"/v1/media/{video}/objects/1/prompts"
    patient(second.post, prompts, {"frame": 0, "points": [[80, 50]]})
    job = patient(first.post, f"/v1/media/{video}/tracking", {})["id"]
    cancelled = second.request("DELETE", f"/v1/jobs/{job}")  # of a job of the other process
    assert cancelled
    wait_for(second, job)
    job = patient(first.post, f"/v1/media/{video}/tracking", {"start": 0})["id"]
    first.kill()
    assert second.get(f"/v1/jobs/{job}")["status"] in ("interrupted", "done")
    with suppress(HTTPError):  # it may have finished, which the masks below tell
        job = second.post(f"/v1/media/{video}/tracking", {"resume": True})["id"]
    wait_for(second, job)
    session = sam.video(short_dog)
    session.prompt(0, 1, points=[(80, 50)])
    for result in session.track():
        (mask,) = second.get(f"/v1/media/{video}/masks?frame={result.index}")
        assert mask["segmentation"] == result.masks.to_rle()[0]
    assert second.request("DELETE", f"/v1/projects/{project}") == b""
    with pytest.raises(HTTPError, match="404"):
        second.get(f"/v1/media/{video}")


def test_postgresql_says_what_it_cannot_hold_and_when_it_cannot_be_reached(make_client):
    with postgresql() as url:
        client = make_client(database=url)
        assert client.post("/v1/projects", json={"name": "x"}).status_code == 201
        reply = client.get("/v1/media/%00/masks")
        assert (reply.status_code, "characters that cannot be saved" in reply.text) == (422, True)
    reply = client.get("/v1/projects")
    assert (reply.status_code, reply.headers["retry-after"]) == (503, "2")
    assert reply.json()["detail"] == "the database cannot be reached. Nothing was changed; try again"
    with pytest.raises(ConfigError, match=r"cannot use --database postgresql\+psycopg://masklet@/postgres"):
        make_client(database=url)
