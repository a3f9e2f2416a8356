"""Runs over a source: results equal the Python API's, nothing is done twice, and nothing is lost on a kill."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from typer.testing import CliRunner

import masklet
from masklet.batch import worker
from masklet.batch.inputs import Input
from masklet.batch.prompt_files import PromptTable
from masklet.batch.runs import Run
from masklet.batch.storage import Storage
from masklet.batch.tasks import make_task
from masklet.cli import app
from masklet.errors import ConfigError, DataError, MaskletError, PromptError
from masklet.video.writer import VideoWriter

pd = pytest.importorskip("pandas")
pytest.importorskip("pyarrow")
pytest.importorskip("fsspec")

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")  # in pycocotools

ALL = {"points_per_side": 2, "iou_threshold": 0, "stability_threshold": 0, "box_nms": 2}
HW, FRAMES = (40, 56), 9


def noise(seed):
    return np.random.default_rng(seed).integers(0, 255, (*HW, 3), dtype=np.uint8)


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    for number in range(5):
        path = folder / ("sub" if number % 2 else ".") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise(number)).save(path)
    return folder


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    path = tmp_path_factory.mktemp("videos") / "clip.mkv"
    with VideoWriter(path, 10) as writer:
        for number in range(FRAMES):
            writer.write(np.roll(noise(0), 2 * number, axis=1))
    return path


def everything(images, out, tiny_folder, **options):
    task = make_task("everything", {**ALL, **options.pop("options", {})})
    return Run(str(images), str(out), task, model={"name": str(tiny_folder)}, **{"block": 2, **options})


def run(work):
    (*_, progress) = work()
    return progress


def table(out):
    rows = pd.read_parquet(f"{out}/masks")
    return rows.sort_values(["input", "frame", "object"]).reset_index(drop=True)


def masks_of(rows):
    runs = [{"size": [r.height, r.width], "counts": r.counts} for r in rows.itertuples()]
    return np.moveaxis(coco_mask.decode(runs), -1, 0).astype(bool)


def test_masks_equal_those_of_the_python_api(images, tmp_path, tiny_folder):
    progress = run(everything(images, tmp_path / "out", tiny_folder))
    assert (progress.done, progress.failed, progress.total) == (5, 0, 5)
    rows, sam = table(tmp_path / "out"), masklet.load(tiny_folder)
    assert sorted(set(rows.input)) == ["0.png", "2.png", "4.png", "sub/1.png", "sub/3.png"]
    for name, found in rows.groupby("input"):
        expected = sam.everything(images / name, **ALL)
        order = [list(map(str, expected.object_ids)).index(object_id) for object_id in found.object]
        np.testing.assert_array_equal(masks_of(found), expected.masks[order])
        np.testing.assert_array_equal(found.iou_score, expected.iou_scores[order])
        np.testing.assert_array_equal(found.area, expected.masks[order].sum((1, 2)))
        np.testing.assert_array_equal(np.stack(found.box), expected.boxes[order])
        assert found.frame.isna().all()


def test_finished_inputs_are_skipped_and_changed_ones_done_again(images, tmp_path, tiny_folder):
    out = tmp_path / "out"
    run(everything(images, out, tiny_folder))
    before = table(out)
    files = {path: path.stat().st_mtime_ns for path in (out / "masks").iterdir()}
    progress = run(everything(images, out, tiny_folder))
    assert (progress.total, progress.skipped) == (0, 5)
    assert {path: path.stat().st_mtime_ns for path in (out / "masks").iterdir()} == files
    shutil.copytree(images, tmp_path / "moved")  # other times and places, the same content
    assert run(everything(tmp_path / "moved", out, tiny_folder)).skipped == 5
    Image.fromarray(noise(9)).save(images / "2.png")
    (images / "sub/3.png").unlink()
    assert run(everything(images, out, tiny_folder)).total == 1
    after = table(out)
    assert "sub/3.png" not in set(after.input)  # the results are those of the source
    kept = ~before.input.isin(["2.png", "sub/3.png"])
    pd.testing.assert_frame_equal(
        after[after.input != "2.png"].reset_index(drop=True), before[kept].reset_index(drop=True)
    )
    fresh = tmp_path / "fresh"
    run(everything(images, fresh, tiny_folder))
    pd.testing.assert_frame_equal(table(out), table(fresh))
    assert run(everything(images, out, tiny_folder, options={"min_area": 2})).total == 4  # other options


def test_bad_inputs_are_listed_and_do_not_stop_the_rest(images, tmp_path, tiny_folder):
    (images / "bad.png").write_bytes(b"nothing")
    (images / "cut.png").write_bytes((images / "0.png").read_bytes()[:300])
    out = tmp_path / "out"
    assert run(everything(images, out, tiny_folder)).failed == 2
    failures = pd.read_parquet(out / "failures.parquet")
    assert failures.input.tolist() == ["bad.png", "cut.png"]
    assert all("png" in reason for reason in failures.reason)
    assert json.loads((out / "summary.json").read_text()) == {
        "inputs": 7, "finished": 5, "failed": 2, "frames": 5, "masks": len(table(out)), "parts": 4,
    }  # fmt: skip
    shutil.copy(images / "0.png", images / "bad.png")
    (images / "cut.png").unlink()
    progress = run(everything(images, out, tiny_folder))
    assert (progress.total, progress.done) == (1, 1)
    assert not (out / "failures.parquet").exists()


def test_prompts_of_each_image(images, tmp_path, tiny_folder):
    prompts = PromptTable()
    prompts.at("0.png", "box", 0).box = (4, 5, 30, 30)
    prompts.at("2.png", "a", 0).box = (4, 5, 30, 30)
    prompts.at("2.png", "b", 0).points = [(10, 10, 1), (30, 30, 0)]
    arguments = dict(prompts=prompts, model={"name": str(tiny_folder)})
    run(Run(str(images / "?.png"), str(tmp_path / "out"), make_task("prompts"), **arguments))
    rows, sam = table(tmp_path / "out"), masklet.load(tiny_folder)
    assert list(zip(rows.input, rows.object, strict=True)) == [("0.png", "box"), ("2.png", "a"), ("2.png", "b")]
    expected = [
        sam.image(images / "0.png").predict(box=(4, 5, 30, 30)),
        sam.image(images / "2.png").predict(box=(4, 5, 30, 30)),
        sam.image(images / "2.png").predict(points=[(10, 10, 1), (30, 30, 0)]),
    ]
    np.testing.assert_array_equal(masks_of(rows), np.concatenate([one.masks for one in expected]))
    prompts.at("2.png", "b", 0).points = [(12, 10, 1)]  # another prompt is another result
    assert run(Run(str(images / "?.png"), str(tmp_path / "out"), make_task("prompts"), **arguments)).total == 1


def track(video, out, tiny_folder, **arguments):
    prompts = PromptTable()
    prompts.at("clip.mkv", "ball", 1).points = [(20, 20, 1)]
    prompts.at("clip.mkv", 2, 0).box = (5, 5, 30, 30)
    chosen = {name: arguments.pop(name) for name in ("direction", "policy") if name in arguments}
    task = make_task("track", **chosen)
    return Run(str(video), str(out), task, prompts, {"name": str(tiny_folder)}, **arguments)


@pytest.mark.parametrize("direction", ["forward", "both"])
@pytest.mark.parametrize("chunk", [3, 4, 100])
def test_a_video_in_chunks_equals_one_run(video, tmp_path, tiny_folder, chunk, direction):
    progress = run(track(video, tmp_path / "out", tiny_folder, chunk_frames=chunk, direction=direction))
    assert progress.done == 1
    rows = table(tmp_path / "out")
    session = masklet.load(tiny_folder).video(video)
    session.prompt(1, "ball", points=[(20, 20)])
    session.prompt(0, 2, box=(5, 5, 30, 30))
    results = {result.index: result for result in session.track(direction=direction)}
    assert sorted(set(rows.frame)) == sorted(results)
    for frame, found in rows.groupby("frame"):
        result = results[frame]
        for (_, row), mask in zip(found.iterrows(), masks_of(found), strict=True):
            place = [str(object_id) for object_id in result.object_ids].index(row.object)
            np.testing.assert_array_equal(mask, result.masks.masks[place])
            assert row.object_score == result.object_scores[place]
            assert row.time == result.time
    assert not list((tmp_path / "out/.sessions").glob("*"))
    assert run(track(video, tmp_path / "out", tiny_folder, chunk_frames=chunk, direction=direction)).skipped == 1


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["samurai", "sam2long"])
def test_a_video_in_chunks_is_tracked_with_the_policy(video, tmp_path, tiny_folder, policy):
    run(track(video, tmp_path / "out", tiny_folder, chunk_frames=3, policy=policy))
    rows = table(tmp_path / "out")
    session = masklet.load(tiny_folder).video(video, policy=policy)
    session.prompt(1, "ball", points=[(20, 20)])
    session.prompt(0, 2, box=(5, 5, 30, 30))
    for result in session.track():
        found = rows[rows.frame == result.index]
        places = [[str(object_id) for object_id in result.object_ids].index(name) for name in found.object]
        assert sorted(places) == [0, 1]
        np.testing.assert_array_equal(masks_of(found), result.masks.masks[places])
        np.testing.assert_array_equal(found.object_score, result.object_scores[places])


@pytest.mark.parametrize(("direction", "every"), [("forward", 1), ("both", 1), ("both", 2)])
def test_the_session_of_a_long_video_does_not_grow(direction, every, tmp_path, tiny_folder, monkeypatch):
    """It has the frames that are read, and a worker that goes on with it gets the same masks."""
    path, frames, middle = tmp_path / "long.mkv", 100, 50
    with VideoWriter(path, 10) as writer:
        for number in range(frames):
            writer.write(np.roll(noise(0), 2 * number, axis=1))
    prompts = PromptTable()
    prompts.at("", "ball", middle).points = [(20, 20, 1)]
    prompts.at("", 2, middle + 10).box = (5, 5, 30, 30)
    held, taken_over = [], []
    plain = worker.Worker._save

    def save(self, session, key, chunk):
        plain(self, session, key, chunk)
        held.append(max(len(track.bank.frames) for track in session._tracks.objects.values()))
        if chunk == 3 and not taken_over:
            taken_over.append(chunk)
            raise KeyboardInterrupt

    monkeypatch.setattr(worker.Worker, "_save", save)
    task = make_task("track", direction=direction, every=every)
    work = Run(str(path), str(tmp_path / "out"), task, prompts, {"name": str(tiny_folder)}, chunk_frames=8)
    with pytest.raises(KeyboardInterrupt):
        run(work)
    assert run(work).done == 1
    assert max(held) <= 16 * (1 + (direction == "both"))
    monkeypatch.undo()
    run(Run(str(path), str(tmp_path / "whole"), task, prompts, {"name": str(tiny_folder)}))
    pd.testing.assert_frame_equal(table(tmp_path / "out"), table(tmp_path / "whole"))


def test_a_video_goes_on_from_the_chunk_that_was_saved(video, tmp_path, tiny_folder, monkeypatch):
    class Killed(BaseException):
        pass

    written = []
    plain = worker.write_part

    def write_part(storage, name, *arguments):
        written.append(name)
        if len(written) == 3:
            raise Killed
        plain(storage, name, *arguments)

    monkeypatch.setattr(worker, "write_part", write_part)
    with pytest.raises(Killed):
        run(track(video, tmp_path / "out", tiny_folder, chunk_frames=2))
    assert [name[-14:] for name in written] == ["000000.parquet", "000001.parquet", "000002.parquet"]
    steps = track(video, tmp_path / "out", tiny_folder, chunk_frames=2)()
    shown = [(step.frames, step.done, round(step.earlier, 3), round(step.worked, 3)) for step in steps]
    earlier = [(0, 0, 0, 0), (0, 0, 0.222, 0), (0, 0, 0.444, 0)]
    assert shown == [*earlier, (2, 0, 0.444, 0.222), (4, 0, 0.444, 0.444), (5, 1, 0.444, 0.556)]
    assert [name[-14:] for name in written[3:]] == ["000002.parquet", "000003.parquet", "000004.parquet"]
    monkeypatch.undo()
    run(track(video, tmp_path / "whole", tiny_folder))
    pd.testing.assert_frame_equal(table(tmp_path / "out"), table(tmp_path / "whole"))


def test_the_time_left_counts_parts_of_a_video(video, tmp_path, tiny_folder):
    steps = [
        (step.to_json()["inputs_per_second"] * step.seconds, step.seconds_left, step.seconds)
        for step in track(video, tmp_path / "out", tiny_folder, chunk_frames=3)()
    ]
    assert steps[0][:2] == (0, None)
    for worked, left, seconds in steps[1:-1]:
        assert left == pytest.approx(seconds / worked * (1 - worked), abs=0.01 * seconds + 0.001)
    assert steps[-1][1] == 0


def test_results_that_do_not_arrive_are_an_error(images, tmp_path, tiny_folder):
    """As on a cluster whose machines do not share the folder."""
    lost = [worker.Report(done=2, share=2), worker.Report(done=2, share=2), worker.Report(done=1, share=1)]
    with pytest.raises(MaskletError, match=r"5 of 5 inputs have no results in .*/out: expected a folder that all"):
        list(everything(images, tmp_path / "out", tiny_folder)(lambda work, blocks: lost))


def discover(source, out, tiny_folder):
    options = {**ALL, "min_object": 5, "patience": 50}
    return Run(str(source), str(out), make_task("discover", options, every=4), model={"name": str(tiny_folder)})


def test_objects_are_discovered_in_videos(video, tmp_path, tiny_folder):
    work = discover(video.parent, tmp_path / "out", tiny_folder)
    assert run(work).done == 1
    session = masklet.load(tiny_folder).video(video)
    expected = list(session.everything(**work.task.options))
    rows = table(tmp_path / "out")
    assert len(rows) == sum(len(result.object_ids) for result in expected) > 0


def test_polars_and_duckdb_read_the_results(images, video, tmp_path, tiny_folder):
    pl, duckdb = pytest.importorskip("polars"), pytest.importorskip("duckdb")
    run(everything(images, tmp_path / "images-out", tiny_folder))
    run(track(video, tmp_path / "video-out", tiny_folder, chunk_frames=4))
    for out in (tmp_path / "images-out", tmp_path / "video-out"):
        expected = table(out)
        order = ["input", "frame", "object"]
        found = pl.read_parquet(f"{out}/masks/*.parquet").sort(order)
        assert found["counts"].to_list() == expected.counts.tolist()
        assert found["box"].to_list() == [box.tolist() for box in expected.box]
        query = f"SELECT counts, area FROM '{out}/masks/*.parquet' ORDER BY {', '.join(order)}"
        assert duckdb.sql(query).fetchall() == list(zip(expected.counts, expected.area, strict=True))


def test_png_and_coco(images, tmp_path, tiny_folder):
    out = tmp_path / "out"
    for options in ({}, {"points_per_side": 1}):
        run(everything(images, out, tiny_folder, formats=("parquet", "coco", "png"), options=options))
        rows = table(out)
        data = json.loads((out / "annotations.json").read_text())
        sizes = {image["id"]: image for image in data["images"]}
        assert sorted(image["file_name"] for image in data["images"]) == sorted(set(rows.input))
        assert len({one["id"] for one in data["annotations"]}) == len(data["annotations"]) == len(rows)
        parts = [json.loads(path.read_text()) for path in (out / "coco").iterdir()]
        assert sum(len(part["annotations"]) for part in parts) == len(rows)
        for one in data["annotations"]:
            name = sizes[one["image_id"]]["file_name"]
            with Image.open(out / "png" / name / f"{one['object_id']}.png") as png:
                np.testing.assert_array_equal(np.array(png) > 0, coco_mask.decode(one["segmentation"]) > 0)
        assert len(list((out / "png").rglob("*.png/*.png"))) == len(rows)


def test_sources_and_results_in_other_file_systems(images, tmp_path, tiny_folder):
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.rm("/", recursive=True) if memory.find("/") else None
    for path in images.rglob("*.png"):
        memory.pipe_file(f"/bucket/images/{path.relative_to(images).as_posix()}", path.read_bytes())
    work = everything("memory://bucket/images", "memory://bucket/out", tiny_folder, formats=("parquet", "coco"))
    assert run(work).done == 5
    assert run(work).skipped == 5
    run(everything(images, tmp_path / "out", tiny_folder))
    rows = pd.concat(
        pd.read_parquet(io.BytesIO(memory.cat_file(name))) for name in memory.glob("/bucket/out/masks/*.parquet")
    )
    rows = rows.sort_values(["input", "frame", "object"]).reset_index(drop=True)
    pd.testing.assert_frame_equal(rows, table(tmp_path / "out"))


def test_lists_of_addresses(images, tmp_path, tiny_folder):
    (tmp_path / "list.txt").write_text("# two\nimages/0.png\n\nimages/sub/1.png\n")
    pd.DataFrame({"path": ["images/0.png", "images/sub/1.png"]}).to_parquet(tmp_path / "list.parquet")
    for name in ("list.txt", "list.parquet"):
        run(everything(tmp_path / name, tmp_path / f"out-{name}", tiny_folder))
        assert sorted(set(table(tmp_path / f"out-{name}").input)) == ["images/0.png", "images/sub/1.png"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nothing", "there is no .*nothing"),
        ("empty", "holds no files: expected files that end in"),
        ("text", "holds 1 other files"),
        ("empty.txt", "lists nothing"),
        ("twice.txt", "lists a.png more than once"),
        ("columns.parquet", "has the columns x: expected one called image or video"),
    ],
)
def test_a_source_without_inputs_is_refused(source, message, tmp_path, tiny_folder):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").mkdir()
    (tmp_path / "text/a.md").write_text("text")
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "twice.txt").write_text("a.png\na.png\n")
    pd.DataFrame({"x": [1]}).to_parquet(tmp_path / "columns.parquet")
    with pytest.raises(DataError, match=message):
        run(everything(tmp_path / source, tmp_path / "out", tiny_folder))


def test_arguments_that_do_not_fit_are_refused(images, tmp_path, tiny_folder):
    with pytest.raises(ConfigError, match="format is 'svg'"):
        everything(images, tmp_path / "out", tiny_folder, formats=("svg",))
    with pytest.raises(ConfigError, match="COCO data sets have no videos"):
        Run("videos", "out", make_task("discover"), formats=("coco",))
    with pytest.raises(ConfigError, match="the task track needs prompts"):
        Run("videos", "out", make_task("track"))
    with pytest.raises(ConfigError, match="the task prompts needs prompts"):
        Run("images", "out", make_task("prompts"))
    with pytest.raises(ConfigError, match="the task everything takes no prompts"):
        Run("images", "out", make_task("everything"), PromptTable())
    with pytest.raises(ConfigError, match="task is 'nothing'"):
        make_task("nothing")
    with pytest.raises(ConfigError, match="every is not an option of the task everything"):
        make_task("everything", every=3)
    with pytest.raises(ConfigError, match="policy is not an option of the task prompts"):
        make_task("prompts", policy="sam3")
    with pytest.raises(ConfigError, match="policy is 'sam9': expected 'paper', 'sam3'"):
        make_task("discover", policy="sam9")
    with pytest.raises(ConfigError, match="points_per_side is for automatic masks"):
        make_task("track", {"points_per_side": 3})
    prompts = PromptTable()
    prompts.at("other.png", 1, 0).box = (1, 2, 3, 4)
    with pytest.raises(PromptError, match=r"no prompt is for an input of .*, such as 0\.png"):
        run(Run(str(images), str(tmp_path / "out"), make_task("prompts"), prompts, {"name": str(tiny_folder)}))


def test_results_of_another_origin_are_not_touched(images, tmp_path, tiny_folder):
    other = tmp_path / "out/masks/part-1.parquet"
    other.parent.mkdir(parents=True)
    pd.DataFrame({"x": [1]}).to_parquet(other)
    content = other.read_bytes()
    with pytest.raises(DataError, match="which masklet batch did not write"):
        run(everything(images, tmp_path / "out", tiny_folder))
    assert other.read_bytes() == content


def test_a_place_that_cannot_be_written_is_refused_before_the_work(images, tmp_path, tiny_folder):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(MaskletError, match="cannot write"):
        run(everything(images, tmp_path / "out", tiny_folder))
    with pytest.raises(MaskletError, match="no address of a folder|needs another package"):
        Storage("nothing://bucket")


def test_a_missing_package_or_store_is_named_before_the_work(images, tmp_path, tiny_folder, monkeypatch):
    import fsspec

    class Locked(fsspec.AbstractFileSystem):
        protocol = "locked"

        def info(self, path, **options):
            raise RuntimeError("no credentials")  # not an OSError, as in botocore

        ls = info

    fsspec.register_implementation("locked", Locked, clobber=True)
    with pytest.raises(MaskletError, match="cannot read locked://bucket/images: no credentials"):
        run(everything("locked://bucket/images", tmp_path / "out", tiny_folder))
    with pytest.raises(MaskletError, match="cannot write to locked://bucket/out"):
        run(everything(images, "locked://bucket/out", tiny_folder))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MaskletError, match=r"pip install 'masklet\[batch\]'"):
        run(everything(images, tmp_path / "out", tiny_folder))


def test_an_error_while_writing_leaves_the_older_file(tmp_path):
    for address in (str(tmp_path), "memory://writing"):
        storage = Storage(address)
        storage.write("a/b.txt", b"before")
        with pytest.raises(TypeError), storage.writing("a/b.txt") as file:
            file.writelines([b"half", None])
        assert storage.read("a/b.txt") == b"before"
        assert storage.names("a/*") == ["a/b.txt"]
        storage.remove("a/b.txt")
        storage.remove("a/b.txt")
        assert storage.names("a/*") == []


def test_the_stamp_of_an_input_changes_with_its_content(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"one")
    one = Input("a.png", str(path))
    stamp = one.stamp()
    assert one.stamp() == stamp
    time.sleep(0.02)
    path.write_bytes(b"two")
    assert one.stamp() != stamp


def command(images, out, tiny_folder, *more):
    options = ["--points-per-side", "2", "--iou-threshold", "0", "--stability-threshold", "0", "--box-nms", "2"]
    return ["batch", str(images), "-o", str(out), "--model", str(tiny_folder), "--block", "2", *options, *more]


def test_the_command_line(images, tmp_path, tiny_folder):
    result = CliRunner().invoke(app, command(images, tmp_path / "out", tiny_folder, "--json"))
    assert result.exit_code == 0, result.output
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line["done"] for line in lines] == [0, 2, 4, 5]
    assert lines[-1]["seconds_left"] == 0
    assert list(lines[-1]["workers"].values())[0] > 0
    assert run(everything(images, tmp_path / "out", tiny_folder)).skipped == 5  # the same options as the command's
    run(everything(images, tmp_path / "api", tiny_folder))
    pd.testing.assert_frame_equal(table(tmp_path / "out"), table(tmp_path / "api"))
    (images / "bad.png").write_bytes(b"")
    result = CliRunner().invoke(app, command(images, tmp_path / "out", tiny_folder))
    assert result.exit_code == 1
    assert "1 input failed: see failures.parquet" in result.output
    assert "finished before" in result.output


def test_the_progress_in_a_log(images, tmp_path, tiny_folder, monkeypatch):
    monkeypatch.setattr("masklet.cli.batch.SECONDS_PER_LINE", 0)
    result = CliRunner().invoke(app, command(images, tmp_path / "out", tiny_folder))
    lines = result.stderr.splitlines()
    assert lines[0] == "masklet: 0 of 5 inputs"
    assert re.fullmatch(r"masklet: 4 of 5 inputs, [\d.]+ images/s, 0:00:\d\d left", lines[2])
    assert lines[-1].startswith("masklet: 5 of 5 inputs")


@pytest.mark.parametrize(
    ("words", "address"),
    [
        (["SOURCE", "--cluster"], None),
        (["--cluster", "SOURCE"], None),
        (["SOURCE", "--cluster", "--json"], None),
        (["SOURCE", "--cluster", "local"], "local"),
        (["--cluster", "auto", "SOURCE"], "auto"),
        (["--cluster", "192.0.2.1:6379", "SOURCE"], "192.0.2.1:6379"),
        (["SOURCE", "--cluster=ray://head:10001"], "ray://head:10001"),
    ],
)
def test_the_address_of_a_cluster_may_be_left_out(words, address, images, tmp_path, tiny_folder, monkeypatch):
    def connect(address):
        raise MaskletError(f"asked for {address}")

    monkeypatch.setattr("masklet.cluster.runs.connect_data", connect)
    words = [str(images) if word == "SOURCE" else word for word in words]
    result = CliRunner().invoke(app, ["batch", *words, "-o", str(tmp_path / "out"), "--model", str(tiny_folder)])
    assert str(result.exception) == f"asked for {address}"


def test_a_cluster_is_joined_or_started(monkeypatch):
    asked, running = [], []

    def init(address=None, num_cpus=None, log_to_driver=True):
        asked.append((address, num_cpus is not None))
        if address == "192.0.2.1:6379":
            raise ConnectionError("no answer")
        if running and address is None and num_cpus is not None:
            raise ValueError("num_cpus must not be provided")  # as Ray's, if it would join a cluster
        if "crashed" in running and address is None:
            raise ConnectionError("no answer")

    def connected(address):
        asked.clear()
        connect(address)
        return asked

    from masklet.cluster.connection import connect

    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(init=init, is_initialized=lambda: False))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert connected(None) == [(None, True)]
    running.append("well")
    assert connected(None) == [(None, True), (None, False)]
    running.append("crashed")
    assert connected(None) == [(None, True), (None, False), ("local", True)]
    assert connected("local") == [("local", True)]
    assert connected("auto") == [("auto", False)]
    monkeypatch.setenv("RAY_ADDRESS", "ray://head:10001")
    assert connected(None) == [("ray://head:10001", False)]
    with pytest.raises(
        MaskletError, match=r"cannot connect .*6379: no answer. If it has tokens, .*RAY_AUTH_MODE=token"
    ):
        connected("192.0.2.1:6379")


@pytest.mark.slow
def test_a_killed_run_is_completed_by_the_next(images, tmp_path, tiny_folder):
    for number in range(5, 16):
        Image.fromarray(noise(number)).save(images / f"{number}.png")
    out, kills = tmp_path / "out", 0
    arguments = [sys.executable, "-m", "masklet", *command(images, out, tiny_folder, "--json")]
    for delay in (0.0, 0.05, 0.1):
        process = subprocess.Popen(arguments, stdout=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"})
        assert process.stdout is not None
        process.stdout.readline()  # before the first part
        process.stdout.readline()
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
        process.stdout.close()
    assert kills
    assert not any(
        "unfinished" in path.name and path.suffix == ".parquet" for path in Path(out, "masks").glob("part-*")
    )
    run(everything(images, out, tiny_folder))
    run(everything(images, tmp_path / "whole", tiny_folder))
    pd.testing.assert_frame_equal(table(out), table(tmp_path / "whole"))


@pytest.mark.slow
def test_ctrl_c_ends_a_run_that_the_next_completes(images, tmp_path, tiny_folder):
    for number in range(5, 40):
        Image.fromarray(noise(number)).save(images / f"{number}.png")
    arguments = [sys.executable, "-m", "masklet", *command(images, tmp_path / "out", tiny_folder, "--json")]
    with subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    ) as process:
        process.stdout.readline()  # before the first part
        done = json.loads(process.stdout.readline())["done"]
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=300)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert run(everything(images, tmp_path / "out", tiny_folder)).skipped >= done
    run(everything(images, tmp_path / "whole", tiny_folder))
    pd.testing.assert_frame_equal(table(tmp_path / "out"), table(tmp_path / "whole"))
