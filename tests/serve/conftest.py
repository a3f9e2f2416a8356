import time
from pathlib import Path

import pytest
from starlette.testclient import TestClient

import masklet
from masklet.serve.app import create_app
from masklet.serve.settings import Settings

EXAMPLES = Path(__file__).parents[2] / "examples"
TRUCK, DOG = EXAMPLES / "images" / "truck.jpg", EXAMPLES / "videos" / "dog.mp4"


@pytest.fixture(scope="session")
def sam():
    return masklet.load()


@pytest.fixture
def make_client(tmp_path, sam):
    """Starts servers on one data folder, by default without a token."""
    clients = []

    def make(data=tmp_path / "data", **settings):
        app = create_app(Settings(data=data, **settings), sam)
        client = TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False)
        clients.append(client)
        client.__enter__()
        return client

    yield make
    for client in clients:
        client.__exit__(None, None, None)


@pytest.fixture
def client(make_client):
    return make_client()


@pytest.fixture
def project(client):
    return client.post("/v1/projects", json={"name": "test"}).json()["id"]


@pytest.fixture(scope="session")
def short_dog(tmp_path_factory):
    """A few frames of the dog, small, so that tracking is quick."""
    import av

    path = tmp_path_factory.mktemp("video") / "dog.mp4"
    with av.open(DOG) as source, av.open(path, "w") as target:
        stream = target.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 160, 96, "yuv420p"
        for count, frame in enumerate(source.decode(video=0)):
            if count == 6:
                break
            small = frame.reformat(width=160, height=96)
            small.pts = None
            target.mux(stream.encode(small))
        target.mux(stream.encode())
    return path


def upload(client, project, path, name=None, headers=None):
    with path.open("rb") as file:
        reply = client.post(f"/v1/projects/{project}/media", files={"file": (name or path.name, file)}, headers=headers)
    assert reply.status_code == 201, reply.text
    return reply.json()


def add_object(client, media, **values):
    return client.post(f"/v1/media/{media}/objects", json=values).json()["number"]


def finished(client, job):
    while (reply := client.get(f"/v1/jobs/{job}").json())["status"] == "running":
        time.sleep(0.01)
    return reply
