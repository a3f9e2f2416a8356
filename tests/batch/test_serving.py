"""The server on Ray Serve: a real cluster of processes on this machine, one of which is killed."""

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from serve.conftest import DOG, TRUCK
from typer.testing import CliRunner

import masklet
from masklet.cli import app
from masklet.errors import ConfigError, MaskletError

httpx = pytest.importorskip("httpx")
pytest.importorskip("ray.serve", exc_type=ImportError)
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ray"), pytest.mark.filterwarnings("ignore")]

WAIT = 600
"""Seconds after which a step has failed."""
BOX = [200, 80, 330, 200]


@contextmanager
def serving(data, *options, address="local"):
    """``masklet serve --cluster`` in a process of its own, and a client of it."""
    command = [sys.executable, "-m", "masklet", "serve", "--cluster", address, "--data", data, "--port", "0", *options]
    process = subprocess.Popen(
        list(map(str, command)),
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )
    timer = threading.Timer(WAIT, process.kill)
    timer.start()
    try:
        line = process.stdout.readline()
        assert line.startswith("masklet: http"), line
        transport = httpx.HTTPTransport(retries=3)
        with httpx.Client(base_url=line.split()[1], timeout=WAIT, transport=transport) as client:
            yield client
        process.send_signal(signal.SIGINT)
        assert process.wait(WAIT) == 0
    finally:
        timer.cancel()
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()


def asked(client, method, path, **values):
    """The answer of a server of which one process may have died."""
    end = time.monotonic() + WAIT
    while time.monotonic() < end:
        with suppress(httpx.TransportError):
            reply = client.request(method, f"/v1{path}", **values)
            if reply.status_code < 500:
                assert reply.is_success, reply.text
                return reply.json()
        time.sleep(0.2)
    raise TimeoutError(path)


def uploaded(client, path):
    project = asked(client, "POST", "/projects", json={"name": path.name})["id"]
    media = asked(client, "POST", f"/projects/{project}/media", files={"file": (path.name, path.read_bytes())})["id"]
    asked(client, "POST", f"/media/{media}/objects", json={})
    return media


def until(found, what):
    """Waits until ``found`` returns something."""
    end = time.monotonic() + WAIT
    while time.monotonic() < end:
        if (value := found()) is not None:
            return value
        time.sleep(0.1)
    raise TimeoutError(what)


def check_that_nothing_is_lost(client, data, kill):
    """Kills what tracks a video, and goes on with it; ``kill`` gets the process id of the replica."""
    frames = 12
    image, video = uploaded(client, TRUCK), uploaded(client, DOG)
    mask = asked(client, "POST", f"/media/{image}/objects/1/prompts", json={"points": [[410, 315]]})
    asked(client, "POST", f"/media/{video}/objects/1/prompts", json={"frame": 0, "box": BOX})
    job = asked(client, "POST", f"/media/{video}/tracking", json={"end": frames - 1})["id"]
    until(lambda: asked(client, "GET", f"/media/{video}/masks?frame=2") or None, "tracked frames")
    with sqlite3.connect(data / "masklet.sqlite") as database:
        ((owner,),) = database.execute("SELECT owner FROM tracking_job").fetchall()
    kill(int(owner.split(":")[1]))
    status = until(lambda: ended(client, job), "the end of the job")
    assert status == "interrupted"
    assert asked(client, "GET", f"/media/{image}/masks") == [mask]
    again = asked(client, "POST", f"/media/{video}/tracking", json={"resume": True})["id"]
    assert until(lambda: ended(client, again), "the end of the second job") == "done"
    found = [asked(client, "GET", f"/media/{video}/masks?frame={frame}")[0] for frame in range(frames)]
    sam = masklet.load()
    truck = sam.image(TRUCK).predict(points=[(410, 315)])
    assert mask["segmentation"]["counts"] == truck.to_rle()[0]["counts"]
    session = sam.video(DOG)
    session.prompt(0, 1, box=BOX)
    expected = [result.masks.to_rle()[0]["counts"] for result in session.track(end=frames - 1)]
    assert [one["segmentation"]["counts"] for one in found] == expected


def test_a_replica_that_dies_loses_nothing(tmp_path):
    data = tmp_path / "data"
    with serving(data, "--min-replicas", "2", "--max-replicas", "2") as client:
        check_that_nothing_is_lost(client, data, lambda replica: os.kill(replica, signal.SIGKILL))


NODES = """
import json
import sys
from ray.cluster_utils import Cluster

nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
others = [nodes.add_node(num_cpus=1) for _ in range(2)]
raylets = [node.all_processes["raylet"][0].process.pid for node in others]
print(json.dumps({"address": nodes.address, "raylets": raylets}), flush=True)
sys.stdin.read()
nodes.shutdown()
"""


@contextmanager
def three_nodes():
    """A cluster of three nodes, two of which have room for a replica: its address, and their processes."""
    process = subprocess.Popen(
        [sys.executable, "-c", NODES],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        # The proxies of all nodes listen on one port of this machine.
        env={**os.environ, "OMP_NUM_THREADS": "1", "SERVE_SOCKET_REUSE_PORT_ENABLED": "1"},
        start_new_session=True,
    )
    timer = threading.Timer(WAIT, process.kill)
    timer.start()
    try:
        found = json.loads(process.stdout.readline())
        yield found["address"], found["raylets"]
    finally:
        with suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=WAIT)  # its end of stdin is closed
        timer.cancel()
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def parents():
    """The process id of each process' parent."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/status"):
        with suppress(OSError):
            found[int(path.parent.name)] = int(re.search(r"PPid:\s+(\d+)", path.read_text())[1])
    return found


def test_a_node_that_dies_loses_nothing(tmp_path):
    data = tmp_path / "data"

    def kill(replica):
        parent_of = parents()
        raylet = parent_of[replica]
        assert raylet in raylets
        for pid in (raylet, *(pid for pid, parent in parent_of.items() if parent == raylet)):
            os.kill(pid, signal.SIGKILL)

    with three_nodes() as (address, raylets), serving(data, "--min-replicas", "2", address=address) as client:
        check_that_nothing_is_lost(client, data, kill)


def ended(client, job):
    """The status of a job that runs no more."""
    status = asked(client, "GET", f"/jobs/{job}")["status"]
    return None if status == "running" else status


def test_requests_on_one_image_go_to_one_replica():
    import asyncio
    import pickle
    from types import SimpleNamespace

    from masklet.cluster.routing import MediaRouter, subject_of

    def request(path, headers=()):
        scope = {"path": path, "client": ("192.0.2.7", 1), "headers": list(headers)}
        return SimpleNamespace(args=[pickle.dumps(SimpleNamespace(asgi_scope=scope))])

    replicas = [SimpleNamespace(replica_id=SimpleNamespace(unique_id=f"r{number}")) for number in range(5)]

    def first(path, among=replicas):
        return asyncio.run(MediaRouter.choose_replicas(None, among, request(path)))[0][0]

    chosen = {f"/v1/media/{number}": first(f"/v1/media/{number}/masks") for number in range(200)}
    assert set(map(id, chosen.values())) == set(map(id, replicas))
    for media, replica in chosen.items():
        assert first(f"{media}/objects/1/prompts") is replica
        if replica is not replicas[0]:  # whose end moves no other image
            assert first(media, replicas[1:]) is replica
    ann = request("/xanylabeling/v1/video/init", [(b"authorization", b"Bearer ann")])
    assert subject_of(ann.args) == "xanylabeling ann"
    assert subject_of(request("/xanylabeling/v1/video/init", [(b"token", b"ann")]).args) == "xanylabeling ann"
    assert subject_of(request("/labelstudio/predict").args) == "labelstudio 192.0.2.7"
    assert subject_of(request("/v1/predict").args) is None
    assert len(asyncio.run(MediaRouter.choose_replicas(None, replicas, request("/v1/predict")))[0]) == 2


def test_what_cannot_be_served_on_a_cluster_is_refused(tmp_path, monkeypatch):
    def refused(*options):
        done = CliRunner().invoke(app, ["serve", "--data", str(tmp_path), "--port", "0", *options])
        assert isinstance(done.exception, MaskletError)
        return str(done.exception)

    assert "are for --cluster: give both" in refused("--max-replicas", "2")
    assert "replicas from 3 to 2" in refused("--cluster", "local", "--min-replicas", "3", "--max-replicas", "2")
    monkeypatch.setitem(sys.modules, "ray", None)
    assert "pip install 'masklet[cluster]'" in refused("--cluster", "local")


def test_machines_must_share_a_database_and_hold_the_replicas(tmp_path, monkeypatch):
    from types import SimpleNamespace

    from masklet.cluster import serving as module
    from masklet.serve.settings import Settings

    nodes = [{"NodeManagerAddress": f"192.0.2.{number}", "Alive": True} for number in (1, 2)]
    monkeypatch.setattr(module, "connect", lambda address: SimpleNamespace(nodes=lambda: nodes))
    with pytest.raises(MaskletError, match="the cluster has 2 machines: give --database postgresql"):
        module.serving(Settings(data=tmp_path), {}, module.Replicas()).__enter__()
    alone = SimpleNamespace(nodes=lambda: nodes[:1], cluster_resources=lambda: {"CPU": 4})
    monkeypatch.setattr(module, "connect", lambda address: alone)
    with pytest.raises(MaskletError, match="the cluster has 4 CPUs and 0 GPUs: 5 workers with 1 CPUs .* do not fit"):
        module.serving(Settings(data=tmp_path), {}, module.Replicas(least=5)).__enter__()
    with pytest.raises(ConfigError, match="more than 0 CPUs"):
        module.Replicas(cpus=0)
