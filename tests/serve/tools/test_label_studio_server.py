"""The real Label Studio: a project whose back end is masklet answers clicks and tracks boxes.

``MASKLET_TEST_LABEL_STUDIO`` names the command ``label-studio`` of an environment of its own.
"""

import json
import os
import shutil
import socket
import subprocess
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from serve.conftest import DOG, TRUCK
from serve.server_process import PATIENCE, Server

import masklet

LABEL_STUDIO = os.environ.get("MASKLET_TEST_LABEL_STUDIO") or shutil.which("label-studio")
TOKEN = "0123456789abcdef0123456789abcdef01234567"
IMAGES = """<View><Image name="image" value="$image"/>
<BrushLabels name="mask" toName="image" smart="false"><Label value="Car"/></BrushLabels>
<KeyPointLabels name="click" toName="image" smart="true"><Label value="Car"/></KeyPointLabels></View>"""
VIDEOS = """<View><Labels name="label" toName="video"><Label value="Dog"/></Labels>
<Video name="video" value="$video"/><VideoRectangle name="box" toName="video" smart="true"/></View>"""
DECODE = """import json, sys
from label_studio_sdk.converter.brush import decode_rle
sys.stdout.buffer.write(decode_rle(json.load(sys.stdin)).astype("uint8").tobytes())"""
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(LABEL_STUDIO is None, reason="set MASKLET_TEST_LABEL_STUDIO to the command label-studio"),
]


class LabelStudio:
    """A Label Studio in a process of its own."""

    def __init__(self, data, port):
        self.url = f"http://127.0.0.1:{port}"
        options = {"username": "ann@example.org", "password": "secret-secret", "user-token": TOKEN, "data-dir": data}
        command = [LABEL_STUDIO, "start", "--no-browser", "--port", str(port), "--internal-host", "127.0.0.1"]
        command += [str(part) for name, value in options.items() for part in (f"--{name}", value)]
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        environment |= {"ML_BLOCK_LOCAL_IP": "false", "LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN": "true"}
        environment |= {"COLLECT_ANALYTICS": "false", "LABEL_STUDIO_BASE_DATA_DIR": str(data)}
        with (data / "log").open("w") as log:
            self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        until = time.monotonic() + PATIENCE
        while True:
            try:
                self.ask("GET", "/api/projects/")
            except OSError:
                assert self.process.poll() is None, (data / "log").read_text()[-2000:]
                assert time.monotonic() < until, "Label Studio did not start"
                time.sleep(1)
            else:
                return

    def ask(self, method, path, body=None, content_type="application/json"):
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        headers = {"Content-Type": content_type, "Authorization": f"Token {TOKEN}"}
        asked = urllib.request.Request(self.url + path, data, headers, method=method)
        with urllib.request.urlopen(asked, timeout=PATIENCE) as reply:
            return json.loads(reply.read())

    def project(self, config, file, back_end):
        """A project with one task and the back end: their numbers."""
        project = self.ask("POST", "/api/projects/", {"title": file.name, "label_config": config})["id"]
        start = f'--b\r\nContent-Disposition: form-data; name="file"; filename="{file.name}"\r\n\r\n'.encode()
        body = start + file.read_bytes() + b"\r\n--b--\r\n"
        self.ask("POST", f"/api/projects/{project}/import", body, "multipart/form-data; boundary=b")
        (task,) = self.ask("GET", f"/api/tasks/?project={project}")["tasks"]
        made = self.ask(
            "POST",
            "/api/ml/",
            {"project": project, "url": back_end, "title": "masklet", "is_interactive": True, "auth_method": "NONE"},
        )
        return task["id"], made["id"]

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(PATIENCE)


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    studio = LabelStudio(tmp_path_factory.mktemp("label-studio"), port)
    server = Server(tmp_path_factory.mktemp("data"), "--labelstudio-url", studio.url, "--labelstudio-token", TOKEN)
    yield studio, f"{server.address}/labelstudio"
    server.stop()
    studio.stop()


def test_a_project_with_our_back_end_answers_a_click(servers):
    studio, back_end = servers
    task, number = studio.project(IMAGES, TRUCK, back_end)
    click = {
        "type": "keypointlabels",
        "from_name": "click",
        "to_name": "image",
        "original_width": 900,
        "original_height": 600,
        "is_positive": True,
        "value": {"x": 100 * 410 / 900, "y": 100 * 315 / 600, "width": 0.5, "keypointlabels": ["Car"]},
    }
    reply = studio.ask(
        "POST", f"/api/ml/{number}/interactive-annotating", {"task": task, "context": {"result": [click]}}
    )
    assert "errors" not in reply or not reply["errors"], reply
    (region,) = reply["data"]["result"]
    assert (region["type"], region["from_name"]) == ("brushlabels", "mask")
    command = [Path(LABEL_STUDIO).with_name("python"), "-c", DECODE]  # Label Studio's own code
    decoded = subprocess.run(
        command, input=json.dumps(region["value"]["rle"]).encode(), stdout=subprocess.PIPE, check=True, timeout=PATIENCE
    ).stdout
    inside = np.frombuffer(decoded, np.uint8).reshape(600, 900, 4)[..., 3] > 0
    expected = masklet.load().image(TRUCK).predict(points=[(410, 315)]).masks[0]
    np.testing.assert_array_equal(inside, expected)


def test_a_project_with_our_back_end_tracks_a_box(servers):
    studio, back_end = servers
    task, number = studio.project(VIDEOS, DOG, back_end)
    box = {
        "id": "dog",
        "type": "videorectangle",
        "from_name": "box",
        "to_name": "video",
        "value": {
            "framesCount": 30,
            "duration": 1.0,
            "sequence": [{"frame": 1, "enabled": True, "rotation": 0, "x": 68, "y": 40, "width": 30, "height": 35}],
            "labels": ["Dog"],
        },
    }
    reply = studio.ask("POST", f"/api/ml/{number}/interactive-annotating", {"task": task, "context": {"result": [box]}})
    (region,) = reply["data"]["result"]
    frames = [one["frame"] for one in region["value"]["sequence"]]
    assert region["id"] == "dog"
    assert frames == sorted(frames)
    assert frames[-1] > 10
