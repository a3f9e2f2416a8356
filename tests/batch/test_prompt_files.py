"""Files of prompts: every format gives the same prompts, and what is wrong with a row is said."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask
from typer.testing import CliRunner

from masklet.batch.inputs import find_inputs
from masklet.batch.prompt_files import ObjectPrompt, prompts_of, read_prompt_file
from masklet.cli import app
from masklet.errors import DataError, MaskletError, PromptError
from masklet.video.writer import VideoWriter

pd = pytest.importorskip("pandas")
pytest.importorskip("pyarrow")

ROWS = [
    {"image": "a.jpg", "object": "cup", "x": 10, "y": 20.5},
    {"image": "a.jpg", "object": "cup", "x": 30, "y": 40, "label": 0},
    {"image": "a.jpg", "object": 7, "box": [1, 2, 30, 40]},
    {"image": "b.jpg", "points": [[1, 2], [3, 4, 0]]},
    {"image": "b.jpg", "box": [5, 6, 7, 8]},
]
EXPECTED = {
    "a.jpg": [
        ObjectPrompt("cup", 0, [(10.0, 20.5, 1), (30.0, 40.0, 0)]),
        ObjectPrompt(7, 0, box=(1.0, 2.0, 30.0, 40.0)),
    ],
    "b.jpg": [ObjectPrompt(1, 0, [(1.0, 2.0, 1), (3.0, 4.0, 0)]), ObjectPrompt(2, 0, box=(5.0, 6.0, 7.0, 8.0))],
}


def write(path, rows):
    frame = pd.DataFrame(rows)
    if path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".csv":  # lists as JSON text
        frame.map(lambda value: json.dumps(value) if isinstance(value, list) else value).to_csv(path, index=False)
    else:
        frame["object"] = frame["object"].map(lambda value: None if pd.isna(value) else str(value))
        frame.to_parquet(path)
    return str(path)


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv", ".parquet"])
def test_every_format_gives_the_same_prompts(suffix, tmp_path):
    table = read_prompt_file(write(tmp_path / f"prompts{suffix}", ROWS))
    assert {name: table.of(name) for name in EXPECTED} == EXPECTED
    assert table.of("c.jpg") == []


def test_a_list_whose_texts_are_no_unicode_is_refused(tmp_path):
    path = tmp_path / "list.parquet"
    pd.DataFrame({"image": ["aaaaaaaaaaaaaaaa.jpg", "b.jpg"]}).to_parquet(path, compression=None)
    path.write_bytes(path.read_bytes().replace(b"aaaaaaaaaaaaaaaa", b"\xff" * 16))
    with pytest.raises(DataError, match=r"list.parquet is not a Parquet file that pyarrow can read: .*UTF8"):
        find_inputs(str(path), [".jpg"])


def test_prompts_without_an_input_are_for_all_and_frames_are_kept():
    prompts = prompts_of([{"frame": 3.0, "object": 2, "x0": 1, "y0": 2, "x1": 3, "y1": 4}])
    assert prompts == [ObjectPrompt(2, 3, box=(1.0, 2.0, 3.0, 4.0))]


def test_masks_are_read_from_images_and_run_lengths(tmp_path):
    mask = np.zeros((12, 9), bool)
    mask[3:7, 2:5] = True
    Image.fromarray(mask).save(tmp_path / "mask.png")
    run = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    run = {"size": run["size"], "counts": run["counts"].decode()}
    for value in (str(tmp_path / "mask.png"), run, json.dumps(run)):
        (prompt,) = prompts_of([{"mask": value}])
        np.testing.assert_array_equal(prompt.keywords()["mask"] > 0, mask)


def test_coco_gives_boxes_masks_and_keypoints(tmp_path):
    mask = np.zeros((10, 10), np.uint8)
    mask[2:5, 3:6] = 1
    run = coco_mask.encode(np.asfortranarray(mask))
    data = {
        "images": [{"id": 5, "file_name": "a.jpg", "height": 10, "width": 10}],
        "annotations": [
            {"id": 1, "image_id": 5, "bbox": [1, 2, 3, 4], "keypoints": [4, 5, 2, 0, 0, 0]},
            {"id": 2, "image_id": 5, "segmentation": {"size": run["size"], "counts": run["counts"].decode()}},
            {"id": 3, "image_id": 5, "segmentation": [[3, 2, 6, 2, 6, 5, 3, 5]]},
        ],
    }
    (tmp_path / "coco.json").write_text(json.dumps(data))
    first, second, third = read_prompt_file(str(tmp_path / "coco.json")).of("a.jpg")
    assert first == ObjectPrompt(1, 0, [(4.0, 5.0, 1)], (1.0, 2.0, 4.0, 6.0))
    for prompt in (second, third):
        np.testing.assert_array_equal(prompt.keywords()["mask"], mask > 0)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"x": 3}, "both x and y"),
        ({"x": "a", "y": 2}, "'a' is not a number"),
        ({"x": float("inf"), "y": 2}, "x is inf"),
        ({"box": [1, 2, 3]}, "expected x0, y0, x1 and y1"),
        ({"box": "1 2"}, "expected JSON"),
        ({"x0": 1, "y0": 2}, "expected x0, y0, x1 and y1"),
        ({"frame": -1, "x": 1, "y": 2}, "frame is -1"),
        ({"frame": 0.5, "x": 1, "y": 2}, "frame is 0.5"),
        ({"object": 0.5, "x": 1, "y": 2}, "object is 0.5"),
        ({"points": [[1]]}, "a point is x, y, or x, y, label"),
        ({"points": [[1, 2, 5]]}, "label is 5"),
        ({"mask": {"counts": "x"}}, "neither the path of an image nor a COCO run length"),
        ({"size": 3, "x": 1, "y": 2}, "there is no column size"),
        ({"object": "cup"}, "there is no prompt in it"),
    ],
)
def test_an_invalid_row_is_refused_with_its_number(row, message):
    with pytest.raises(PromptError, match=r"^prompts, row 2: ") as caught:
        prompts_of([{"x": 1, "y": 2}, row])
    assert message in str(caught.value)


def test_a_second_box_or_mask_of_an_object_is_refused():
    for twice, message in (({"box": [1, 2, 3, 4]}, "second box"), ({"mask": "a.png"}, "second mask")):
        with pytest.raises(PromptError, match=message):
            prompts_of([{"object": 1, **twice}] * 2)


@pytest.mark.parametrize("name", ["none.json", "broken.json", "text.json", "empty.json", "list.txt", "broken.parquet"])
def test_a_file_that_cannot_be_read_is_refused(name, tmp_path):
    contents = {
        "broken.json": b"{",
        "text.json": b'"text"',
        "empty.json": b"[]",
        "list.txt": b"",
        "broken.parquet": b"PAR1",
    }
    if name in contents:
        (tmp_path / name).write_bytes(contents[name])
    with pytest.raises(PromptError, match=name.replace(".", r"\.")):
        read_prompt_file(str(tmp_path / name))


VALUES = st.one_of(
    st.none(), st.floats(), st.integers(), st.text(max_size=8), st.lists(st.floats(), max_size=4), st.booleans()
)
COLUMNS = st.sampled_from(["x", "y", "label", "points", "box", "mask", "object", "frame", "x0", "image"])


@given(st.lists(st.dictionaries(COLUMNS, VALUES, max_size=5), max_size=4))
def test_any_rows_give_prompts_or_a_clear_error(rows):
    try:
        prompts = prompts_of(rows)
    except MaskletError:
        return
    for prompt in prompts:
        json.dumps(prompt.to_json(), allow_nan=False)


def test_csv_with_unquoted_lists_is_refused(tmp_path):
    (tmp_path / "p.csv").write_text("image,box\na.jpg,[1,2,3,4]\n")
    with pytest.raises(PromptError, match="quotation marks"):
        read_prompt_file(str(tmp_path / "p.csv"))


def test_the_commands_for_images_and_videos_read_the_same_files(tiny_folder, tmp_path):
    cli = CliRunner()
    pixels = np.random.default_rng(0).integers(0, 255, (40, 56, 3), dtype=np.uint8)
    for name in ("a.png", "b.png", "c.png"):
        Image.fromarray(pixels).save(tmp_path / name)
    with VideoWriter(tmp_path / "clip.mkv") as writer:
        for _ in range(4):
            writer.write(pixels)
    rows = [
        {"image": "a.png", "object": "cup", "x": 10, "y": 20},
        {"image": "b.png", "object": 4, "box": [3, 3, 30, 30]},
        {"video": "clip.mkv", "object": "cup", "frame": 1, "x": 10, "y": 20},
    ]
    (tmp_path / "p.json").write_text(json.dumps(rows))
    model = ["--model", str(tiny_folder), "--prompts", str(tmp_path / "p.json")]
    images = [str(tmp_path / name) for name in ("a.png", "b.png")]
    result = cli.invoke(app, ["image", *images, *model, "--json", str(tmp_path / "json")])
    assert result.exit_code == 0, result.output
    for name, options in (("a", ["--point", "cup@10,20"]), ("b", ["--box", "4@3,3,30,30"])):
        one = tmp_path / f"{name}.json"
        cli.invoke(
            app, ["image", str(tmp_path / f"{name}.png"), "--model", str(tiny_folder), *options, "--json", str(one)]
        )
        found, expected = (
            json.loads(path.read_text())["annotations"] for path in (tmp_path / f"json/{name}.json", one)
        )
        assert [a["segmentation"] for a in found] == [a["segmentation"] for a in expected]
        assert [a.get("object_name") for a in found] == [a.get("object_name") for a in expected]
    for options, name in ((model, "file"), (["--model", str(tiny_folder), "--point", "cup@1:10,20"], "option")):
        result = cli.invoke(
            app, ["video", str(tmp_path / "clip.mkv"), *options, "--json", str(tmp_path / f"{name}.jsonl")]
        )
        assert result.exit_code == 0, result.output
    assert (tmp_path / "file.jsonl").read_text() == (tmp_path / "option.jsonl").read_text()
    for arguments, message in (
        (["image", str(tmp_path / "c.png"), *model], "has none for c.png"),
        (["image", *images[:1], *model, "--point", "1,2"], "either the file or these"),
        (["image", str(tmp_path / "clip.mkv"), *model], "is for frame 1, but it is an image"),
        (["video", str(tmp_path), *model], "has no prompts for"),
        (["video", "0", "--live", *model], "--prompts is for files"),
    ):
        result = cli.invoke(app, arguments)
        assert message in str(result.exception or result.output), result.output
