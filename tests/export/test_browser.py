"""The page of examples/browser, in a real Chromium, with onnxruntime-web from npm."""

import shutil
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
EXAMPLE = Path(__file__).parents[2] / "examples" / "browser"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("export"),
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium"),
    pytest.mark.skipif(
        not (EXAMPLE / "node_modules" / "onnxruntime-web").is_dir(),
        reason="needs onnxruntime-web: npm install --ignore-scripts --prefix examples/browser",
    ),
]
PATIENCE = 120_000
"""Milliseconds. It is no limit to measure against: a busy machine may take long."""


class QuietHandler(SimpleHTTPRequestHandler):
    """Files, without a line on the standard error for each request."""

    def log_message(self, *arguments):
        pass


@pytest.fixture
def serve(tmp_path):
    """Serves the page, with or without an exported folder."""
    servers = []

    def start(model=None):
        for path in (*EXAMPLE.glob("*.mjs"), *EXAMPLE.glob("*.html"), EXAMPLE / "node_modules"):
            (tmp_path / path.name).symlink_to(path)
        if model is not None:
            (tmp_path / "model").symlink_to(model)
        server = ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=str(tmp_path)))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}/"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def page():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        page.set_default_timeout(PATIENCE)
        sync_api.expect.set_options(timeout=PATIENCE)
        yield page
        browser.close()


def says(page, text):
    sync_api.expect(page.locator("#status")).to_contain_text(text)


def click(page, x, y, shift=False):
    """Clicks near a pixel of the image. Returns the point: a browser's clicks are at whole pixels of its window."""
    box = page.locator("#image").bounding_box()
    at_x, at_y = round(box["x"] + x), round(box["y"] + y)
    if shift:
        page.keyboard.down("Shift")
    page.mouse.click(at_x, at_y)
    page.keyboard.up("Shift")
    return at_x - box["x"], at_y - box["y"]


def status_of(masks):
    """What the page says of a mask: its score, and the share of the network's output that is inside."""
    return f"Predicted IoU {masks.iou_scores[0]:.2f}, {100 * (masks.logits[0] > 0).mean():.1f} %"


def drawn(page):
    """(16, 16) bool: where the mask is painted, near the middle of each cell of the network's output."""
    pixels = page.locator("#mask").evaluate(
        "mask => [...mask.getContext('2d').getImageData(0, 0, mask.width, mask.height).data]"
    )
    return np.array(pixels).reshape(64, 64, 4)[1::4, 1::4, 3] > 70


def test_clicks_in_the_page_give_the_masks_of_eager(page, serve, exported, eager, tmp_path):
    """Of the size of the input, since a browser resizes in another way."""
    image = np.random.default_rng(0).integers(0, 100, (64, 64, 3), dtype=np.uint8)
    image[10:30, 20:50] += 150
    Image.fromarray(image).save(tmp_path / "image.png")
    page.goto(serve(exported))
    says(page, "Choose an image.")
    page.locator("#file").set_input_files(tmp_path / "image.png")
    says(page, "Click on an object.")
    encoded = eager.image(image)

    on_object = click(page, 30, 20)
    expected = encoded.predict(points=[on_object])
    says(page, status_of(expected))
    assert (drawn(page) == (expected.logits[0] > 0)).mean() > 0.97  # all but the point, which is drawn on the mask

    beside = click(page, 5, 50, shift=True)
    says(page, status_of(encoded.predict(points=[on_object, (*beside, 0)])))
    page.locator("#clear").click()
    says(page, "Click on an object.")
    assert not drawn(page).any()


def test_the_page_says_how_to_export_a_missing_model(page, serve):
    page.goto(serve())
    says(page, "There is no model in model/: run masklet export nano --out model")
