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


def upload(client, project, path, name=None, headers=None):
    with path.open("rb") as file:
        reply = client.post(f"/v1/projects/{project}/media", files={"file": (name or path.name, file)}, headers=headers)
    assert reply.status_code == 201, reply.text
    return reply.json()


def add_object(client, media, **values):
    return client.post(f"/v1/media/{media}/objects", json=values).json()["number"]
