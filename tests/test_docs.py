"""Every snippet and command of the README and of docs/ is run, in a folder with the demo's photo."""

import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import masklet
from masklet.cli import app
from masklet.video.frames import FilmWriter

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


@pytest.fixture
def folder(tmp_path, monkeypatch):
    shutil.copy(ROOT / "examples/photos/truck.jpg", tmp_path)
    with Image.open(tmp_path / "truck.jpg") as truck:
        picture = np.array(truck.resize((180, 120)))
        truck.resize((450, 300)).save(tmp_path / "field.tif")
    with FilmWriter(tmp_path / "cups.mp4") as film:
        for shift in range(6):
            film.write(np.roll(picture, 2 * shift, axis=1))
    inside = np.zeros((120, 180), np.uint8)
    inside[30:95, 10:172] = 1
    pairs = [("mine/images/truck.png", "mine/masks/truck.png")]
    pairs += [(f"films/JPEGImages/drive/{i}.png", f"films/Annotations/drive/{i}.png") for i in range(3)]
    for pair in pairs:
        for place, pixels in zip(pair, (picture, inside), strict=True):
            (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / place)
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


def test_a_link_of_the_documentation_leads_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert target.startswith("http") or (page.parent / target).exists(), f"{page.name}: {target}"
