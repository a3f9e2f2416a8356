"""Every snippet and command of the README and of docs/ is run, in a folder with the demo's image."""

import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

import masklet
from masklet.cli import app
from masklet.training.config import config_from
from masklet.video.writer import VideoWriter

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(language):
    found = [
        pytest.param(block, id=f"{page.name}:{number}")
        for page in PAGES
        for number, block in enumerate(re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL), start=1)
    ]
    assert found, f"no {language} block in the documentation"
    return found


def named_settings():
    """The settings that begin with the name of a file, made small."""
    found = {}
    for page in PAGES:
        for name, settings in re.findall(r"```yaml\n# (\S+\.yaml)\n(.*?)```", page.read_text(), re.DOTALL):
            small = re.sub(r"\[\{.*\}\]", lambda stages: shrunk(stages[0]), settings)
            found[name] = small
    return found


def shrunk(stages):
    """One step of each stage, on as little as shows it."""
    few = {"steps": 1, "images": 1, "objects": 1, "rounds": 2, "image_size": 256}
    return json.dumps([stage | few | {"frames": min(stage.get("frames", 1), 2)} for stage in yaml.safe_load(stages)])


@pytest.fixture
def folder(tmp_path, monkeypatch):
    shutil.copy(ROOT / "examples/images/truck.jpg", tmp_path)
    with Image.open(tmp_path / "truck.jpg") as truck:
        image = np.array(truck.resize((180, 120)))
        truck.resize((450, 300)).save(tmp_path / "field.tif")
    with VideoWriter(tmp_path / "cups.mp4") as video:
        for shift in range(6):
            video.write(np.roll(image, 2 * shift, axis=1))
    labels = np.zeros((120, 180), np.uint8)
    labels[30:95, 10:172] = 1
    pairs = [("mine/images/truck.png", "mine/masks/truck.png")]
    pairs += [(f"images/images/{i}.png", f"images/masks/{i}.png") for i in range(3)]
    pairs += [(f"videos/JPEGImages/{f}/{i}.png", f"videos/Annotations/{f}/{i}.png") for f in "ab" for i in range(3)]
    for pair in pairs:
        for place, pixels in zip(pair, (image, labels), strict=True):
            (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / place)
    for name, settings in named_settings().items():
        (tmp_path / name).write_text(settings)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("code", blocks("python"))
def test_a_snippet_runs(folder, code):
    exec(compile(code, "snippet", "exec"), {"sam": masklet.load()})


@pytest.mark.parametrize("block", blocks("console"))
def test_a_command_runs(folder, block):
    for line in block.splitlines():
        program, *arguments = shlex.split(line.removeprefix("$ "))
        assert program == "masklet"
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, result.output


@pytest.mark.parametrize("settings", blocks("yaml"))
def test_settings_are_a_configuration_or_part_of_one(settings):
    least = {"data": {"layout": "folder", "path": "images"}, "stages": [{"steps": 1}]}
    assert config_from(least | yaml.safe_load(settings)).steps > 0


def test_a_link_of_the_documentation_leads_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert target.startswith("http") or (page.parent / target).exists(), f"{page.name}: {target}"
