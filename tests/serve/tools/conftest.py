"""A server in this process, and frames in which a square moves to the right by six pixels."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

SIDE, TOP, LEFT, STEP, COUNT = 32, 30, 20, 6, 5


def square_box(frame):
    """x0 y0 x1 y1 of the square."""
    left = LEFT + STEP * frame
    return [left, TOP, left + SIDE, TOP + SIDE]


def square_mask(frame):
    mask = np.zeros((96, 128), bool)
    x0, y0, x1, y1 = square_box(frame)
    mask[y0:y1, x0:x1] = True
    return mask


def is_nearly(mask, expected):
    """The embedded model finds the square, give or take a few pixels at its edge."""
    return (mask & expected).sum() > 0.95 * (mask | expected).sum()


def frame_pixels(frame):
    pixels = np.random.default_rng(0).integers(0, 80, (96, 128, 3), dtype=np.uint8)
    pixels[square_mask(frame)] = 230, 60, 40
    return pixels


@pytest.fixture(scope="session")
def frames():
    """The content of a PNG for each frame."""
    contents = []
    for frame in range(COUNT):
        buffer = io.BytesIO()
        Image.fromarray(frame_pixels(frame)).save(buffer, "PNG")
        contents.append(buffer.getvalue())
    return contents


@pytest.fixture(scope="session")
def texts(frames):
    """The frames in base64."""
    return [base64.b64encode(content).decode() for content in frames]


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    pytest.importorskip("fastapi", reason="the server needs masklet[serve]")
    from masklet.serve.app import create_app
    from masklet.serve.settings import Settings

    app = create_app(Settings(data=tmp_path_factory.mktemp("data")))
    yield app
    app.state.runtime.close()


@pytest.fixture
def client(app):
    from fastapi.testclient import TestClient

    return TestClient(app, base_url="http://127.0.0.1")


@pytest.fixture(scope="session")
def clip(frames):
    """The content of a GIF of all frames, ten a second."""
    images = [Image.open(io.BytesIO(content)).quantize(64) for content in frames]
    buffer = io.BytesIO()
    images[0].save(buffer, "GIF", save_all=True, append_images=images[1:], duration=100)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def label_studio(tmp_path_factory, clip):
    """A server that is configured with a Label Studio which has the clip; ``client`` speaks to the server."""
    pytest.importorskip("fastapi", reason="the server needs masklet[serve]")
    from fastapi.testclient import TestClient
    from serve.tools.label_studio_host import Host

    from masklet.serve.app import create_app
    from masklet.serve.settings import Settings

    host = Host("secret")
    host.files["/data/clip.gif"] = clip
    settings = Settings(data=tmp_path_factory.mktemp("data"), labelstudio_url=host.url, labelstudio_token="secret")
    app = create_app(settings)
    host.client = TestClient(app, base_url="http://127.0.0.1")
    yield host
    app.state.runtime.close()
    host.close()
