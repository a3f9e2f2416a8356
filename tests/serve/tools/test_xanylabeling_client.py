"""X-AnyLabeling's own remote client clicks on an image and tracks through a video.

``MASKLET_TEST_XANYLABELING`` names the Python of an environment of its own (pip install 'x-anylabeling-cvhub[cpu]').
"""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from serve.conftest import DOG
from serve.server_process import PATIENCE, Server

import masklet
from masklet.video.frames import open_video

PYTHON = os.environ.get("MASKLET_TEST_XANYLABELING")
CLICK = (390, 170)


@pytest.mark.slow
@pytest.mark.skipif(PYTHON is None, reason="set MASKLET_TEST_XANYLABELING to a Python with x-anylabeling-cvhub")
def test_its_own_client_clicks_and_tracks(tmp_path):
    video, frames, home = open_video(DOG), [tmp_path / f"{index}.png" for index in range(5)], tmp_path / "home"
    home.mkdir()
    for index, path in enumerate(frames):
        Image.fromarray(video[index].image).save(path)
    server = Server(tmp_path / "data")
    try:
        command = [PYTHON, Path(__file__).with_name("xanylabeling_client.py"), home]
        command += [f"{server.address}/xanylabeling", "{},{}".format(*CLICK), *frames]
        output = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=True)
    finally:
        server.stop()
    answer = json.loads(next(line for line in output.stdout.splitlines() if line.startswith("ANSWER"))[7:])
    assert answer["models"] == ["masklet", "masklet-everything", "masklet-video"]
    assert answer["mode"] == "video"
    expected = masklet.load().image(frames[0]).predict(points=[CLICK])
    x, y, width, height = expected.to_coco()[0]["bbox"]
    points = np.concatenate(answer["masklet"])
    np.testing.assert_allclose([*points.min(0), *points.max(0)], [x, y, x + width, y + height], atol=2)
    assert answer["masklet-video"]
    session = masklet.load().video(frames)
    session.prompt(0, 1, points=[CLICK])
    for result in session.track():
        shapes = json.loads(frames[result.index].with_suffix(".json").read_text())["shapes"]
        points = np.concatenate([shape["points"] for shape in shapes])
        x, y, width, height = result.masks.to_coco()[0]["bbox"]
        np.testing.assert_allclose([*points.min(0), *points.max(0)], [x, y, x + width, y + height], atol=2)
