"""Servers that are killed, and disks that are full."""

import os
import random
import shutil
import threading
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path

import pytest
from serve.conftest import DOG, TRUCK
from serve.server_process import Server

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
    from serve.conftest import upload

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
    from sqlalchemy import event

    event.listen(client.app.state.workspace.database.engine, "connect", lambda c, _: c.execute("PRAGMA busy_timeout=1"))
    reply = client.post("/v1/projects", json={"name": "y"})
    assert reply.status_code == 503
    assert "locked by another program" in reply.json()["detail"]
    other.rollback()
    other.close()
    assert client.post("/v1/projects", json={"name": "y"}).status_code == 201
    assert len(client.get("/v1/projects").json()) == 2
