"""The examples run as they are."""

import runpy
from pathlib import Path

from PIL import Image

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_the_demo_prints_its_table_and_writes_its_pictures(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(EXAMPLES / "demo.py"), run_name="__main__")
    printed = capsys.readouterr().out
    for name in ("click", "box", "click-and-background"):
        assert name in printed
        with Image.open(tmp_path / "demo" / f"{name}.png") as picture:
            assert picture.size == (900, 600)
