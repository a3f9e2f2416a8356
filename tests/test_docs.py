"""The documentation is true: its snippets and commands run, and give what it says they give.

They run in a folder with the files that the pages mention, made small.
"""

import json
import re
import shlex
import shutil
import warnings
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

import masklet
from masklet.checkpoints import KNOWN_MODELS
from masklet.cli import app
from masklet.everything.options import EverythingOptions
from masklet.training.config_files import config_from
from masklet.video.frames import open_video
from masklet.video.writer import VideoWriter

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FRAMES = 4
GRID_POINTS = 3


def blocks(language):
    found = [
        pytest.param(block, id=f"{page.name}:{number}")
        for page in PAGES
        for number, block in enumerate(re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL), start=1)
    ]
    assert found, f"no {language} block in the documentation"
    return found


def made_small(text):
    """A snippet or command with fewer points and steps, so that it runs in a moment."""
    text = re.sub(r"--steps \d+", "--steps 1 --batch-size 1 --objects 1 --rounds 2 --input-size 256", text)
    return re.sub(r"(points.per.side\W{1,3})\d+", rf"\g<1>{GRID_POINTS}", text)


def training_files():
    """The YAML blocks that begin with the name of a file, with one small step for each stage."""
    return {
        name: re.sub(r"\[\{.*\}\]", lambda stages: small_stages(stages[0]), content)
        for page in PAGES
        for name, content in re.findall(r"```yaml\n# (\S+\.yaml)\n(.*?)```", page.read_text(), re.DOTALL)
    }


def small_stages(stages):
    small = {"steps": 1, "batch_size": 1, "objects": 1, "rounds": 2, "input_size": 256}
    return json.dumps([stage | small | {"frames": min(stage.get("frames", 1), 2)} for stage in yaml.safe_load(stages)])


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder with the files that the pages mention."""
    folder = tmp_path_factory.mktemp("docs")
    shutil.copy(ROOT / "examples/images/truck.jpg", folder)
    with Image.open(folder / "truck.jpg") as truck:
        image = np.array(truck.resize((180, 120)))
        truck.resize((450, 300)).save(folder / "field.tif")
    with VideoWriter(folder / "cups.mp4") as video:
        for shift in range(FRAMES):
            video.write(np.roll(image, 2 * shift, axis=1))
    labels = np.zeros((120, 180), np.uint8)
    labels[30:95, 10:172] = 1
    pairs = [("mine/images/truck.png", "mine/masks/truck.png")]
    pairs += [(f"images/images/{i}.png", f"images/masks/{i}.png") for i in range(3)]
    pairs += [(f"videos/JPEGImages/{f}/{i}.png", f"videos/Annotations/{f}/{i}.png") for f in "ab" for i in range(3)]
    for pair in pairs:
        for name, pixels in zip(pair, (image, labels), strict=True):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / name)
    for name, content in training_files().items():
        (folder / name).write_text(content)
    return folder


@pytest.fixture
def folder(prepared, tmp_path, monkeypatch):
    copy = shutil.copytree(prepared, tmp_path / "docs")
    monkeypatch.chdir(copy)
    load, published = masklet.load, {model.name for model in KNOWN_MODELS}

    def load_offline(name=None, *args, **options):  # the embedded model stands in for published checkpoints
        if options == {"engine": "onnx"}:  # and for exported folders, whose verbs are the same (tests/export)
            return load()
        return load(None if name in published else name, *args, **options)

    monkeypatch.setitem(vars(masklet), "load", load_offline)  # not setattr, which would leave the attribute behind
    return copy


# What is written


def assert_has_content(path):
    """A file can be read as what its suffix says, and holds something; so does every file of a folder."""
    assert path.exists(), f"{path.name} was not written"
    if path.is_dir():
        files = [file for file in path.rglob("*") if file.is_file()]
        assert files, f"{path.name} is empty"
        for file in files:
            assert_has_content(file)
    elif path.suffix == ".png":
        with Image.open(path) as image:
            assert np.ptp(np.asarray(image)) > 0, f"{path.name} has one colour"
    elif path.suffix == ".mp4":
        assert len(open_video(path)) == FRAMES
    elif path.suffix == ".json":
        assert json.loads(path.read_text())
    elif path.suffix == ".jsonl":
        lines = path.read_text().splitlines()
        assert lines
        assert all(map(json.loads, lines))
    else:
        assert path.stat().st_size > 100, f"{path.name} is nearly empty"


# Snippets


def assert_masks_are_plausible(name, masks):
    total = masks.size_hw[0] * masks.size_hw[1]
    assert len(masks), f"{name} holds no mask"
    assert (masks.areas < total).all(), f"a mask of {name} is the whole image"
    assert (masks.areas > 0).any(), f"all masks of {name} are empty"


@pytest.mark.parametrize("code", blocks("python"))
def test_a_snippet_runs_and_gives_what_it_says(folder, capsys, code):
    if "import ray" in code:
        pytest.importorskip("ray")
        warnings.simplefilter("ignore")  # Ray's own
    names = {"sam": masklet.load()}
    exec(compile(made_small(code), "snippet", "exec"), names)
    for path in re.findall(r"""(?:\.save|\.write|open|Path)\(["']([^"']+)["']""", code):
        assert_has_content(folder / path)
    for name, value in names.items():
        if isinstance(value, masklet.Masks):
            assert_masks_are_plausible(name, value)
    printed = capsys.readouterr().out
    assert bool(printed) == ("print(" in code and "file=" not in code)
    if "print(result.index" in code:
        assert [int(line.split()[0]) for line in printed.splitlines()] == list(range(FRAMES))


# Commands

OUTPUTS = {"--out", "-o", "--mask-out", "--json", "--jsonl", "--masks", "--grid", "--run"}


def assert_score(text):
    assert 0 < float(text) <= 1


def check_image(arguments, rows):
    is_batch = "*" in arguments[0]
    rows = [row[is_batch:] for row in rows]
    assert rows[0][:3] == ["object", "score", "area"]
    assert len(rows) == 1 + max(1, arguments.count("--box"), sum("@" in value for value in arguments))
    for row in rows[1:]:
        assert_score(row[1])
        assert 0 < int(row[2]) < 900 * 600


def check_models(arguments, rows):
    """The guide to models has a table, too."""
    assert [row[0] for row in rows[1:]] == [model.name for model in KNOWN_MODELS]
    listed = re.findall(
        r"^\| `(\S+)` \| ([\d.]+ M) \| (\d+ MB) \|", (ROOT / "docs/models.md").read_text(), re.MULTILINE
    )
    printed = {name: details for name, *details, _ in rows[1:]}
    assert {"nano", "sam2.1-hiera-tiny"} <= {name for name, *_ in listed}
    for name, parameters, size in listed:
        assert float(parameters[:-2]) == pytest.approx(float(printed[name][0][:-2]), abs=0.5)
        assert size == printed[name][1]


def check_everything(arguments, rows):
    if arguments[0].endswith(".mp4"):
        check_video(arguments, rows)
        return
    assert rows[0][:2] == ["image", "masks"]
    assert rows[1][0] in {Path(arguments[0]).name, "truck.png"}
    assert int(rows[1][1]) > 0


def check_video(arguments, rows):
    assert rows[0] == ["object", "visible frames", "mean IoU score"]
    prompted = {value.split("@")[0] for value in arguments if "@" in value}
    assert prompted in ({row[0] for row in rows[1:]}, set())
    for _, frames, score in rows[1:]:
        assert 0 <= int(frames) <= FRAMES
        assert_score(score)
    lines = Path(next(name for name in arguments if name.endswith(".jsonl"))).read_text().splitlines()
    assert [json.loads(line)["frame"] for line in lines] == list(range(FRAMES))


def check_eval(arguments, rows):
    if "--objects" in arguments:
        assert {"object", "j_and_f", "j", "f"} <= set(rows[0])
        assert [row[0] for row in rows[1:]] == ["a", "b", "mean"]
        return
    scores = dict(rows[1:])
    expected = {"recall_50", "recall_75"} if "--everything" in arguments else {"one_click", "seven_clicks", "box"}
    assert expected <= scores.keys()
    assert all(0 <= float(scores[name]) <= 1 for name in expected)
    assert scores["objects"] == "1"


def check_train(arguments, rows):
    assert "before training" in rows[1][-1]
    assert rows[-1][0].startswith(("training helped: ", "training did not help: "))
    saved = sorted(
        Path(arguments[arguments.index("--out" if "--out" in arguments else "--run") + 1]).glob("*/model.safetensors")
    )
    assert saved
    for file in saved:
        masklet.load(file.parent, device="cpu")


def check_batch(arguments, rows):
    assert rows[0] == ["processed", "failed", "finished before", "frames", "masks", "seconds"]
    assert rows[1][:3] == ["6", "0", "0"]
    assert int(rows[1][4]) > 0


CHECKS = {
    "batch": check_batch,
    "image": check_image,
    "models": check_models,
    "everything": check_everything,
    "video": check_video,
    "eval": check_eval,
    "train": check_train,
}


@pytest.mark.parametrize("block", blocks("console"))
def test_a_command_prints_and_writes_what_it_says(folder, block):
    for line in made_small(block).splitlines():
        program, command, *arguments = shlex.split(line.removeprefix("$ "))
        assert program == "masklet"
        if command == "batch":
            pytest.importorskip("pyarrow")
        result = CliRunner().invoke(app, [command, *arguments])
        assert result.exit_code == 0, result.output
        CHECKS[command](arguments, [line.split("\t") for line in result.stdout.splitlines()])
        for option, value in zip(arguments, arguments[1:], strict=False):
            if option in OUTPUTS:
                assert_has_content(folder / value)


# Settings


@pytest.mark.parametrize("settings", blocks("yaml"))
def test_settings_are_a_configuration_or_part_of_one(settings):
    least = {"data": {"layout": "folder", "path": "images"}, "stages": [{"steps": 1}]}
    assert config_from(least | yaml.safe_load(settings)).steps > 0


def test_the_defaults_of_options_are_those_of_the_code():
    defaults = {
        field.name: "off" if field.default is False else str(field.default) for field in fields(EverythingOptions)
    }
    defaults |= {"iou_threshold": "the model's", "stability_threshold": "the model's"}
    found = dict(re.findall(r"^\| `(\w+)` \| (.+?) \|", (ROOT / "docs/everything.md").read_text(), re.MULTILINE))
    assert {"points_per_side", "iou_threshold", "stability_threshold"} <= found.keys()
    assert found.items() <= defaults.items()


# Links


def links(page):
    """The targets of a page's links, those in code blocks left out."""
    text = re.sub(r"^ *```.*?^ *```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    return re.findall(r"\]\(([^)\s]+)\)", text)


def anchors(page):
    """The anchors of a page's headings, as GitHub and the site make them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


WITH_LINKS = [*PAGES, *sorted(path for path in ROOT.glob("*.md") if path.name != "README.md")]


@pytest.mark.parametrize("page", WITH_LINKS, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    for link in links(page):
        if re.match(r"\w+:", link):
            continue
        target, _, anchor = link.partition("#")
        file = page.parent / target if target else page
        assert file.exists(), link
        assert not anchor or anchor in anchors(file), link


def test_external_links_are_well_formed():
    """Whether they still lead somewhere needs a network."""
    external = {link for page in WITH_LINKS for link in links(page) if re.match(r"\w+:", link)}
    assert len(external) > 40
    for link in external:
        assert re.fullmatch(r"https://[\w-]+(\.[\w-]+)+(/[\w.~/+%#=&?-]*)?", link), link
