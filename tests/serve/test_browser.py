"""The page, driven in a real Chromium: Debian's package, which ``.ci/run`` installs."""

import base64
import io
import json
import re
import shutil
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from serve.conftest import DOG, TRUCK
from serve.server_process import Server

from masklet.masks import decode_rle

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("browser"),
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium"),
]
PATIENCE = 120_000
"""Milliseconds. It is no limit to measure against: a busy machine may take long."""


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield made
        made.close()


@pytest.fixture
def server(tmp_path):
    started = Server(tmp_path / "data")
    yield started
    started.stop()


@pytest.fixture
def open_page(browser):
    contexts = []

    def make(address, **options):
        context = browser.new_context(viewport={"width": 1280, "height": 800}, accept_downloads=True, **options)
        context.set_default_timeout(PATIENCE)
        sync_api.expect.set_options(timeout=PATIENCE)
        page = context.new_page()
        page.on("pageerror", lambda error: pytest.fail(f"the page has an error: {error}"))
        contexts.append(context)
        page.goto(address)
        return page

    yield make
    for context in contexts:
        context.close()


def says(page, text):
    sync_api.expect(page.locator("#status")).to_contain_text(text)


def eventually(page, is_true):
    """Waits until the server has what the page sent."""
    for _ in range(PATIENCE // 100):
        if is_true():
            return
        page.wait_for_timeout(100)
    pytest.fail("the server did not get it")


def upload(page, path):
    sync_api.expect(page.locator("#upload")).to_be_enabled()
    page.locator("#upload").set_input_files(path)
    says(page, f"{path.name} was added.")


def at(page, x, y, size):
    """Where a point of the image is on the screen, when it is fitted."""
    box = page.locator("#canvas").bounding_box()
    scale = min((box["width"] - 24) / size[0], (box["height"] - 24) / size[1])
    left, top = (box["width"] - size[0] * scale) / 2, (box["height"] - size[1] * scale) / 2
    return box["x"] + left + x * scale, box["y"] + top + y * scale


def painted(page, size):
    """(height, width, 3) int: what the canvas shows, at the size of the image."""
    (left, top), (right, bottom) = at(page, 0, 0, size), at(page, *size, size)
    box = page.locator("#canvas").bounding_box()
    encoded = page.evaluate("document.getElementById('canvas').toDataURL()").partition(",")[2]
    with Image.open(io.BytesIO(base64.b64decode(encoded))) as shown:
        part = shown.convert("RGB").crop(
            tuple(round(v - box["xy"[k % 2]]) for k, v in enumerate((left, top, right, bottom)))
        )
        return np.array(part.resize(size)).astype(int)


def exported(page, format):
    page.locator("#format").select_option(format)
    with page.expect_download() as download:
        page.locator("#export").click()
    return Path(download.value.path())


def test_an_image_is_clicked_corrected_reloaded_and_exported(open_page, server):
    page, size = open_page(server.address), (900, 600)
    says(page, "Upload an image")
    upload(page, TRUCK)
    page.get_by_label("Preview").uncheck()
    bare = painted(page, size)
    page.mouse.click(*at(page, 300, 330, size))
    says(page, "predicted IoU")
    media = server.only_media()
    inside = decode_rle([server.get(f"/v1/media/{media}/masks")[0]["segmentation"]])[0]
    page.wait_for_timeout(200)  # drawn with the next animation frame
    changed = (np.abs(painted(page, size) - bare) > 8).any(-1)
    changed[300:360, 270:330] = inside[300:360, 270:330]  # the point is drawn there
    assert (changed & inside).sum() / (changed | inside).sum() > 0.9  # the canvas is smaller than the image
    page.keyboard.down("Alt")
    page.mouse.click(*at(page, 100, 560, size))
    page.keyboard.up("Alt")
    eventually(page, lambda: len(server.get(f"/v1/media/{media}/masks")[0]["prompts"]["points"]) == 2)
    (mask,) = server.get(f"/v1/media/{media}/masks")
    assert [point[2] for point in mask["prompts"]["points"]] == [1, 0]
    assert mask["prompts"]["points"][0][:2] == pytest.approx([300, 330], abs=2)
    page.get_by_label("Name of object 1").fill("truck")
    page.get_by_label("Name of object 1").press("Enter")
    says(page, "Saved.")
    assert json.loads(exported(page, "coco").read_text()) == server.get(f"/v1/media/{media}/export?format=coco")
    server.restart()
    page.reload()
    says(page, "Click on an object.")
    sync_api.expect(page.get_by_label("Name of object 1")).to_have_value("truck")
    assert server.get(f"/v1/media/{media}/masks") == [mask]
    page.locator("#undo").click()
    says(page, "Undone")
    page.keyboard.press("Control+Shift+Z")
    says(page, "Done again")
    assert server.get(f"/v1/media/{media}/masks") == [mask]


def test_a_video_is_tracked_cancelled_continued_corrected_and_exported(open_page, server):
    page, size = open_page(server.address), (480, 270)
    upload(page, DOG)
    media = server.only_media()
    size = (lambda one: (one["width"], one["height"]))(server.get(f"/v1/media/{media}"))
    x, y = at(page, size[0] * 0.7, size[1] * 0.4, size)
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(*at(page, size[0] * 0.98, size[1] * 0.75, size), steps=4)
    page.mouse.up()
    says(page, "predicted IoU")
    page.locator("#track-forward").click()
    sync_api.expect(page.locator("#progress-text")).to_contain_text(re.compile(r"^([2-9]|1\d) of 30 frames"))
    page.keyboard.press("Escape")
    says(page, "Tracking was cancelled")
    page.locator("#track-resume").click()
    says(page, "Tracking is finished")
    (lane,) = server.get(f"/v1/media/{media}/lanes")
    assert lane["tracked"] == [[1, 29]]
    for _ in range(3):
        page.keyboard.press(",")
    sync_api.expect(page.locator("#frame-text")).to_contain_text("Frame 26")
    page.mouse.click(*at(page, size[0] * 0.5, size[1] * 0.5, size))
    eventually(page, lambda: server.get(f"/v1/media/{media}/lanes")[0]["prompted"] == [0, 26])
    assert exported(page, "jsonl").read_bytes() == server.content(f"/v1/media/{media}/export?format=jsonl")


def test_everything_mode_keeps_the_masks_above_the_slider(open_page, server):
    page = open_page(server.address)
    upload(page, TRUCK)
    page.get_by_label("Points per side").fill("10")
    page.locator("#find").click()
    says(page, "Found")
    slider = page.locator("#threshold")
    slider.evaluate("input => { input.value = 0.6; input.dispatchEvent(new Event('input')); }")
    shown, all_masks = map(int, page.locator("#found-text").inner_text().removesuffix(" masks").split(" of "))
    assert 0 < shown < all_masks
    page.locator("#keep").click()
    says(page, f"{shown} objects were added.")
    assert len(server.get(f"/v1/media/{server.only_media()}/objects")) == shown
    assert page.locator("#objects li").count() == shown


def drag(page, start, end, size):
    page.mouse.move(*at(page, *start, size))
    page.mouse.down()
    page.mouse.move(*at(page, *end, size), steps=4)
    page.mouse.up()


def test_the_brush_paints_and_erases_and_clear_removes_the_mask(open_page, server):
    page, size = open_page(server.address), (900, 600)
    upload(page, TRUCK)
    page.keyboard.press("p")
    drag(page, (100, 330), (250, 350), size)
    says(page, "predicted IoU")
    masks = f"/v1/media/{server.only_media()}/masks"
    rough = decode_rle([server.get(masks)[0]["segmentation"]])[0]
    page.keyboard.down("Alt")
    drag(page, (150, 330), (180, 360), size)
    page.keyboard.up("Alt")
    says(page, "as drawn")
    erased = decode_rle([server.get(masks)[0]["segmentation"]])[0]
    assert not (erased & ~rough).any()
    assert not erased[335:355, 155:175].diagonal().any()
    drag(page, (400, 100), (400, 100), size)
    eventually(page, lambda: decode_rle([server.get(masks)[0]["segmentation"]])[0][100, 400])
    painted = decode_rle([server.get(masks)[0]["segmentation"]])[0]
    assert (painted & rough == erased).all()
    page.keyboard.press("c")
    says(page, "were removed here")
    assert server.get(masks) == []


def test_a_search_for_everything_is_cancelled_and_masks_are_left_out(open_page, server):
    page, size = open_page(server.address), (900, 600)
    upload(page, TRUCK)
    page.get_by_label("Points per side").fill("64")
    page.locator("#find").click()
    page.locator("#find-cancel").click()
    says(page, "Cancelled.")
    page.get_by_label("Points per side").fill("6")
    page.locator("#find").click()
    says(page, "Found")
    page.locator("#threshold").evaluate("input => { input.value = 0; input.dispatchEvent(new Event('input')); }")
    before = int(page.locator("#found-text").inner_text().partition(" ")[0])
    page.mouse.click(*at(page, 800, 60, size))  # the wall
    says(page, "The mask is left out.")
    assert int(page.locator("#found-text").inner_text().partition(" ")[0]) == before - 1
    drag(page, (100, 330), (250, 350), size)
    says(page, "Keep or discard")
    assert server.get(f"/v1/media/{server.only_media()}/objects") == []


@pytest.mark.parametrize(("width", "height"), [(1280, 800), (1024, 768), (768, 1024)])
def test_nothing_is_cut_off(open_page, server, width, height):
    page = open_page(server.address)
    page.set_viewport_size({"width": width, "height": height})
    upload(page, DOG)
    page.mouse.click(*at(page, 300, 130, (480, 270)))
    says(page, "predicted IoU")
    for part in page.locator("button:visible, select:visible, input:visible:not(.hidden-input)").all():
        box = part.bounding_box()
        assert box["x"] >= 0, part
        assert box["x"] + box["width"] <= width, part
        assert box["y"] + box["height"] <= height, part


def test_the_keyboard_alone_makes_and_undoes_a_mask(open_page, server):
    page = open_page(server.address)
    upload(page, TRUCK)
    page.locator("#zoom-fit").focus()
    for _ in range(3):  # past the zoom and the preview
        page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "canvas"
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    says(page, "predicted IoU")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("x")
    for key in ["Shift+ArrowRight"] * 2 + ["Shift+ArrowDown"] * 2:
        page.keyboard.press(key)
    page.keyboard.press("x")
    media = server.only_media()
    eventually(page, lambda: server.get(f"/v1/media/{media}/masks")[0]["prompts"]["box"])
    says(page, "predicted IoU")
    page.keyboard.press("Control+z")
    says(page, "Undone")
    (mask,) = server.get(f"/v1/media/{media}/masks")
    assert mask["prompts"]["box"] is None


def test_two_users_see_only_their_own(open_page, tmp_path):
    server = Server(tmp_path / "data", "--token", "ann:ann-secret", "--token", "bob:bob-secret")
    try:
        pages = [open_page(server.address) for _ in range(2)]
        for page, name in zip(pages, ("ann", "bob"), strict=True):
            page.locator("#token").fill(f"{name}-secret")
            page.get_by_role("button", name="Continue").first.click()
            says(page, "Upload an image")
        upload(pages[0], TRUCK)
        upload(pages[1], DOG)
        for page, name in zip(pages, ("truck.jpg", "dog.mp4"), strict=True):
            page.reload()
            sync_api.expect(page.locator("#media .open")).to_have_count(1)
            sync_api.expect(page.locator("#media .open")).to_contain_text(name)
    finally:
        server.stop()


@pytest.fixture
def site():
    """The address of another web site."""
    handler = partial(SimpleHTTPRequestHandler, directory=Path(__file__).parent / "tools")
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as made:
        threading.Thread(target=made.serve_forever, daemon=True).start()
        yield f"http://localhost:{made.server_port}"
        made.shutdown()


ASK = """async (address) => {
    try {
        const headers = {'Content-Type': 'application/json', 'Authorization': 'Bearer none'};
        const reply = await fetch(address, {method: 'POST', headers, body: '{"name": "theirs"}'});
        return (await reply.json()).name;
    } catch (error) { return 'refused'; }
}"""


def test_a_page_of_another_site_calls_the_api_only_if_it_is_allowed(open_page, site, tmp_path):
    server = Server(tmp_path / "data", "--cors", site)
    try:
        for origin, answer in ((site.replace("localhost", "127.0.0.1"), "refused"), (site, "theirs")):
            page = open_page(origin)
            assert page.evaluate(ASK, f"{server.address}/v1/projects") == answer
            assert len(server.get("/v1/projects")) == (answer == "theirs")
    finally:
        server.stop()
