"""masklet everything."""

import copy
import json
import shutil
import sys

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from typer.testing import CliRunner

from masklet import cli
from masklet.cli.tables import show_progress
from masklet.masks import PackedMasks
from masklet.results import Masks
from masklet.segmenter import Segmenter
from masklet.video.frames import open_video
from masklet.video.writer import VideoWriter

FEW = ["--points-per-side", "3", "--iou-threshold", "0", "--stability-threshold", "0"]


@pytest.fixture
def images(image, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    Image.fromarray(image).save(folder / "a.png")
    Image.fromarray(image[:, ::-1].copy()).save(folder / "b é.jpg")
    (folder / "broken.jpg").write_bytes(b"no image")
    (folder / "notes.txt").write_text("mine")
    return folder


@pytest.fixture
def run(tiny_folder):
    def run(*arguments, content=None):
        command = ["everything", *map(str, arguments), "--model", str(tiny_folder), "--dtype", "float32", *FEW]
        return CliRunner().invoke(cli.app, command, input=content)

    return run


@pytest.fixture
def refusal_of(tiny_folder, monkeypatch, capsys):
    """The line of the error, raised before a model is loaded."""

    def refusal_of(*arguments):
        monkeypatch.setattr("masklet.segmenter.load", lambda *_, **__: pytest.fail("the model was loaded"))
        monkeypatch.setattr(sys, "argv", ["masklet", "everything", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        assert caught.value.code == 2
        return capsys.readouterr().err.removeprefix("masklet: ").rstrip("\n")

    return refusal_of


def rows_of(result):
    return [line.split("\t") for line in result.stdout.splitlines()]


def files_in(folder):
    """The visible files."""
    paths = (path for path in folder.rglob("*") if path.is_file() and path.name[0] != ".")
    return sorted(str(path.relative_to(folder)) for path in paths)


def test_an_image_is_written_in_every_way(run, sam, images, tmp_path):
    out, instances, masks = tmp_path / "overlay.png", tmp_path / "coco.json", tmp_path / "masks"
    result = run(images / "a.png", "--out", out, "--json", instances, "--masks", masks)
    assert result.exit_code == 0, result.output
    found = sam.everything(images / "a.png", points_per_side=3, iou_threshold=0, stability_threshold=0)
    assert rows_of(result)[0] == ["image", "masks", "seconds"]
    assert rows_of(result)[1][:2] == ["a.png", str(len(found))]
    np.testing.assert_array_equal(np.array(Image.open(out)), np.array(found.overlay()))
    np.testing.assert_array_equal(Masks.from_coco(json.loads(instances.read_text())).masks, found.masks)
    assert files_in(masks) == [f"a/{number:03}.png" for number in range(len(found))]
    np.testing.assert_array_equal(Masks.from_png(masks / "a/000.png").masks, found.masks[:1])


def test_other_outputs_do_not_change_the_json(run, images, tmp_path):
    run(images / "a.png", "--json", tmp_path / "one.json")
    run(images / "a.png", "--json", tmp_path / "two.json", "--out", tmp_path / "overlay.png")
    assert (tmp_path / "one.json").read_text() == (tmp_path / "two.json").read_text()


def test_in_a_folder_damaged_images_are_listed_and_finished_ones_are_skipped(run, images, tmp_path):
    places = ["--out", tmp_path / "overlays", "--json", tmp_path / "coco", "--masks", tmp_path / "masks"]
    first = run(images, *places)
    assert first.exit_code == 1
    assert [row[0] for row in rows_of(first)] == ["image", "a.png", "b é.jpg"]
    assert f"masklet: broken.jpg: {images / 'broken.jpg'} is not an image" in first.stderr
    assert files_in(tmp_path / "overlays") == ["a.png", "b é.png"]
    assert files_in(tmp_path / "coco") == ["a.json", "b é.json"]
    (tmp_path / "overlays/a.png").unlink()
    (tmp_path / "masks/a/999.png").touch()  # of an older run
    before = (tmp_path / "overlays/b é.png").stat().st_mtime_ns
    (images / "broken.jpg").unlink()
    second = run(images, *places)
    assert second.exit_code == 0
    assert [row[1] for row in rows_of(second)][2] == "finished before"
    assert rows_of(second)[1][1] == rows_of(first)[1][1]
    assert (tmp_path / "overlays/b é.png").stat().st_mtime_ns == before
    assert not (tmp_path / "masks/a/999.png").exists()
    assert {path.name for path in tmp_path.rglob(".*")} == {".masklet.jsonl"}


def test_finished_images_are_processed_again_on_request(run, images, tmp_path):
    (images / "broken.jpg").unlink()
    places = ["--json", tmp_path / "coco"]
    assert run(images, *places).exit_code == 0
    (tmp_path / "coco/a.json").write_text("old")
    assert [row[1] for row in rows_of(run(images, *places))][1:] == 2 * ["finished before"]
    assert (tmp_path / "coco/a.json").read_text() == "old"
    assert "finished before" not in run(images, *places, "--overwrite").output
    assert (tmp_path / "coco/a.json").read_text() != "old"


def test_names_may_have_the_maximum_length_and_longer_ones_fail_alone(run, images, tmp_path):
    (images / "broken.jpg").unlink()
    long = "图" * 78
    (images / "a.png").rename(images / f"{long}.png")
    assert run(images / f"{long}.png", "--out", tmp_path / f"{long}.png").exit_code == 0
    shutil.copy(images / f"{long}.png", images / f"{'x' * 250}.png")
    shutil.copy(
        images / f"{long}.png", images / f"{'x' * 250}.jpg"
    )  # its outputs would have names that end in .jpg.png
    result = run(images, "--json", tmp_path / "coco")
    assert result.exit_code == 1
    assert result.stderr.count("File name too long") == len(result.stderr.splitlines()) == 2
    assert files_in(tmp_path / "coco") == ["b é.json", f"{long}.json"]


def test_a_folder_is_processed_in_natural_order_without_documents(run, images, tmp_path):
    (images / "broken.jpg").rename(images / "letter.pdf")
    (images / "a.png").rename(images / "c10.png")
    shutil.copy(images / "c10.png", images / "c9.png")
    result = run(images, "--json", tmp_path / "coco")
    assert result.exit_code == 0, result.output
    assert [row[0] for row in rows_of(result)][1:] == ["b é.jpg", "c9.png", "c10.png"]


def test_images_with_the_same_stem_have_different_outputs(run, images, image, tmp_path):
    (images / "broken.jpg").unlink()
    Image.fromarray(image).save(images / "A.jpg")
    assert run(images, "--json", tmp_path / "coco").exit_code == 0
    assert files_in(tmp_path / "coco") == ["A.jpg.json", "a.png.json", "b é.json"]


def lines_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_annotations_may_be_one_per_line(run, images, tmp_path):
    run(images / "a.png", "--json", tmp_path / "list.json")
    run(images / "a.png", "--json", tmp_path / "lines.jsonl")
    assert lines_of(tmp_path / "lines.jsonl") == json.loads((tmp_path / "list.json").read_text())["annotations"]


def test_the_json_is_a_data_set_that_pycocotools_opens_and_evaluates(run, images, tmp_path, capsys):
    (images / "broken.jpg").unlink()
    run(images / "a.png", "--json", tmp_path / "one.json")
    run(images, "--json", tmp_path / "coco")
    files = [tmp_path / "one.json", tmp_path / "coco/a.json", tmp_path / "coco/b é.json"]
    ids, names = [], []
    for file in files:
        truth = COCO(file)
        (image,) = truth.dataset["images"]
        ids.append(image["id"])
        names.append((image["file_name"], image["width"], image["height"]))
        assert {a["image_id"] for a in truth.dataset["annotations"]} == {image["id"]}
        # Compared with themselves, without duplicates, which would be interchangeable.
        distinct = {a["segmentation"]["counts"]: a for a in truth.dataset["annotations"]}
        truth.dataset["annotations"] = list(distinct.values())[:20]
        truth.createIndex()
        measure = COCOeval(truth, truth.loadRes(copy.deepcopy(truth.dataset["annotations"])), "segm")
        measure.evaluate()
        measure.accumulate()
        measure.summarize()
        assert measure.stats[0] == pytest.approx(1)
    assert ids[0] == 1
    assert len(set(ids)) == 3
    assert names == [("a.png", 80, 48), ("a.png", 80, 48), ("b é.jpg", 80, 48)]
    capsys.readouterr()  # pycocotools prints


def test_masks_are_never_all_unpacked(run, images, tmp_path, monkeypatch):
    found, everything = [], Segmenter.everything
    monkeypatch.setattr(Segmenter, "everything", lambda *a, **kw: found.append(everything(*a, **kw)) or found[-1])
    monkeypatch.setattr(PackedMasks, "__array__", lambda *_: pytest.fail("all masks were unpacked"))
    assert run(images / "a.png", "--out", tmp_path / "a.png", "--masks", tmp_path / "masks").exit_code == 0
    assert isinstance(found[0].masks, PackedMasks)


def test_a_large_image_is_processed_in_tiles(run, sam, images, tmp_path):
    result = run(images / "b é.jpg", "--tile", "48", "--overlap", "16", "--json", tmp_path / "b é.jsonl")
    assert result.exit_code == 0, result.output
    options = {"points_per_side": 3, "iou_threshold": 0, "stability_threshold": 0}
    expected = list(sam.everything_tiled(images / "b é.jpg", tile=48, overlap=16, **options))
    assert lines_of(tmp_path / "b é.jsonl") == expected
    assert rows_of(result)[1][:2] == ["b é.jpg", str(len(expected))]


@pytest.fixture
def video(images):
    (images / "broken.jpg").unlink()
    with VideoWriter(images / "video é.mp4") as out:
        for _ in range(5):
            out.write(images / "a.png")
    return images / "video é.mp4"


def test_the_objects_of_a_video_are_found_and_tracked(run, video, tmp_path):
    out, lines, masks = tmp_path / "masked.mp4", tmp_path / "lines.jsonl", tmp_path / "masks"
    result = run(video, "--every", "3", "--out", out, "--json", lines, "--masks", masks)
    assert result.exit_code == 0, result.output
    assert rows_of(result)[0] == ["object", "visible frames", "mean IoU score"]
    assert [line["frame"] for line in lines_of(lines)] == [0, 1, 2, 3, 4]
    assert [entry["object_id"] for entry in lines_of(lines)[0]["objects"]][:1] == [1]
    assert (open_video(out).count, open_video(out).fps) == (5, open_video(video).fps)
    assert files_in(masks) == [f"{number:05}.png" for number in range(5)]


def test_a_folder_of_frames_is_a_video_with_every(run, images, video, tmp_path):
    assert run(images, "--every", "9", "--jsonl", tmp_path / "lines.jsonl").exit_code == 0
    assert [line["frame"] for line in lines_of(tmp_path / "lines.jsonl")] == [0, 1]


def test_the_lines_of_a_video_go_to_the_standard_output(run, video, tmp_path):
    run(video, "--every", "3", "--json", tmp_path / "lines.jsonl")
    result = run(video, "--every", "3", "--json", "-", "--masks", tmp_path / "masks")
    assert [json.loads(line) for line in result.stdout.splitlines()] == lines_of(tmp_path / "lines.jsonl")
    assert files_in(tmp_path / "masks") == [f"{number:05}.png" for number in range(5)]


def test_the_instances_of_tiles_go_to_the_standard_output(run, images, tmp_path):
    tiles = ["--tile", "48", "--overlap", "16", "--json"]
    run(images / "a.png", *tiles, tmp_path / "lines.jsonl")
    result = run("-", *tiles, "-", content=(images / "a.png").read_bytes())
    assert [json.loads(line) for line in result.stdout.splitlines()] == lines_of(tmp_path / "lines.jsonl")
    assert lines_of(tmp_path / "lines.jsonl")


def test_the_json_of_images_goes_to_the_standard_output(run, images, tmp_path):
    (images / "broken.jpg").unlink()
    run(images, "--json", tmp_path / "coco")
    for _ in range(2):  # images are not skipped, or lines would be missing
        result = run(images, "--json", "-", "--out", tmp_path / "overlays")
        expected = [json.loads((tmp_path / f"coco/{name}.json").read_text()) for name in ("a", "b é")]
        assert [json.loads(line) for line in result.stdout.splitlines()] == expected


def test_several_images_may_be_named(run, images, tmp_path):
    result = run(images / "a.png", images / "b*.jpg", "--json", tmp_path / "coco")
    assert [row[0] for row in rows_of(result)[1:]] == ["a.png", "b é.jpg", "broken.jpg"][:2]
    assert files_in(tmp_path / "coco") == ["a.json", "b é.json"]


def test_a_hint_is_shown_if_there_are_no_masks(tiny_folder, images):
    arguments = ["everything", str(images / "a.png"), "--model", str(tiny_folder), "--iou-threshold", "1"]
    result = CliRunner().invoke(cli.app, [*arguments, "--points-per-side", "2"])
    assert result.exit_code == 0
    assert rows_of(result)[1][:2] == ["a.png", "0"]
    assert result.stderr == "masklet: no masks found: lower --iou-threshold or --stability-threshold\n"


def test_a_terminal_has_a_progress_bar(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert list(show_progress(iter("ab"), 2, unit="images")) == ["a", "b"]
    shown = capsys.readouterr().err
    assert "2/2" in shown
    assert "images/s" in shown


# Refused before the model is loaded


def test_places_that_cannot_be_written_are_refused(refusal_of, images, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("mine")
    encoded = images / "a.png"
    assert refusal_of(encoded, "--json", blocked / "r.json").startswith(f"cannot write {blocked / 'r.json'}: ")
    assert refusal_of(encoded, "--masks", blocked).startswith(f"cannot write {blocked / '000.png'}: ")
    assert refusal_of(encoded, "--out", images / "b.xyz").startswith("--out ")
    (tmp_path / "folder.json").mkdir()
    assert refusal_of(encoded, "--json", tmp_path / "folder.json").endswith("folder.json: Is a directory")
    assert refusal_of(images, "--out", blocked) == (
        f"--out {blocked} is a file: expected a folder, since there are several images"
    )
    assert refusal_of(images, "--out", images) == f"--out {images} is the folder of the images: expected another folder"
    assert blocked.read_text() == "mine"


def test_a_read_only_folder_is_refused(refusal_of, images, tmp_path, monkeypatch):
    def refuse(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.touch", refuse)  # tests may run as root, for whom every folder is writable
    overlays, video = tmp_path / "overlays", tmp_path / "video.mp4"
    assert refusal_of(images, "--out", overlays) == f"cannot write {overlays / 'a.png'}: Permission denied"
    assert refusal_of(video, "--out", overlays / "a.mp4") == f"cannot write {overlays / 'a.mp4'}: Permission denied"
    assert refusal_of(video, "--masks", overlays) == f"cannot write {overlays / '00000.png'}: Permission denied"


def test_outputs_overwrite_neither_inputs_nor_each_other(refusal_of, images, tmp_path):
    encoded, other = images / "b é.jpg", tmp_path / "other.png"
    before = encoded.read_bytes()
    lost = "which would be overwritten: expected another name"
    around = images / ".." / "images" / "b é.jpg"
    assert refusal_of(encoded, "--out", around) == f"--out {around} is an input, {lost}"
    assert refusal_of(encoded, "--json", encoded) == f"--json {encoded} is an input, {lost}"
    assert refusal_of(encoded, "--out", other, "--json", other) == f"--json {other} is also written by --out, {lost}"
    assert refusal_of(tmp_path / "a.mp4", "--out", tmp_path / "a.mp4").endswith(f"is an input, {lost}")
    assert refusal_of(images, "--every", 2, "--masks", images) == (
        f"--masks {images} is the video itself: expected another folder, or it would be lost"
    )
    (tmp_path / "7").mkdir()
    (tmp_path / "7/7.png").write_bytes(before)
    assert refusal_of(tmp_path / "7/7.png", "--masks", tmp_path) == (
        f"--masks would replace {tmp_path / '7'}, which holds the image: expected another folder"
    )
    assert encoded.read_bytes() == before
    assert files_in(tmp_path / "7") == ["7.png"]


def test_a_folder_of_other_files_is_not_replaced(refusal_of, images, tmp_path):
    (tmp_path / "masks/a").mkdir(parents=True)
    (tmp_path / "masks/a/holiday.png").touch()
    assert refusal_of(images, "--masks", tmp_path / "masks") == (
        f"{tmp_path / 'masks/a'} holds holiday.png: expected a folder of masks, which is replaced, or nothing"
    )


def test_videos_and_tiles_need_json_lines(refusal_of, images, tmp_path):
    lines = tmp_path / "lines.jsonl"
    assert refusal_of("video.mp4", "--json", "a.json") == (
        "--json a.json: expected a name that ends in .jsonl, since a video has one line per frame"
    )
    assert refusal_of("video.mp4", "--out", "-") == (
        "--out -: expected a name, since only JSON goes to the standard output"
    )
    assert refusal_of("video.mp4", "--mask-out", "a.png") == (
        "--mask-out is for images: expected --masks FOLDER, with a PNG for each frame"
    )
    assert refusal_of("video.mp4", "--polygons", 0).startswith("--polygons is for images: ")
    assert refusal_of(images / "a.png", "--tile", 64, "--json", lines, "--polygons", 0).startswith("--polygons is for ")
    assert refusal_of("video.mp4", "other.mp4") == ("2 images or videos: expected one video, or images without --every")
    assert refusal_of("video.mp4", "--tile", 64) == (
        "--tile is for large images, and this is a video: expected one of them"
    )
    assert refusal_of(images / "a.png", "--tile", 64, "--json", "a.json") == (
        "--json a.json: expected a name that ends in .jsonl, since masks are written as they are found"
    )
    expected = "--tile is for one large image: expected --json FILE.jsonl, and no other output"
    assert refusal_of(images / "a.png", "--tile", 64) == expected
    assert refusal_of(images, "--tile", 64, "--json", lines) == expected
    assert refusal_of(images / "a.png", "--tile", 64, "--json", lines, "--out", tmp_path / "a.png") == expected
    assert not lines.exists()


def test_options_that_need_others_say_which(refusal_of, images):
    assert refusal_of(images / "a.png", "--overlap", 8) == (
        "--overlap is for tiles of a large image: give --tile as well"
    )
    assert refusal_of(images / "a.png", "--same-iou", 0.5) == "--same-iou is for videos: give --every as well"


def test_every_option_is_passed_on(tiny_folder, images, monkeypatch):
    (images / "broken.jpg").unlink()
    passed = []
    for method in (
        "segmenter.Segmenter.everything",
        "segmenter.Segmenter.everything_tiled",
        "video.session.VideoSession.everything",
    ):
        monkeypatch.setattr(f"masklet.{method}", lambda self, *_, **options: passed.append(options) or [])
    monkeypatch.setattr("masklet.cli.jobs.Job.write", lambda *_: None)
    common = {"points_per_side": 3, "crops": 1, "crop_overlap": 0.5, "crop_points_divisor": 2, "crop_nms": 0.6}
    common |= {"min_area": 7, "iou_threshold": 0.1, "stability_threshold": 0.2, "stability_offset": 0.9, "box_nms": 0.8}
    of_videos = {"every": 2, "same_iou": 0.4, "min_object": 5, "patience": 6}
    of_tiles = {"tile": 64, "overlap": 9}
    lines = ["--json", str(images.parent / "lines.jsonl")]
    for source, extra, others in (
        (images / "a.png", {}, []),
        (images, of_videos, []),
        (images / "a.png", of_tiles, lines),
    ):
        options = common | extra
        texts = [text for name, value in options.items() for text in (f"--{name.replace('_', '-')}", str(value))]
        arguments = ["everything", str(source), "--model", str(tiny_folder), *texts, *others]
        result = CliRunner().invoke(cli.app, arguments)
        assert result.exit_code == 0, result.output
        assert passed.pop() == options | ({"packed": True} if not extra else {})


def test_options_of_values_are_passed_on(tiny_folder, images, video, monkeypatch, tmp_path):
    passed = []
    for method in ("everything", "everything_tiled", "video"):
        monkeypatch.setattr(
            f"masklet.segmenter.Segmenter.{method}", lambda *_, **options: passed.append(options) or 1 / 0
        )
    values = ["--value-range", "0,4095", "--bands", "3,2,1", "--nodata", "-1"]
    tiles = ["--tile", "64", "--json", str(tmp_path / "lines.jsonl")]
    for arguments in ([images / "a.png"], [images / "a.png", *tiles], [video]):
        command = ["everything", *map(str, arguments), "--model", str(tiny_folder), *values]
        assert isinstance(CliRunner().invoke(cli.app, command).exception, ZeroDivisionError)
        found = {name: passed[-1][name] for name in ("value_range", "bands", "nodata")}
        assert found == {"value_range": (0.0, 4095.0), "bands": (3, 2, 1), "nodata": -1.0}


def test_the_model_is_loaded_as_requested(images, monkeypatch):
    loaded = []
    monkeypatch.setattr("masklet.segmenter.load", lambda *args, **options: loaded.append((*args, options)) or 1 / 0)
    choices = ["--model", "mine", "--device", "cpu", "--dtype", "bfloat16", "--engine", "eager", "--resolution", "256"]
    CliRunner().invoke(cli.app, ["everything", str(images / "a.png"), *choices])
    CliRunner().invoke(cli.app, ["everything", str(images / "a.png")])
    assert loaded == [
        ("mine", {"device": "cpu", "dtype": "bfloat16", "engine": "eager", "resolution": 256}),
        ("nano", {"device": "auto", "dtype": "auto", "engine": "auto", "resolution": None}),
    ]


def test_errors_name_the_option_that_may_help(run, images, monkeypatch):
    (images / "dog.y4m").write_bytes(b"no image")
    assert str(run(images / "dog.y4m").exception).endswith(
        " If it is a video: masklet video, or masklet everything --every 30"
    )
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert str(run(images / "a.png").exception).endswith(
        "Or process it in tiles: masklet everything --tile 1024 --json FILE.jsonl"
    )


def test_invalid_options_and_empty_folders_are_refused(refusal_of, images, tmp_path):
    assert refusal_of(images, "--iou-threshold", "2") == "iou_threshold is 2.0: expected a number, 0 to 1"
    (tmp_path / "empty").mkdir()
    assert refusal_of(tmp_path / "empty").startswith(f"no images in {tmp_path / 'empty'}: ")


def test_a_damaged_image_is_one_line(run, images):
    result = run(images / "broken.jpg")
    assert "is not an image" in str(result.exception)
    assert result.stdout == ""
