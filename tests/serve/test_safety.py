import io
import re
import struct
import threading
import zlib

import pytest
from PIL import Image
from serve.conftest import TRUCK, add_object, upload

from masklet.errors import ConfigError
from masklet.serve.library import display_name
from masklet.serve.problems import public_text
from masklet.serve.settings import LOCAL_USER, Limits, Settings, users_of

ANN, BOB = {"Authorization": "Bearer ann-secret"}, {"Authorization": "Bearer bob-secret"}


@pytest.fixture
def shared(make_client):
    return make_client(host="0.0.0.0", tokens=users_of(["ann:ann-secret", "bob:bob-secret"]))


def endpoints(app):
    """Every operation of the API, with the parts of its path filled in."""
    for path, operations in app.openapi()["paths"].items():
        for method in operations:
            yield method.upper(), path


RLE = {"size": [1, 1], "counts": "01"}
BODIES = {
    ("PATCH", "/v1/projects/{project_id}"): {"name": "mine"},
    ("POST", "/v1/projects/{project_id}/folder-media"): {"path": "truck.jpg"},
    ("POST", "/v1/media/{media_id}/objects/{number}/prompts"): {"points": [[5, 5]]},
    ("POST", "/v1/media/{media_id}/preview"): {"points": [[5, 5]]},
    ("POST", "/v1/media/{media_id}/objects-from-masks"): {
        "masks": [{"segmentation": {"size": [1, 1], "counts": "01"}}]
    },
}


def test_no_endpoint_works_without_a_token(shared):
    for method, path in endpoints(shared.app):
        if not path.endswith(("/health", "/labelstudio/", "/osam/")):  # which say only that the server is there
            filled = re.sub(r"\{\w+(:\w+)?\}", "1", path)
            reply = shared.request(method, filled)
            assert reply.status_code == 401, (method, path)
            assert "Bearer TOKEN" in reply.json()["detail"]


def test_no_endpoint_shows_or_changes_what_is_another_users(shared):
    project = shared.post("/v1/projects", json={"name": "ann's"}, headers=ANN).json()["id"]
    media = upload(shared, project, TRUCK, headers=ANN)["id"]
    number = shared.post(f"/v1/media/{media}/objects", json={}, headers=ANN).json()["number"]
    tried = 0
    for method, path in endpoints(shared.app):
        if not path.startswith("/v1/") or "{" not in path:
            continue
        filled = path.format(project_id=project, media_id=media, number=number, frame=0, job_id="a")
        body = {"files": {"file": b"x"}} if path.endswith("/media") else {"json": BODIES.get((method, path), {})}
        if method == "GET":
            body = {"params": {"format": "coco"}} if path.endswith("export") else {}
        reply = shared.request(method, filled, headers=BOB, **({} if method == "DELETE" else body))
        assert reply.status_code == 404, (method, path, reply.text)
        assert "or it belongs to another user" in reply.json()["detail"]
        tried += 1
    assert tried > 20
    assert shared.get("/v1/projects", headers=BOB).json() == []
    assert [one["number"] for one in shared.get(f"/v1/media/{media}/objects", headers=ANN).json()] == [1]


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.7", "::", "example.org"])
def test_an_address_that_others_reach_needs_a_token(host, tmp_path):
    with pytest.raises(ConfigError, match="can be reached from other machines: give a --token"):
        Settings(data=tmp_path, host=host)
    Settings(data=tmp_path, host=host, tokens={"long-enough": "ann"})


def test_other_web_sites_are_refused(client):
    for headers in (
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Host": "evil.example"},
    ):
        assert client.post("/v1/projects", json={"name": "x"}, headers=headers).status_code == 403, headers
    assert client.get("/v1/projects", headers={"Host": "evil.example:8000"}).status_code == 403
    own = client.post("/v1/projects", json={"name": "x"}, headers={"Origin": "http://127.0.0.1"})
    assert own.status_code == 201
    assert "access-control-allow-origin" not in own.headers


def test_only_the_sites_that_are_allowed_may_call_the_api(make_client):
    site, other = {"Origin": "https://example.org"}, {"Origin": "https://example.org:8443"}
    cross = {"Sec-Fetch-Site": "cross-site"}
    client = make_client(cors_origins=("https://example.org",))
    asks = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}
    preflight = client.options("/v1/projects", headers={**site, **asks, **cross})
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == "https://example.org"
    assert "authorization" in preflight.headers["access-control-allow-headers"]
    made = client.post("/v1/projects", json={"name": "x"}, headers={**site, **cross})
    assert (made.status_code, made.headers["access-control-allow-origin"]) == (201, "https://example.org")
    assert "access-control-allow-credentials" not in made.headers
    for headers in (other, {"Origin": "http://example.org"}, {"Origin": "null"}):
        assert client.options("/v1/projects", headers={**headers, **asks}).status_code == 400
        refused = client.post("/v1/projects", json={"name": "x"}, headers={**headers, **cross})
        assert refused.status_code == 403
        assert "access-control-allow-origin" not in refused.headers
    assert len(client.get("/v1/projects").json()) == 1


@pytest.mark.parametrize("origin", ["*", "https://example.org/", "example.org", "HTTPS://Example.org", "null", ""])
def test_a_site_that_is_no_origin_is_refused_at_the_start(origin, tmp_path):
    with pytest.raises(ConfigError, match="is not an origin: expected https://example.org"):
        Settings(data=tmp_path, cors_origins=(origin,))
    Settings(data=tmp_path, cors_origins=("http://127.0.0.1:3000", "http://[::1]:3000", "https://example.org"))


def test_answers_forbid_inline_scripts_and_frames(client):
    headers = client.get("/").headers
    policy = headers["content-security-policy"]
    assert "script-src 'self';" in policy
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert headers["x-content-type-options"] == "nosniff"
    page = client.get("/").text
    assert "<script>" not in page
    assert " style=" not in page
    assert " onclick" not in page


def bomb():
    """A PNG of a few bytes that says it has 60,000 by 60,000 pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    data = zlib.compress(b"\0" * 1000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("content", "status", "message"),
    [
        (b"", 422, "neither an image nor a video"),
        (b"<svg onload=alert(1)>", 422, "neither an image nor a video"),
        (b"\x80\x04\x95pickle", 422, "neither an image nor a video"),
        (TRUCK.read_bytes()[:5000], 422, "cannot be read"),
        (bomb(), 413, "too many"),
    ],
)
def test_uploads_that_are_no_images_leave_nothing(client, project, content, status, message, tmp_path):
    reply = client.post(f"/v1/projects/{project}/media", files={"file": ("a.jpg", content)})
    assert (reply.status_code, message in reply.json()["detail"]) == (status, True), reply.text
    assert list((tmp_path / "data" / "uploads").iterdir()) == []


def test_uploads_are_limited_in_size_number_and_pixels(make_client):
    client = make_client(limits=Limits(upload_bytes=100_000, media=1, pixels=50_000, body_bytes=1000))
    project = client.post("/v1/projects", json={"name": "x"}).json()["id"]

    def send(image):
        file = io.BytesIO()
        image.save(file, "PNG")
        return client.post(f"/v1/projects/{project}/media", files={"file": ("a.png", file.getvalue())})

    large = client.post(f"/v1/projects/{project}/media", files={"file": b"x" * 2_000_000})
    assert large.status_code == 413
    assert "too large" in large.json()["detail"]
    assert send(Image.new("L", (300, 300))).json()["detail"] == "300×300 pixels are too many: expected at most 50,000"
    assert send(Image.new("L", (30, 30))).status_code == 201
    assert "you have 1 images and videos" in send(Image.new("L", (30, 30))).json()["detail"]
    assert client.post("/v1/projects", json={"name": "x" * 5000}).status_code == 413


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (Limits(frames=5), "the video has 6 frames in 0.1 s: expected at most 5 frames and 14,400 s"),
        (Limits(duration=0.05), "the video has 6 frames in 0.1 s: expected at most 100,000 frames and 0.05 s"),
        (Limits(pixels=1000), "160×96 pixels are too many: expected at most 1,000"),
        (Limits(upload_bytes=500), "the file is too large: expected at most 500 bytes"),
    ],
)
def test_videos_are_limited(make_client, short_dog, limits, message, tmp_path):
    client = make_client(limits=limits)
    project = client.post("/v1/projects", json={"name": "x"}).json()["id"]
    with short_dog.open("rb") as file:
        reply = client.post(f"/v1/projects/{project}/media", files={"file": file})
    assert (reply.status_code, reply.json()["detail"]) == (413, message)
    assert list((tmp_path / "data" / "uploads").iterdir()) == []


def test_requests_without_state_and_objects_are_limited(make_client):
    client = make_client(limits=Limits(objects=1))
    project = client.post("/v1/projects", json={"name": "x"}).json()["id"]
    media = upload(client, project, TRUCK)["id"]
    assert add_object(client, media) == 1
    refused = client.post(f"/v1/media/{media}/objects", json={})
    assert (refused.status_code, refused.json()["detail"]) == (
        413,
        "truck.jpg has 1 objects already: expected at most 1",
    )
    small = make_client(limits=Limits(pixels=1000))
    for path, data in (("predict", {"prompts": '{"objects": [{"points": [[5, 5]]}]}'}), ("everything", {})):
        with TRUCK.open("rb") as file:
            reply = small.post(f"/v1/{path}", files={"image": file}, data=data)
        assert (reply.status_code, "900×600 pixels are too many" in reply.text) == (413, True)


def test_a_busy_server_says_when_to_try_again(make_client):
    client = make_client(limits=Limits(clicks_waiting=2, clicks_waiting_per_user=1))
    project = client.post("/v1/projects", json={"name": "x"}).json()["id"]
    media = upload(client, project, TRUCK)["id"]
    scheduler, begun, release = client.app.state.runtime.scheduler, threading.Event(), threading.Event()
    scheduler.submit("ann", lambda: (begun.set(), release.wait(60)))
    assert begun.wait(60)
    try:
        waiting = [scheduler.submit(LOCAL_USER, int)]
        mine = client.post(f"/v1/media/{media}/objects", json={})
        assert (mine.status_code, mine.headers["retry-after"]) == (503, "1")
        assert mine.json()["detail"] == "too many of your requests are waiting. Try again in a moment"
        waiting.append(scheduler.submit("bob", int))
        others = client.post(f"/v1/media/{media}/objects", json={})
        assert (others.status_code, others.headers["retry-after"]) == (503, "2")
        assert others.json()["detail"].startswith("the server is busy: too many requests are waiting")
    finally:
        release.set()
    assert [one.result(60) for one in waiting] == [0, 0]
    assert add_object(client, media) == 1


@pytest.mark.slow
def test_only_so_many_videos_are_tracked_at_once(make_client, short_dog):
    client = make_client(limits=Limits(tracking_jobs_per_user=1))
    project = client.post("/v1/projects", json={"name": "x"}).json()["id"]
    videos = [upload(client, project, short_dog)["id"] for _ in range(2)]
    for video in videos:
        body = {"frame": 0, "points": [[80, 50]]}
        assert client.post(f"/v1/media/{video}/objects/{add_object(client, video)}/prompts", json=body).is_success
    release = threading.Event()
    holder = client.app.state.runtime.scheduler.start(LOCAL_USER, (release.wait(0.01) for _ in range(10**9)), print)
    try:
        refused = client.post(f"/v1/media/{videos[0]}/tracking", json={})
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "10")
        assert "too many of your videos are being tracked" in refused.json()["detail"]
        assert client.get(f"/v1/media/{videos[0]}").json()["job"] is None  # nothing is left of it
    finally:
        holder.cancel()
    assert holder.ended.wait(60)
    assert client.post(f"/v1/media/{videos[0]}/tracking", json={}).status_code == 202


def test_names_are_never_paths(client, project, tmp_path):
    media = upload(client, project, TRUCK, name="../../evil<b>.jpg")
    assert media["name"] == "evil<b>.jpg"
    assert [path.name for path in (tmp_path / "data" / "uploads").iterdir()] == [media["id"]]
    assert display_name("a/..\\b\n\u202e.png") == "b.png"
    assert display_name("/") == "untitled"
    number = add_object(client, media["id"])
    client.post(f"/v1/media/{media['id']}/objects/{number}/prompts", json={"points": [[410, 315]]})
    reply = client.get(f"/v1/media/{media['id']}/export?format=coco")
    assert reply.json()["images"][0]["file_name"] == "evil<b>.jpg"


def test_the_folder_cannot_be_escaped(make_client, tmp_path):
    folder, secret = tmp_path / "folder", tmp_path / "secret.jpg"
    (folder / "sub").mkdir(parents=True)
    secret.write_bytes(TRUCK.read_bytes())
    (folder / "sub" / "truck.jpg").write_bytes(TRUCK.read_bytes())
    (folder / ".hidden.jpg").write_bytes(TRUCK.read_bytes())
    (folder / "link.jpg").symlink_to(secret)
    (folder / "up").symlink_to(tmp_path)
    client = make_client(folder=folder)
    assert client.get("/v1/folder").json() == ["sub/truck.jpg"]
    project = client.post("/v1/projects", json={"name": "x"}).json()["id"]
    for path in (
        "../secret.jpg",
        "sub/../../secret.jpg",
        str(secret),
        "link.jpg",
        "up/secret.jpg",
        "..\\secret.jpg",
        "%2e%2e/secret.jpg",
        ".hidden.jpg",
        "sub",
        "a\0b",
        "/",
    ):
        reply = client.post(f"/v1/projects/{project}/folder-media", json={"path": path})
        assert reply.status_code == 404, path
    for path in ("/static/../app.py", "/static/%2e%2e/app.py", "/static/..%2fapp.py"):
        assert client.get(path).status_code == 404
    before = sorted(path.name for path in folder.rglob("*"))
    media = client.post(f"/v1/projects/{project}/folder-media", json={"path": "sub/truck.jpg"}).json()
    assert client.delete(f"/v1/media/{media['id']}").status_code == 204
    assert sorted(path.name for path in folder.rglob("*")) == before


def test_messages_hold_no_paths():
    text = public_text("there is no video at /home/ann/x/clip.mp4: expected a video file; looked in /home/ann")
    assert "/home" not in text
    assert "clip.mp4" in text
