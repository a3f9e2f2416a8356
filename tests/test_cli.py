import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import masklet
from masklet import checkpoints, cli
from masklet.cli.prompts import parse_numbers
from masklet.errors import PromptError
from masklet.mask_prompts import read_mask_file
from masklet.masks import decode_rle
from masklet.segmenter import load

CLICK = "--point=30,20"


@pytest.fixture(scope="module")
def image_file(image, tmp_path_factory):
    path = tmp_path_factory.mktemp("images") / "square.png"
    Image.fromarray(image).save(path)
    return path


@pytest.fixture
def run(tiny_folder, image_file):
    """Run ``masklet image`` on the image with the tiny model."""

    def run(*options):
        arguments = ["image", image_file, "--model", tiny_folder, "--dtype", "float32", *options]
        return CliRunner().invoke(cli.app, list(map(str, arguments)), catch_exceptions=False)

    return run


@pytest.fixture
def refusal_of(tiny_folder, image_file, monkeypatch, capsys):
    """The error message of ``masklet``, one line, on bad input."""

    def refusal_of(*arguments):
        if not arguments or str(arguments[0]).startswith("-"):
            arguments = ("image", image_file, "--model", tiny_folder, *arguments)
        monkeypatch.setattr(sys, "argv", ["masklet", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        out, err = capsys.readouterr()
        assert caught.value.code == 2
        assert out == ""
        assert err.endswith("\n")
        assert err.count("\n") == 1
        assert err.startswith("masklet: ")
        return err.removeprefix("masklet: ").rstrip("\n")

    return refusal_of


# Output


def test_a_click_gives_a_row_that_cut_and_awk_can_read(run, encoded):
    result = run(CLICK)
    assert result.exit_code == 0
    header, row = (line.split("\t") for line in result.output.splitlines())
    assert header == ["object", "score", "area", "box"]
    best = encoded.predict([(30, 20)])
    assert row == ["0", f"{best.iou_scores[0]:.3f}", str(best.areas[0]), ",".join(f"{s:.0f}" for s in best.boxes[0])]


@pytest.mark.parametrize(
    ("options", "objects"),
    [
        ([CLICK, "--candidates"], ["0", "0", "0"]),
        ([CLICK, "--point", "70,40,0"], ["0"]),
        (["--box", "20,10,50,30"], ["0"]),
        (["--box", "20,10,50,30", "--box", "1,1,9,9"], ["0", "1"]),
        (["--box", "20,10,50,30", "--box", "1,1,9,9", "--candidates"], ["0", "0", "0", "1", "1", "1"]),
        (["--box", "20,10,50,30", CLICK, "--point", "40.5,20.5,0"], ["0"]),
        ([CLICK, "--resolution", "96"], ["0"]),
        ([CLICK, "--fill-holes", "50", "--remove-islands", "50", "--device", "cpu"], ["0"]),
    ],
)
def test_there_is_one_row_for_each_mask(run, options, objects):
    result = run(*options)
    assert result.exit_code == 0
    assert [line.split("\t")[0] for line in result.output.splitlines()[1:]] == objects


def test_on_a_terminal_there_is_a_table(monkeypatch, capsys):
    from masklet.cli.tables import show_table

    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    show_table(("name", "size"), [("tiny", 5)], title="[models]")
    out = capsys.readouterr().out
    assert "┃ name" in out or "│ tiny" in out


def test_the_models_are_listed_with_size_speed_licence_and_source():
    result = CliRunner().invoke(cli.app, ["models"])
    rows = [line.split("\t") for line in result.output.splitlines()]
    assert rows[0] == ["name", "parameters", "size", "speed", "licence", "from"]
    assert [row[0] for row in rows[1:]] == [model.name for model in checkpoints.KNOWN_MODELS]
    assert rows[2] == ["edgetam", "13.9 M", "56 MB", "fastest", "Apache-2.0", "yonigozlan/EdgeTAM-hf"]
    assert rows[3] == ["sam2.1-hiera-tiny", "39.0 M", "156 MB", "fast", "Apache-2.0", "facebook/sam2.1-hiera-tiny"]
    assert rows[-1][-2:] == ["CC-BY-SA-4.0, research and education", "wanglab/MedSAM2"]
    assert len(rows) == 1 + 2 + 8 + 1


def test_the_version_is_that_of_the_package():
    result = CliRunner().invoke(cli.app, ["--version"])
    assert (result.exit_code, result.output) == (0, f"masklet {masklet.__version__}\n")


@pytest.mark.parametrize("arguments", [["--help"], ["image", "--help"], ["models", "--help"]])
def test_there_is_help(arguments):
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == 0
    assert "Usage: " in result.output


# Files


def pixels_of(path):
    with Image.open(path) as image:
        return np.array(image)


def test_all_requested_files_are_written(run, encoded, tmp_path):
    out, mask_out, json_out = tmp_path / "a/overlay.png", tmp_path / "b/mask.png", tmp_path / "c/result.json"
    assert run(CLICK, "--out", out, "--mask-out", mask_out, "--json", json_out).exit_code == 0

    best = encoded.predict([(30, 20)])
    np.testing.assert_array_equal(pixels_of(out), np.array(best.overlay()))
    np.testing.assert_array_equal(pixels_of(mask_out) == 255, best.masks[0])
    (instance,) = json.loads(json_out.read_text())["annotations"]
    np.testing.assert_array_equal(decode_rle([instance["segmentation"]])[0], best.masks[0])
    assert instance["score"] == pytest.approx(best.iou_scores[0])
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == [
        "mask.png",
        "overlay.png",
        "result.json",
    ]


@pytest.mark.parametrize("suffix", [".jpg", ".webp", ".PNG", ".tif", ".bmp"])
def test_overlays_are_written_in_the_format_of_their_name(run, tmp_path, suffix):
    assert run(CLICK, "--out", tmp_path / f"overlay{suffix}").exit_code == 0
    assert pixels_of(tmp_path / f"overlay{suffix}").shape == (48, 80, 3)


def test_a_written_mask_can_be_a_prompt(run, encoded, tmp_path):
    run(CLICK, "--mask-out", tmp_path / "mask.png")
    result = run("--mask", tmp_path / "mask.png", "--mask-out", tmp_path / "better.png")
    assert result.exit_code == 0
    expected = encoded.predict(mask=encoded.predict([(30, 20)]).masks)
    np.testing.assert_array_equal(pixels_of(tmp_path / "better.png") == 255, expected.masks[0])


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(np.array([[0, 255]], np.uint8)),
        Image.fromarray(np.array([[0, 1]], np.uint8)),
        Image.fromarray(np.array([[0, 1]], np.uint16)),
        Image.fromarray(np.array([[False, True]])),
        Image.fromarray(np.array([[[0, 0, 0], [0, 0, 3]]], np.uint8)),
        Image.fromarray(np.array([[[9, 9, 9, 0], [9, 9, 9, 255]]], np.uint8)),
        Image.fromarray(np.array([[[0, 0, 0, 255], [9, 9, 9, 255]]], np.uint8)),
    ],
    ids=["white", "one", "one of 65535", "1 bit", "colour", "transparent", "opaque"],
)
def test_pixels_neither_black_nor_transparent_are_inside(image, tmp_path):
    image.save(tmp_path / "mask.png")
    assert (read_mask_file(tmp_path / "mask.png") > 0).tolist() == [[False, True]]


@pytest.mark.parametrize("greys", [[0, 3, 102, 204, 255], [0, 1, 2, 3]], ids=["soft", "numbers"])
def test_greys_of_a_mask_are_read_as_they_are_stored(greys, tmp_path):
    Image.fromarray(np.array([greys], np.uint8)).save(tmp_path / "mask.png")
    assert read_mask_file(tmp_path / "mask.png").tolist() == [greys]


def test_many_colours_of_a_mask_are_one_object(tmp_path):
    """An object that was cut out of its image, on black."""
    colours = np.stack([np.arange(100), np.full(100, 7), np.full(100, 9)], axis=1).astype(np.uint8)
    Image.fromarray(np.array([[[0, 0, 0], *colours]], np.uint8)).save(tmp_path / "mask.png")
    assert read_mask_file(tmp_path / "mask.png").tolist() == [[False] + [True] * 100]


# Refusals


@pytest.mark.parametrize("text", ["", "30", "30;20", "30,20,1,0", "a,b", "30,", ",20", "30 20"])
def test_a_malformed_point_is_refused(refusal_of, text):
    assert refusal_of("--point", text) == f"--point {text!r}: expected 2 or 3 numbers in pixels, separated by commas"


@pytest.mark.parametrize("text", ["", "1,2,3", "1,2,3,4,5", "1,2,3,x", "1 2 3 4"])
def test_a_malformed_box_is_refused(refusal_of, text):
    assert refusal_of("--box", text) == f"--box {text!r}: expected 4 numbers in pixels, separated by commas"


def test_numbers_may_have_spaces_around_them():
    assert parse_numbers("--point", " 30 , 20.5 ", (2, 3)) == (30, 20.5)
    with pytest.raises(PromptError):
        parse_numbers("--point", "1,2,3,4", (2, 3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "nothing to segment: give --point, --box or --mask (masklet image --help)"),
        (
            ["--point", "100,10"],
            "point (100, 10) is outside the image: x runs from 0 to 80, y from 0 to 48. Points are (x, y) in pixels of "
            "the original image, not (row, column) and not 0 to 1",
        ),
        (
            ["--point", "nan,10"],
            "point (nan, 10) is not a position: expected two finite numbers, x and y in pixels",
        ),
        (["--point", "30,20,7"], "label 7.0: expected 1 (on the object) or 0 (not on it)"),
        (
            ["--box", "50,10,20,30"],
            "box 0 is (50, 10, 20, 30): expected x0 < x1 and y0 < y1 (pixels of the 80×48 image; corners, not a width "
            "and a height)",
        ),
        (
            [CLICK, "--box", "1,1,9,9", "--box", "20,10,50,30"],
            "prompts are for different numbers of objects: points for 1, boxes for 2. Expected the same number in each",
        ),
        (
            [CLICK, "--resolution", "100"],
            "resolution is 100: expected the side of a square, a multiple of 32 pixels. For other shapes give "
            "resolution=(height, width) with each image",
        ),
        ([CLICK, "--device", "gpu"], "no device 'gpu': expected auto, cpu, cuda, cuda:N or mps"),
        (
            [CLICK, "--out", "overlay.xyz"],
            "--out overlay.xyz: expected a name that ends in .png, .jpg or the suffix of another image format",
        ),
        (
            [CLICK, "--out", "overlay"],
            "--out overlay: expected a name that ends in .png, .jpg or the suffix of another image format",
        ),
        (
            [CLICK, "--mask-out", "mask.jpg"],
            "--mask-out mask.jpg: expected a name that ends in .png, which is lossless",
        ),
    ],
)
def test_bad_input_is_one_line_and_status_2(refusal_of, options, message):
    assert refusal_of(*options) == message


def test_a_mask_of_another_size_is_refused(refusal_of, tmp_path):
    Image.new("L", (80, 47), 255).save(tmp_path / "mask.png")
    assert refusal_of("--mask", tmp_path / "mask.png").startswith(
        "mask has shape (1, 47, 80) of uint8: expected the image's size (48, 80) (rows, columns) for a binary or soft "
        "mask, or "
    )


def test_a_mask_that_numbers_objects_is_refused(refusal_of, tmp_path):
    numbers = Image.fromarray(np.tile(np.repeat(np.arange(4, dtype=np.uint8), 20), (48, 1)))
    numbers.save(tmp_path / "mask.png")
    assert refusal_of("--mask", tmp_path / "mask.png") == (
        "mask of the image's size holds values from 0 to 3: expected a binary mask of 0 and 1 (or 255), a soft mask "
        "(floats from 0 to 1, or grey values in uint8), or logits of size (16, 16). If the values are numbers of "
        "masks, select one: mask == 1"
    )
    numbers.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0])  # of DAVIS
    numbers.save(tmp_path / "palette.png")
    assert refusal_of("--mask", tmp_path / "palette.png") == (
        f"the mask {tmp_path / 'palette.png'} has 3 colours, like an image that numbers several objects: expected a "
        "mask of one object, black outside"
    )


def test_a_missing_mask_is_refused(refusal_of, tmp_path):
    assert refusal_of("--mask", tmp_path / "no.png").startswith(f"there is no image at {tmp_path / 'no.png'}.")


def test_a_missing_image_is_refused(refusal_of, tiny_folder):
    assert refusal_of("image", "no.jpg", CLICK, "--model", tiny_folder).startswith("there is no image at no.jpg.")


def test_a_truncated_image_is_refused(refusal_of, tiny_folder, tmp_path):
    path = tmp_path / "image.jpg"
    Image.effect_noise((200, 200), 50).save(path)
    path.write_bytes(path.read_bytes()[:-3000])
    message = refusal_of("image", path, CLICK, "--model", tiny_folder)
    assert message.startswith(f"{path} is truncated: the file ends before the image does")


def test_an_unknown_model_is_refused_with_the_nearest_known_one(refusal_of, image_file):
    message = refusal_of("image", image_file, CLICK, "--model", "sam2.1-hiera-tny")
    assert message.startswith("no model 'sam2.1-hiera-tny': did you mean sam2.1-hiera-tiny? ")


@pytest.mark.parametrize(
    ("option", "name"), [("--out", "overlay.png"), ("--mask-out", "mask.png"), ("--json", "r.json")]
)
def test_an_error_names_the_file_that_cannot_be_written(refusal_of, tmp_path, option, name):
    (tmp_path / "file").write_text("mine")
    assert refusal_of(CLICK, option, tmp_path / "file" / name).startswith(f"cannot write {tmp_path / 'file' / name}: ")
    (tmp_path / name).mkdir()
    assert refusal_of(CLICK, option, tmp_path / name) == f"cannot write {tmp_path / name}: Is a directory"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["file", name])
    assert (tmp_path / "file").read_text() == "mine"


def test_no_file_overwrites_the_image_or_another_output(refusal_of, image_file, tmp_path):
    one, lost = tmp_path / "one.png", "which would be overwritten: expected another name"
    before = image_file.read_bytes()
    refusal = refusal_of("image", image_file, CLICK, "--out", image_file)
    assert refusal == f"--out {image_file} is an input, {lost}"
    refusal = refusal_of("image", image_file, CLICK, "--out", one, "--mask-out", one)
    assert refusal == f"--mask-out {one} is also written by --out, {lost}"
    assert image_file.read_bytes() == before


@pytest.mark.parametrize(
    "arguments",
    [["image"], ["image", "a.jpg", "--resolution", "large"], ["image", "a.jpg", "--pt", "1,2"], ["imagine"], []],
)
def test_a_command_line_that_cannot_be_parsed_is_status_2_too(arguments):
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == 2


# As a separate process


@pytest.fixture(scope="module")
def command():
    found = shutil.which("masklet", path=str(Path(sys.executable).parent))
    return [found] if found else [sys.executable, "-c", "from masklet.cli import main; main()"]


def test_in_a_pipe_the_text_is_plain_and_errors_go_to_stderr(command, tiny_folder, image_file, tmp_path):
    arguments = [*command, "image", str(image_file), "--model", str(tiny_folder), "--json", str(tmp_path / "r.json")]
    good = subprocess.run([*arguments, CLICK], capture_output=True, text=True, timeout=120)
    assert (good.returncode, good.stderr) == (0, "")
    assert [line.count("\t") for line in good.stdout.splitlines()] == [3, 3]
    assert "\x1b" not in good.stdout
    assert (
        json.loads((tmp_path / "r.json").read_text())["annotations"][0]["area"]
        == load(tiny_folder).image(image_file).predict([(30, 20)]).areas.item()
    )

    bad = subprocess.run([*arguments, "--point", "30"], capture_output=True, text=True, timeout=120)
    assert (bad.returncode, bad.stdout) == (2, "")
    assert bad.stderr.startswith("masklet: --point '30': expected 2 or 3 numbers in pixels")
    assert bad.stderr.count("\n") == 1
