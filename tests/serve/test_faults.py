"""Servers that are killed, and disks that are full."""

import errno
import os
import random
import shutil
import threading
import time
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path

import pytest
from serve.conftest import DOG, TRUCK, add_object, finished, upload
from serve.server_process import Server
from sqlalchemy import event

from masklet.serve.problems import unsaved

KILLS = int(os.environ.get("MASKLET_TEST_KILLS", 2))
"""More of them take long: each is a start of the server."""


@pytest.mark.slow
def test_a_server_killed_at_random_moments_has_every_acknowledged_mask(tmp_path):
    server, draw = Server(tmp_path / "data"), random.Random(0)
    project = server.post("/v1/projects", {"name": "x"})["id"]
    image, video = server.upload(project, TRUCK), server.upload(project, DOG)
    for media in (image, video):
        server.post(f"/v1/media/{media}/objects", {})
    acknowledged, seen = {}, {}
    server.post(f"/v1/media/{video}/objects/1/prompts", {"frame": 0, "box": [200, 80, 330, 200]})
    for _ in range(KILLS):
        until, killer = draw.randrange(1, 3), None
        with suppress(OSError):
            server.post(f"/v1/media/{video}/tracking", {"direction": "forward"} if not seen else {"resume": True})
        with suppress(OSError, HTTPException):  # until it is killed
            while True:
                point = [draw.randrange(900), draw.randrange(600), draw.randrange(2)]
                if killer is None and not until:
                    killer = threading.Timer(draw.uniform(0, 0.4), server.kill)
                    killer.start()
                mask = server.post(f"/v1/media/{image}/objects/1/prompts", {"points": [point]})
                acknowledged[image], until = mask, max(until - 1, 0)
                for frame in range(30):
                    if frame not in seen and (masks := server.get(f"/v1/media/{video}/masks?frame={frame}")):
                        seen[frame] = masks[0]["segmentation"]
        killer.join()
        server.process.wait()
        server.start()
        if image in acknowledged:  # one more may have been saved, whose answer was lost
            (found,) = server.get(f"/v1/media/{image}/masks")
            last = acknowledged[image]["prompts"]["points"]
            assert found["prompts"]["points"][: len(last)] == last
            assert len(found["prompts"]["points"]) <= len(last) + 1
            if found["prompts"]["points"] == last:
                assert found == acknowledged[image]
        for frame, segmentation in seen.items():
            assert server.get(f"/v1/media/{video}/masks?frame={frame}")[0]["segmentation"] == segmentation
    server.stop()
    assert acknowledged
    assert len(seen) > 1


def test_a_full_disk_is_said_and_nothing_is_lost(client, project, monkeypatch):
    media = upload(client, project, TRUCK)["id"]
    client.post(f"/v1/media/{media}/objects", json={})

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfileobj", full)
    with TRUCK.open("rb") as file:
        reply = client.post(f"/v1/projects/{project}/media", files={"file": file})
    assert (reply.status_code, reply.json()["detail"].startswith("the server's disk is full")) == (507, True)
    assert len(list(Path(client.app.state.settings.data / "uploads").iterdir())) == 1


def test_a_locked_database_is_said_and_nothing_is_lost(client, project, monkeypatch):
    import sqlite3

    from masklet.serve.state import database

    monkeypatch.setattr(database, "BUSY_SECONDS", 0)
    other = sqlite3.connect(client.app.state.settings.data / "masklet.sqlite", timeout=0)
    other.execute("BEGIN IMMEDIATE")
    client.app.state.workspace.database.engine.dispose()
    event.listen(client.app.state.workspace.database.engine, "connect", lambda c, _: c.execute("PRAGMA busy_timeout=1"))
    reply = client.post("/v1/projects", json={"name": "y"})
    assert reply.status_code == 503
    assert "locked by another program" in reply.json()["detail"]
    other.rollback()
    other.close()
    assert client.post("/v1/projects", json={"name": "y"}).status_code == 201
    assert len(client.get("/v1/projects").json()) == 2


@pytest.fixture
def pragma(client):
    """Sets SQLite's own limits for all connections, so that its own errors come."""
    engine, values = client.app.state.workspace.database.engine, {}

    def apply(connection, *_):
        for name, value in values.items():
            connection.execute(f"PRAGMA {name}={value}").fetchall()

    event.listen(engine, "connect", apply)

    def set_value(**changed):
        values.update(changed)
        engine.dispose()

    return set_value


def test_a_read_only_database_is_said_and_nothing_is_lost(client, project, pragma):
    pragma(query_only="ON")
    reply = client.post("/v1/projects", json={"name": "y"})
    assert (reply.status_code, reply.json()["detail"]) == (
        507,
        "the server's data folder is read-only. Nothing was changed",
    )
    pragma(query_only="OFF")
    assert [one["id"] for one in client.get("/v1/projects").json()] == [project]


@pytest.mark.slow
def test_tracking_into_a_full_disk_says_so_and_goes_on_when_there_is_room(client, project, pragma, short_dog, sam):
    video = upload(client, project, short_dog)["id"]
    number = add_object(client, video)
    client.post(f"/v1/media/{video}/objects/{number}/prompts", json={"frame": 0, "points": [[80, 50]]})
    job = client.post(f"/v1/media/{video}/tracking", json={}).json()["id"]
    while client.get(f"/v1/jobs/{job}").json()["done"] < 2:
        time.sleep(0.001)
    pragma(max_page_count=1)  # no file may grow any more
    ended = finished(client, job)
    if ended["status"] != "done":  # there was room for some frames, in pages that were there
        assert ended["status"] == "failed"
        assert ended["error"] == "the server's disk is full. Nothing was changed; make room and try again"
        with client.stream("GET", f"/v1/jobs/{job}/events") as reply:
            assert "disk is full" in [line for line in reply.iter_lines() if line][-1]
        pragma(max_page_count=2**30)
        job = client.post(f"/v1/media/{video}/tracking", json={"resume": True}).json()["id"]
        assert finished(client, job)["status"] == "done"
    session = sam.video(short_dog)
    session.prompt(0, 1, points=[(80, 50)])
    for result in session.track():
        (mask,) = client.get(f"/v1/media/{video}/masks?frame={result.index}").json()
        assert mask["segmentation"] == result.masks.to_rle()[0]


def test_the_name_of_a_file_does_not_decide_what_is_wrong_with_it():
    for path in ("images/full/locked.jpg", "readonly/a.jpg"):
        status, message = unsaved(FileNotFoundError(errno.ENOENT, "No such file or directory", path))
        assert (status, message) == (500, "the server could not read or save its files. Its log says why")
    assert unsaved(OSError(errno.ENOSPC, "No space left on device", "a.jpg"))[0] == 507
