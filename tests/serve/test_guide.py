"""The snippets of docs/serving.md run against a server."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from serve.conftest import TRUCK
from serve.server_process import Server

from masklet.video.writer import VideoWriter

HOOKS = "{'response': [lambda reply: reply.raise_for_status()]}"
GUIDE = (Path(__file__).parents[2] / "docs" / "serving.md").read_text()


@pytest.mark.slow
def test_the_snippets_of_the_guide_run(tmp_path):
    folder = tmp_path / "work"
    folder.mkdir()
    shutil.copy(TRUCK, folder)
    with Image.open(TRUCK) as truck, VideoWriter(folder / "cups.mp4") as video:
        for shift in range(4):
            video.write(np.roll(np.array(truck.resize((180, 120))), 2 * shift, axis=1))
    server = Server(tmp_path / "data")
    try:
        for language, code in re.findall(r"```(py|sh)\n(.*?)```", GUIDE, re.DOTALL):
            code = code.replace("http://127.0.0.1:8000", server.address)
            if language == "py":
                code = code.replace("timeout=None)", f"timeout=None, event_hooks={HOOKS})")
                ran = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
            elif shutil.which("curl"):
                code = code.replace("curl -s", "curl -sS --fail-with-body")
                ran = subprocess.run(["bash", "-ec", code], cwd=folder, capture_output=True, text=True)
            assert ran.returncode == 0, f"{code}\n{ran.stdout[-500:]}\n{ran.stderr}"
    finally:
        server.stop()
