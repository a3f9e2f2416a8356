"""The command ``masklet eval``."""

import json
import shutil
import sys

import numpy as np
import pytest
from PIL import Image
from pycocotools.mask import encode
from typer.testing import CliRunner

from masklet import cli
from masklet.cli import evaluation
from masklet.evaluation.folder import read_folder
from masklet.evaluation.measure import measure
from masklet.evaluation.recall import measure_recall, summarise_recall
from masklet.evaluation.scores import summarise
from masklet.evaluation.video import evaluate_videos, read_videos, summarise_videos
from masklet.images.reading import read_image
from masklet.video.writer import VideoWriter


@pytest.fixture
def images(image, tmp_path):
    """A folder of two images, with two objects and with one."""
    folder = tmp_path / "images"
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    labels = np.zeros(image.shape[:2], np.uint8)
    labels[10:30, 20:50], labels[35:45, 5:25] = 1, 3
    for name, values in (("a", labels), ("b", labels * (labels == 1))):
        Image.fromarray(image).save(folder / f"images/{name}.png")
        Image.fromarray(values).save(folder / f"masks/{name}.png")
    return folder


@pytest.fixture
def videos(image, tmp_path):
    """A folder with one video of three frames, in which a square moves."""
    folder = tmp_path / "videos"
    for kind in ("JPEGImages", "Annotations"):
        (folder / kind / "square").mkdir(parents=True)
    for index in range(3):
        labels = np.zeros(image.shape[:2], np.uint8)
        labels[10:30, 20:50] = 1
        for kind, pixels in (("JPEGImages", image), ("Annotations", labels)):
            Image.fromarray(np.roll(pixels, 4 * index, axis=1)).save(folder / kind / f"square/{index:05}.png")
    return folder


@pytest.fixture
def run(tiny_folder):
    """Runs the command and returns its rows of columns."""

    def run(*arguments):
        command = ["eval", "--model", str(tiny_folder), "--dtype", "float32", *map(str, arguments)]
        result = CliRunner().invoke(cli.app, command, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return [line.split("\t") for line in result.stdout.splitlines()]

    return run


@pytest.fixture
def refusal_of(monkeypatch, capsys):
    """Runs the command and returns its one line of error, printed before a model is loaded."""

    def refusal_of(*arguments):
        monkeypatch.setattr("masklet.segmenter.load", lambda *_, **__: pytest.fail("a model was loaded"))
        monkeypatch.setattr(sys, "argv", ["masklet", "eval", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        assert caught.value.code == 2
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", 1)
        return err.removeprefix("masklet: ").rstrip("\n")

    return refusal_of


def as_printed(summary):
    return [[name, f"{value:.3f}" if isinstance(value, float) else str(value)] for name, value in summary.items()]


def test_images_give_a_row_for_each_measure(run, sam, images):
    scores = list(measure(sam, read_folder(images)))
    rows = run("--data", images)
    assert rows == [["measure", "value"], *as_printed(summarise(scores))]
    assert [name for name, _ in rows[1:5]] == ["one_click", "three_clicks", "five_clicks", "seven_clicks"]
    assert rows[-1] == ["objects", "3"]


def test_videos_give_j_and_f_for_masks_for_clicks_and_of_the_baseline(run, sam, videos):
    scores = list(evaluate_videos(sam, read_videos(videos)))
    rows = run("--data", videos)
    assert rows[1:] == as_printed(summarise_videos(scores))
    assert [name for name, _ in rows[1:5]] == ["j_and_f", "j", "f", "clicks_j_and_f"]
    assert rows[7][0] == "baseline_j_and_f"


def test_everything_gives_recall(run, sam, images):
    options = {"points_per_side": 3, "iou_threshold": 0.1, "stability_threshold": 0.0}
    scores = list(measure_recall(sam, read_folder(images), **options))
    given = ("--points-per-side", 3, "--iou-threshold", 0.1, "--stability-threshold", 0)
    rows = run("--data", images, "--everything", *given)
    assert rows[1:] == as_printed(summarise_recall(scores))
    assert {"recall_50", "recall_75", "masks_per_image"} <= {name for name, _ in rows}


def test_objects_prints_a_row_for_each_object_and_the_means_below(run, sam, images, videos):
    rows = run("--data", images, "--objects")
    assert rows[0][:4] == ["image", "object", "one_click", "three_clicks"]
    assert [row[:2] for row in rows[1:]] == [["a", "1"], ["a", "3"], ["b", "1"], ["mean", ""]]
    assert float(rows[-1][2]) == pytest.approx(np.mean([float(row[2]) for row in rows[1:4]]), abs=1e-3)
    rows = run("--data", videos, "--objects")
    assert [row[:3] for row in rows] == [["video", "object", "frames"], ["square", "1", "1"], ["mean", "", ""]]


def test_scores_and_a_grid_are_written(run, sam, images, videos, tmp_path):
    run("--data", images, "--json", tmp_path / "new/scores.json", "--grid", tmp_path / "grid.png", "--resolution", 64)
    written = json.loads((tmp_path / "new/scores.json").read_text())
    scores = list(measure(sam, read_folder(images)))
    assert written["data"] == str(images)
    assert written["input_hw"] == [64, 64]
    assert written["summary"] == summarise(scores)
    assert [(one["image"], one["object"], one["box"]) for one in written["objects"]] == [
        (score.image, score.object, score.box) for score in scores
    ]
    assert read_image(tmp_path / "grid.png").shape[1] > 1000
    run("--data", videos, "--grid", tmp_path / "videos.png")
    assert read_image(tmp_path / "videos.png").shape[1] > 1000
    assert not list(tmp_path.rglob(".*"))


def test_the_resolution_changes_the_scores(run, images):
    assert run("--data", images) == run("--data", images, "--resolution", 64)
    assert run("--data", images) != run("--data", images, "--resolution", 96)


def test_what_cannot_be_measured_is_refused_before_a_model_is_loaded(refusal_of, images, videos, tmp_path):
    (tmp_path / "empty").mkdir()
    assert refusal_of("--data", tmp_path / "none").startswith(f"there is no folder {tmp_path / 'none'}: expected")
    assert "is of no known layout: expected images/ and masks/, JPEGImages/" in refusal_of("--data", tmp_path / "empty")
    assert "--everything is for images" in refusal_of("--data", videos, "--everything")
    assert "--iou-threshold is an option of --everything" in refusal_of("--data", images, "--iou-threshold", 0.5)
    wrong = refusal_of("--data", images, "--everything", "--points-per-side", 0)
    assert wrong == "points_per_side is 0: expected a whole number, 1 to 1024"
    (images / "masks/b.png").unlink()
    assert refusal_of("--data", images).startswith("1 of 2 images have no mask: expected ")
    (videos / "Annotations/square/00001.png").unlink()
    assert refusal_of("--data", videos).startswith("1 of 3 images have no annotation: expected ")
    (images / "JPEGImages").mkdir()
    assert "holds both images/ and JPEGImages/" in refusal_of("--data", images)


def test_a_limit_measures_images_that_are_evenly_spread(run, images):
    assert run("--data", images, "--limit", 1, "--objects")[1][0] == "a"
    assert evaluation.spread(list(range(10)), 4) == [0, 2, 5, 7]
    assert evaluation.spread([1, 2], 5) == [1, 2]


def test_the_same_images_have_the_same_scores_in_every_layout(run, images, image, tmp_path):
    """Of COCO, SA-1B and one file a mask, made of the label maps by other means."""
    expected = run("--data", images)
    (tmp_path / "coco").mkdir()
    (tmp_path / "sa1b").mkdir()
    (tmp_path / "files/masks").mkdir(parents=True)
    shutil.copytree(images / "images", tmp_path / "files/images")
    content = {"images": [], "annotations": []}
    for number, name in enumerate("ab"):
        labels = np.asarray(Image.open(images / f"masks/{name}.png"))
        found = [(int(n), np.asfortranarray(labels == n)) for n in np.unique(labels) if n]
        rles = [{"size": list(mask.shape), "counts": encode(mask)["counts"].decode()} for _, mask in found]
        size = {"height": image.shape[0], "width": image.shape[1]}
        content["images"].append({"id": number, "file_name": f"{name}.png", **size})
        content["annotations"] += [
            {"id": len(content["annotations"]) + k, "image_id": number, "category_id": 1, "segmentation": rle}
            for k, rle in enumerate(rles)
        ]
        for folder in ("coco", "sa1b"):
            shutil.copy(images / f"images/{name}.png", tmp_path / folder)
        (tmp_path / f"sa1b/{name}.json").write_text(
            json.dumps({"image": size, "annotations": [{"segmentation": rle} for rle in rles]})
        )
        (tmp_path / f"files/masks/{name}").mkdir()
        for n, mask in found:
            Image.fromarray(mask.astype(np.uint8) * 255).save(tmp_path / f"files/masks/{name}/{n}.png")
    (tmp_path / "coco/all.json").write_text(json.dumps(content))
    for data in ("coco", "coco/all.json", "sa1b", "files"):
        assert run("--data", tmp_path / data) == expected, data


def test_a_video_of_sav_is_measured(run, videos, image, tmp_path):
    folder = tmp_path / "sav"
    folder.mkdir()
    labels = [np.asarray(Image.open(videos / f"Annotations/square/{index:05}.png")) for index in range(3)]
    with VideoWriter(folder / "v.mp4", fps=24) as writer:
        for index in range(9):
            writer.write(np.asarray(Image.open(videos / f"JPEGImages/square/{min(index // 4, 2):05}.png")))
    rles = [[encode(np.asfortranarray(one > 0)) | {}] for one in labels]
    masklet = [[{"size": r["size"], "counts": r["counts"].decode()} for r in frame] for frame in rles]
    (folder / "v_manual.json").write_text(json.dumps({"masklet": masklet}))
    rows = dict(run("--data", folder)[1:])
    assert (rows["objects"], rows["videos"]) == ("1", "1")


def test_what_cannot_be_written_is_refused_before_a_model_is_loaded(refusal_of, images, tmp_path):
    assert "expected a name that ends in .png" in refusal_of("--data", images, "--grid", "grid.jpg")
    (tmp_path / "file").write_text("")
    for option in ("--json", "--grid"):
        refusal = refusal_of("--data", images, option, tmp_path / "file/out.png")
        assert refusal.startswith(f"cannot write {tmp_path / 'file/out.png'}: ")


def test_bad_data_ends_it_with_one_line_and_leaves_nothing(images, tiny_folder, tmp_path, monkeypatch, capsys):
    (images / "images/b.png").write_bytes(b"no image")
    arguments = ["eval", "--data", images, "--model", tiny_folder, "--json", tmp_path / "scores.json"]
    monkeypatch.setattr(sys, "argv", ["masklet", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    out, err = capsys.readouterr()
    assert (caught.value.code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"masklet: {images / 'images/b.png'} is not an image")
    assert not (tmp_path / "scores.json").exists()
