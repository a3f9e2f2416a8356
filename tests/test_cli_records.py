"""masklet everything on a folder, again: results that are up to date are kept, others are made again."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from masklet import atomic, cli
from masklet.cli import outputs, records
from masklet.cli.outputs import remove_stale
from masklet.model.sam2 import Sam2Model

FEW = ["--points-per-side", "2", "--iou-threshold", "0", "--stability-threshold", "0"]


@pytest.fixture
def images(image, tmp_path, monkeypatch):
    (tmp_path / "images").mkdir()
    for name, pixels in (("a.png", image), ("b.png", image[:, ::-1])):
        Image.fromarray(np.ascontiguousarray(pixels)).save(tmp_path / "images" / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "images"


@pytest.fixture
def run(images, tiny_folder):
    """Runs the command on the folder. Returns which images were processed, and the lines on stderr."""

    def run(*options, few=FEW, model=tiny_folder, command="everything"):
        arguments = [command, str(images), "--model", str(model), *few, *options]
        result = CliRunner().invoke(cli.app, arguments, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        rows = [line.split("\t") for line in result.stdout.splitlines()[1:]]
        return [row[0] for row in rows if row[1] != "finished before"], result.stderr

    return run


BOTH = ["a.png", "b.png"]
AGAIN = "masklet: processing 2 images again: "


def test_results_that_are_up_to_date_are_kept(run):
    assert run("--json", "coco", "--out", "overlays", "--masks", "masks") == (BOTH, "")
    assert run("--json", "coco", "--out", "overlays", "--masks", "masks") == ([], "")
    assert run("--out", "overlays") == ([], "")
    assert run("--json", "coco", "--mask-out", "new") == (BOTH, "")


def test_other_options_make_the_results_again(run, images):
    run("--json", "coco")
    before = Path("coco/a.json").read_bytes()
    few = ["--points-per-side", "3", *FEW[2:]]
    assert run("--json", "coco", few=few) == (BOTH, f"{AGAIN}points_per_side was 2, now 3\n")
    assert Path("coco/a.json").read_bytes() != before
    assert run("--json", "coco", few=few) == ([], "")
    assert run("--json", "coco") == (BOTH, f"{AGAIN}points_per_side was 3, now 2\n")
    assert Path("coco/a.json").read_bytes() == before
    assert run("--json", "coco", "--resolution", "96")[0] == BOTH
    assert run("--json", "coco", "--resolution", "96", "--polygons", "1") == (
        BOTH,
        f"{AGAIN}polygons was not given, now 1.0\n",
    )


def test_another_model_or_version_makes_the_results_again(run, tiny_model, tmp_path, monkeypatch):
    run("--json", "coco")
    other = Sam2Model(tiny_model.config)
    other.load_state_dict(tiny_model.state_dict())
    with_other_weight = next(other.mask_decoder.parameters())
    with_other_weight.data.flatten()[0] += 1
    other.save_pretrained(tmp_path / "other")
    processed, lines = run("--json", "coco", model=tmp_path / "other")
    assert processed == BOTH
    assert lines.startswith(f"{AGAIN}model was ")
    monkeypatch.setattr("masklet.version.__version__", "9.9")
    _, lines = run("--json", "coco", model=tmp_path / "other")
    assert lines.startswith(f"{AGAIN}masklet was ")
    assert lines.endswith(", now 9.9\n")


def test_an_image_that_changed_is_processed_again(run, images):
    run("--json", "coco")
    os.utime(images / "a.png", (1, 1))  # the same content
    assert run("--json", "coco") == ([], "")
    stat = (images / "a.png").stat()
    (images / "a.png").write_bytes((images / "b.png").read_bytes())
    os.utime(images / "a.png", ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert run("--json", "coco") == (["a.png"], "masklet: processing 1 image again: the image has changed\n")
    segmentations = [
        [a["segmentation"] for a in json.loads(Path(f"coco/{name}.json").read_text())["annotations"]] for name in "ab"
    ]
    assert segmentations[0] == segmentations[1]


def test_results_of_unknown_origin_are_made_again(run, images):
    Path("coco").mkdir()
    for name in "ab":
        Path(f"coco/{name}.json").write_text("of another program")
    assert run("--json", "coco") == (BOTH, f"{AGAIN}no record of how the results were made\n")
    assert json.loads(Path("coco/a.json").read_text())["images"][0]["file_name"] == "a.png"


def test_another_command_that_writes_there_removes_the_record(run, images):
    run("--json", "coco")
    point = ["--point", "30,20"]
    run("--json", "coco", few=point, command="image")
    assert run("--json", "coco") == (BOTH, f"{AGAIN}no record of how the results were made\n")
    arguments = ["everything", "images/b.png", *FEW, "--model", "nano", "--points-per-side", "1"]
    assert CliRunner().invoke(cli.app, [*arguments, "--json", "coco/b.json"]).exit_code == 0
    assert run("--json", "coco")[0] == ["b.png"]


def test_records_do_not_grow_and_cut_off_lines_are_ignored(run):
    for few in (FEW, ["--points-per-side", "3", *FEW[2:]], FEW):
        run("--json", "coco", few=few)
    file = Path("coco") / records.FILE
    assert len(file.read_text().splitlines()) == 6
    with file.open("a") as lines:
        lines.write('{"output": "a.json", "inp')
    assert run("--json", "coco") == ([], "")
    assert [json.loads(line)["output"] for line in file.read_text().splitlines()] == ["a.json", "b.json"]


def test_nan_as_an_option_is_the_same_option_again(run, images):
    for png in images.iterdir():
        Image.fromarray(np.asarray(Image.open(png).convert("L")) / np.float32(255)).save(png.with_suffix(".tif"))
        png.unlink()
    assert run("--json", "coco", "--nodata", "nan") == (["a.tif", "b.tif"], "")
    lines = Path("coco/.masklet.jsonl").read_text().splitlines()
    made = [json.loads(line, parse_constant=pytest.fail) for line in lines]  # JSON has no NaN
    assert [one["settings"]["nodata"] for one in made if "settings" in one] == ["nan", "nan"]
    assert run("--json", "coco", "--nodata", "nan") == ([], "")
    assert run("--json", "coco", "--value-range", "0,1") == (
        ["a.tif", "b.tif"],
        f"{AGAIN}value_range was not given, now [0.0, 1.0], nodata was nan, now not given\n",
    )


KILLED = """
import os, signal, sys
from masklet.cli import jobs, main

writes = 0

def replace(source, destination, original=os.replace):
    global writes
    is_result = str(destination).endswith(".json")
    writes += is_result
    if writes == {number} and is_result:
        if {after}:
            original(source, destination)
        os.kill(os.getpid(), signal.SIGKILL)
    original(source, destination)

os.replace = replace
main()
"""


@pytest.mark.parametrize(("number", "after"), [(2, False), pytest.param(1, True, marks=pytest.mark.slow)])
def test_a_killed_process_leaves_nothing_half_written_and_a_rerun_continues(run, tiny_folder, number, after):
    run("--json", "coco", few=["--points-per-side", "3", *FEW[2:]])  # older results
    old = {name: Path(f"coco/{name}.json").read_bytes() for name in "ab"}
    run("--json", "expected")
    script = KILLED.format(number=number, after=after)
    arguments = ["everything", "images", *FEW, "--model", str(tiny_folder), "--json", "coco"]
    killed = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    new = {name: Path(f"expected/{name}.json").read_bytes() for name in "ab"}
    found = {name: Path(f"coco/{name}.json").read_bytes() for name in "ab"}
    assert all(found[name] in (old[name], new[name]) for name in "ab")
    assert found["b"] == old["b"]
    # With the options of the older results, too, what has no record is made again.
    processed, _ = run("--json", "coco")
    assert processed == (BOTH if after else ["b.png"])
    assert {name: Path(f"coco/{name}.json").read_bytes() for name in "ab"} == new


def test_what_killed_processes_left_is_removed_later(tmp_path, monkeypatch):
    for name in ("old", "new"):
        (tmp_path / f".unfinished-{name}12345").mkdir()
        (tmp_path / f".unfinished-{name}12345/0.png").touch()
        (tmp_path / f".unfinished-{name}12345.json").touch()
    long_ago = (1, 1)
    for path in tmp_path.glob(".unfinished-old*"):
        os.utime(path, long_ago)
    with atomic.replacing(tmp_path / "result.json") as unfinished:
        unfinished.touch()
        remove_stale(tmp_path)
        assert unfinished.exists()
    assert sorted(path.name for path in tmp_path.glob(".*")) == [".unfinished-new12345", ".unfinished-new12345.json"]
    assert outputs.STALE_SECONDS >= 600
