"""Servers that are killed, and disks that are full."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path

import pytest
from serve.conftest import DOG, TRUCK

KILLS = int(os.environ.get("MASKLET_TEST_KILLS", 2))
"""More of them take long: each is a start of the server."""


class Server:
    """``masklet serve`` in a process of its own."""

    def __init__(self, data, *options):
        self.data, self.options = data, options
        self.port = 0
        self.start()

    def start(self):
        command = [sys.executable, "-m", "masklet", "serve", "--data", self.data, "--port", self.port, *self.options]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True, env=environment)
        line = self.process.stdout.readline()
        self.port = int(line.split(" (")[0].rsplit(":", 1)[1])
        while True:
            try:
                self.get("/health")
            except OSError:
                time.sleep(0.05)
            else:
                return

    @property
    def address(self):
        return f"http://127.0.0.1:{self.port}"

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.process.stdout.close()

    def stop(self):
        self.process.terminate()
        self.process.wait()
        self.process.stdout.close()

    def restart(self):
        self.stop()
        self.start()

    def request(self, method, path, body=None, content_type="application/json"):
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        asked = urllib.request.Request(self.address + path, data, {"Content-Type": content_type}, method=method)
        with urllib.request.urlopen(asked) as reply:
            return reply.read()

    def content(self, path):
        return self.request("GET", path)

    def get(self, path):
        return json.loads(self.content(path))

    def post(self, path, body):
        return json.loads(self.request("POST", path, body))

    def upload(self, project, path):
        start = f'--b\r\nContent-Disposition: form-data; name="file"; filename="{path.name}"\r\n\r\n'.encode()
        body = start + path.read_bytes() + b"\r\n--b--\r\n"
        reply = self.request("POST", f"/v1/projects/{project}/media", body, "multipart/form-data; boundary=b")
        return json.loads(reply)["id"]

    def only_media(self):
        (project,) = self.get("/v1/projects")
        (media,) = self.get(f"/v1/projects/{project['id']}/media")
        return media["id"]


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
