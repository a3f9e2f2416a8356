"""masklet image with several images, several objects, and the standard input and output."""

import io
import json
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import shellingham
from PIL import Image
from pycocotools.coco import COCO
from typer.testing import CliRunner

from masklet import cli
from masklet.cli.outputs import OutputError, write_image
from masklet.cli.prompts import read_prompts
from masklet.cli.sources import find_sources
from masklet.errors import ImageError, MaskletError, PromptError
from masklet.results import Masks

CLICK = "--point=30,20"


@pytest.fixture
def images(image, tmp_path, monkeypatch):
    """A working folder with images in two folders; b/2.png is the mirror image of the others."""
    for name, pixels in (("a/1.png", image), ("a/10.png", image), ("a/9.png", image), ("b/2.png", image[:, ::-1])):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(np.ascontiguousarray(pixels)).save(tmp_path / name)
    (tmp_path / "a/notes.txt").write_text("mine")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(tiny_folder):
    def run(*arguments, content=None):
        command = ["image", *map(str, arguments), "--model", str(tiny_folder), "--dtype", "float32"]
        return CliRunner().invoke(cli.app, command, input=content)

    return run


def columns_of(result, *numbers):
    rows = [line.split("\t") for line in result.stdout.splitlines()]
    return [tuple(row[number] for number in numbers) for row in rows[1:]]


def files_in(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


# Several images


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["a/1.png", "a/9.png"], ["1.png", "9.png"]),
        (["a"], ["1.png", "9.png", "10.png"]),
        (["a/*.png"], ["1.png", "9.png", "10.png"]),
        (["a/1*"], ["1.png", "10.png"]),
        (["a/[19].png"], ["1.png", "9.png"]),
        (["a/1.png", "b"], ["a/1.png", "b/2.png"]),
        (["**/*.png"], ["a/1.png", "a/9.png", "a/10.png", "b/2.png"]),
        (["a/9.png", "a/*.png", "./a/1.png"], ["9.png", "1.png", "10.png"]),
        (["b/2.*"], ["2.png"]),
    ],
)
def test_images_are_named_by_files_folders_and_patterns(images, arguments, names):
    sources = find_sources(arguments)
    assert sources.is_batch
    assert sources.names == names


def test_a_pattern_does_not_match_results(run, images):
    for _ in range(2):
        result = run("**/*.png", CLICK, "-o", "b/overlays", "--mask-out", "masks")
        assert columns_of(result, 0) == [("a/1.png",), ("a/9.png",), ("a/10.png",), ("b/2.png",)]
    assert files_in(images / "b") == [
        "2.png",
        *(f"overlays/{n}" for n in ("a/1.png", "a/10.png", "a/9.png", "b/2.png")),
    ]


def test_an_empty_argument_is_not_the_working_folder(run, images):
    Image.new("RGB", (80, 48)).save("c.png")
    assert isinstance(run("", CLICK).exception, ImageError)


def test_an_image_that_a_format_cannot_hold_is_an_error(images, tmp_path):
    for name in ("wide.webp", "wide.gif", "wide.jpg"):
        with pytest.raises(OutputError, match=f"^cannot write {name}: "):
            write_image(Path(name), Image.new("RGB", (70000, 1)))
    assert not list(tmp_path.glob("*wide*"))


def test_one_file_is_one_image_even_if_its_name_looks_like_a_pattern(images):
    Path("a/1.png").rename("a/[1].png")
    sources = find_sources(["a/[1].png"])
    assert (sources.is_batch, sources.names) == (False, ["[1].png"])


def test_outputs_with_the_same_stem_keep_their_suffix(images):
    for name in ("a/1.jpg", "a/.1", "a/X.png", "a/x.jpg"):
        Image.new("RGB", (8, 8)).save(name, "PNG")
    sources = find_sources(["a/1.jpg", "a/1.png", "a/.1", "a/X.png", "a/x.jpg", "a/9.png"])
    assert sources.stems == ["1.jpg", "1.png", ".1", "X.png", "x.jpg", "9"]


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("c/*.png", "no image matches c/*.png. Looked in "),
        ("a/*.txt", "no image matches a/*.txt, but other files do: expected .avif, "),
        (".", "no images in .: expected files that end in .avif, "),
    ],
)
def test_a_pattern_or_folder_without_images_is_refused(images, argument, message):
    with pytest.raises(ImageError) as caught:
        find_sources([argument])
    assert str(caught.value).startswith(message)


def test_each_image_has_outputs_of_its_own(run, images, encoded):
    result = run("a/1.png", "b", CLICK, "-o", "overlays", "--mask-out", "masks", "--json", "coco", "--masks", "each")
    assert result.exit_code == 0, result.output
    assert columns_of(result, 0, 1) == [("a/1.png", "0"), ("b/2.png", "0")]
    for folder, suffix in (("overlays", ".png"), ("masks", ".png"), ("coco", ".json"), ("each", "/000.png")):
        assert files_in(images / folder) == [f"a/1{suffix}", f"b/2{suffix}"]
    expected = encoded.predict([(30, 20)])
    np.testing.assert_array_equal(np.array(Image.open("masks/a/1.png")) > 0, expected.masks[0])
    np.testing.assert_array_equal(np.array(Image.open("each/a/1/000.png")) > 0, expected.masks[0])
    first, second = (json.loads(Path(f"coco/{name}.json").read_text()) for name in ("a/1", "b/2"))
    assert [data["images"][0]["file_name"] for data in (first, second)] == ["a/1.png", "b/2.png"]
    assert first["images"][0]["id"] == first["annotations"][0]["image_id"] != second["images"][0]["id"]
    assert first["annotations"][0]["segmentation"] != second["annotations"][0]["segmentation"]


def test_a_failure_does_not_stop_the_others(run, images):
    Path("a/1.png").write_bytes(b"no image")
    Image.new("RGB", (9, 9)).save("a/9.png")  # the point is outside
    result = run("a", "missing.png", CLICK, "--json", "coco")
    assert result.exit_code == 1
    assert columns_of(result, 0) == [("a/10.png",)]
    assert files_in(images / "coco") == ["a/10.json"]
    first, second, third = result.stderr.splitlines()
    assert first.startswith("masklet: a/1.png: a/1.png is not an image")
    assert second.startswith("masklet: a/9.png: point (30, 20) is outside the image")
    assert third.startswith("masklet: missing.png: there is no image at missing.png")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-o", "overlay.png"], "--out overlay.png is the name of a file: expected a folder, since "),
        (["--json", "r.jsonl"], "--json r.jsonl is the name of a file: expected a folder, since "),
        (["-o", "a/notes.txt"], "--out a/notes.txt is a file: expected a folder, since "),
        (["-o", "-"], "--out -: expected a folder, since there are several images"),
        (["--mask-out", "-"], "--mask-out -: expected a folder, since there are several images"),
        (["--masks", "-"], "--masks -: expected a folder, since there is a PNG for each mask"),
        (["--masks", "a"], "--masks a is the folder of the images: expected another folder"),
    ],
)
def test_several_images_need_folders(run, images, options, message):
    result = run("a", CLICK, *options)
    assert isinstance(result.exception, MaskletError)
    assert str(result.exception).startswith(message)


def test_masks_of_an_image_never_lie_among_those_of_another(run, images):
    Image.new("RGB", (80, 48)).save("b.png")
    result = run("b.png", "b/2.png", CLICK, "--masks", "masks")
    assert str(result.exception) == (
        "the masks of b/2.png would lie inside the folder of another image's masks: expected one command for each "
        "folder"
    )


# Several objects


def test_prompts_name_their_objects(run, images, encoded, tmp_path):
    Image.fromarray(encoded.predict([(70, 40)]).masks[0]).save("cup@home.png")
    prompts = ["--point", "cup@30,20", "--point", "7@40,25", "--point", "cup@70,40,0", "--box", "ball@20,10,50,30"]
    result = run("a/1.png", *prompts, "--mask", "rough@cup@home.png", "--json", "r.json", "--json", "r.json")
    assert result.exit_code == 0, result.output
    assert columns_of(result, 0) == [("cup",), ("7",), ("ball",), ("rough",)]
    expected = [
        encoded.predict([(30, 20), (70, 40, 0)]),
        encoded.predict([(40, 25)]),
        encoded.predict(box=(20, 10, 50, 30)),
        encoded.predict(mask=np.array(Image.open("cup@home.png"))),
    ]
    data = json.loads(Path("r.json").read_text())
    found = Masks.from_coco(data)
    np.testing.assert_array_equal(found.masks, np.concatenate([masks.masks for masks in expected]))
    assert found.object_ids.tolist() == [0, 7, 1, 2]
    categories = {category["id"]: category["name"] for category in data["categories"]}
    assert [categories[a["category_id"]] for a in data["annotations"]] == ["cup", "object", "ball", "rough"]
    assert [a.get("object_name") for a in data["annotations"]] == ["cup", None, "ball", "rough"]
    assert COCO("r.json").getCatIds(catNms=["ball"]) == [data["annotations"][2]["category_id"]]


def test_the_json_may_hold_polygons(run, images, encoded):
    assert run("a/1.png", CLICK, "--json", "r.json", "--polygons", "0").exit_code == 0
    assert run("a/1.png", CLICK, "--json", "simple.json", "--polygons", "2").exit_code == 0
    exact, simple = (json.loads(Path(name).read_text())["annotations"][0] for name in ("r.json", "simple.json"))
    expected = encoded.predict([(30, 20)])
    np.testing.assert_array_equal(Masks.from_coco([exact], size_hw=(48, 80)).masks, expected.masks)
    assert sum(map(len, simple["segmentation"])) < sum(map(len, exact["segmentation"]))
    assert str(run("a/1.png", CLICK, "--polygons", "2").exception) == "--polygons is for --json: give both"
    refusal = str(run("a/1.png", CLICK, "--json", "r.json", "--polygons", "nan").exception)
    assert refusal == "--polygons nan: expected a number of pixels, 0 or more"


def test_an_object_may_be_called_like_those_without_a_name(run, images):
    run("a/1.png", "--point", "object@30,20", "--point", "3@40,25", "--json", "r.json")
    data = json.loads(Path("r.json").read_text())
    assert data["categories"] == [{"id": 1, "name": "object"}]
    assert [a["category_id"] for a in data["annotations"]] == [1, 1]


def test_candidates_of_named_objects_keep_their_object(run, images):
    result = run("a/1.png", "--point", "5@30,20", "--point", "cup@40,25", "--candidates")
    assert columns_of(result, 0) == [("5",)] * 3 + [("cup",)] * 3


def test_the_ids_of_names_are_free_numbers():
    prompts = read_prompts(["cup@1,2", "0@1,2", "01@3,4", "1@3,4,0", "ball@1,2", "2000000000000@1,1"], [], [])
    assert prompts.ids == {"cup": 2, "0": 0, "1": 1, "ball": 3, "2000000000000": 4}
    assert prompts.objects["1"].points == [(3, 4), (3, 4, 0)]


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        (([], [], []), "nothing to segment: give --point, --box or --mask (masklet image --help)"),
        ((["@1,2"], [], []), "--point '@1,2': expected the name of an object before @, as in cup@1,2"),
        ((["cup@1"], [], []), "--point 'cup@1': expected 2 or 3 numbers in pixels, separated by commas"),
        ((["cup@"], [], []), "--point 'cup@': expected 2 or 3 numbers in pixels, separated by commas"),
        ((["1,2"], ["cup@1,2,3,4"], []), "some prompts name their object and others do not: expected OBJECT@ before "),
        (([], ["a@1,2,3,4", "a@1,2,3,4"], []), "object 'a' has several boxes or masks: expected one, and other names"),
        (([], [], ["a@x.png", "a@y.png"]), "object 'a' has several boxes or masks: expected one, and other names"),
    ],
)
def test_prompts_that_make_no_sense_are_refused(prompts, message):
    with pytest.raises(PromptError) as caught:
        read_prompts(*prompts)
    assert str(caught.value).startswith(message)


def test_an_error_names_the_object(run, images):
    result = run("a/1.png", "--point", "cup@30,20", "--point", "ball@300,20")
    assert str(result.exception).startswith("object 'ball': point (300, 20) is outside the image")


# Standard input and output


def test_an_image_comes_from_the_standard_input(run, images, encoded):
    result = run("-", CLICK, "--json", "r.json", content=Path("a/1.png").read_bytes())
    assert result.exit_code == 0, result.output
    data = json.loads(Path("r.json").read_text())
    assert data["images"][0]["file_name"] == "stdin"
    np.testing.assert_array_equal(Masks.from_coco(data).masks, encoded.predict([(30, 20)]).masks)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "nothing came from the standard input"), (b"text", "the standard input is not an image")],
)
def test_a_standard_input_without_an_image_is_refused(run, content, message):
    assert str(run("-", CLICK, content=content).exception).startswith(message)


def test_the_standard_output_has_the_image_and_nothing_else(run, images, encoded):
    expected = encoded.predict([(30, 20)])
    overlay, mask = (
        Image.open(io.BytesIO(run("a/1.png", CLICK, option, "-").stdout_bytes)) for option in ("-o", "--mask-out")
    )
    assert (overlay.format, mask.format) == ("PNG", "PNG")
    np.testing.assert_array_equal(np.array(overlay), np.array(expected.overlay()))
    np.testing.assert_array_equal(np.array(mask) > 0, expected.masks[0])


def test_the_standard_output_has_a_line_of_json_for_each_image(run, images):
    one, several = run("a/1.png", CLICK, "--json", "-"), run("a", "b", CLICK, "--jsonl", "-")
    (data,) = map(json.loads, one.stdout.splitlines())
    lines = [json.loads(line) for line in several.stdout.splitlines()]
    assert [line["images"][0]["file_name"] for line in lines] == ["a/1.png", "a/9.png", "a/10.png", "b/2.png"]
    assert lines[0]["annotations"][0]["segmentation"] == data["annotations"][0]["segmentation"]


def test_results_go_to_devices_and_pipes(run, images, tmp_path):
    os.mkfifo("pipe.json")
    reader = os.open("pipe.json", os.O_RDONLY | os.O_NONBLOCK)
    assert run("a/1.png", CLICK, "--json", "pipe.json").exit_code == 0
    assert json.loads(os.read(reader, 100_000))["images"][0]["file_name"] == "1.png"
    os.close(reader)
    assert json.loads(run("a/1.png", CLICK, "--json", "/dev/stdout").stdout)["images"][0]["file_name"] == "1.png"


@pytest.mark.parametrize("command", ["image", "everything", "video"])
def test_the_examples_in_the_help_name_existing_options(command):
    help_text = CliRunner(env={"COLUMNS": "300"}).invoke(cli.app, [command, "--help"]).stdout
    options, _, examples = help_text.rpartition("╯")
    used = set(re.findall(r"(?<= )--?[a-z][a-z-]*", examples))
    assert used
    assert used <= set(re.findall(r"(?<=[ ,])--?[a-z][a-z-]*", options))


def test_the_standard_output_takes_one_output_and_no_terminal_takes_an_image(run, images, monkeypatch):
    assert str(run("a/1.png", CLICK, "-o", "-", "--json", "-").exception) == (
        "--json - is also written by --out, which would be overwritten: expected another name"
    )
    monkeypatch.setattr("masklet.cli.outputs.sys.stdout", type("Terminal", (), {"isatty": lambda: True}))
    with pytest.raises(MaskletError, match="^--out - would write an image to the terminal: redirect it "):
        cli.outputs.check_image_suffix("--out", Path("-"))


# The command as a process runs it


@pytest.fixture
def main(monkeypatch, capfd):
    """Runs ``main`` and returns its status and what it printed."""

    def main(*arguments):
        monkeypatch.setattr(sys, "argv", ["masklet", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        return (caught.value.code, *capfd.readouterr())

    return main


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["image"], "Missing argument 'IMAGE'. (masklet image --help)"),
        (["image", "a.png", "--pont", "1,2"], "No such option: --pont: did you mean --point? (masklet image --help)"),
        (["video", "a.mp4", "--xyz"], "No such option: --xyz (masklet video --help)"),
        (["everything", "a.png", "--out"], "Option '--out' requires an argument. (masklet everything --help)"),
        (["eval"], "Missing option '--data'. (masklet eval --help)"),
        (["--foo"], "No such option: --foo (masklet --help)"),
    ],
)
def test_errors_of_usage_point_to_the_help_of_the_command(main, arguments, message):
    assert main(*arguments) == (2, "", f"masklet: {message}\n")


def test_a_misspelt_command_is_corrected(main):
    status, _, err = main("imgae", "a.png")
    assert status == 2
    assert err.startswith("masklet: No such command 'imgae'")
    assert err.endswith("(masklet --help)\n")


def test_ctrl_c_ends_with_130(main, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("masklet.segmenter.load", interrupt)
    status, out, _ = main("image", "a.png", CLICK)
    assert (status, out) == (130, "")


def test_other_encodings_do_not_stop_the_output(monkeypatch, tiny_folder, images):
    Path("a/1.png").rename("a/é×.png")
    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, encoding="ascii"))
    monkeypatch.setattr(sys, "argv", ["masklet", "image", "a/é×.png", "a/9.png", CLICK, "--model", str(tiny_folder)])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert not caught.value.code
    assert shown.getvalue().decode("ascii").splitlines()[1].startswith("\\xe9\\xd7.png\t0\t")


def test_a_closed_pipe_is_quiet(monkeypatch, capfd):
    reader, writer = os.pipe()
    os.close(reader)
    monkeypatch.setattr(sys, "stdout", os.fdopen(writer, "w"))
    monkeypatch.setattr(sys, "argv", ["masklet", "--version"])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    sys.stdout.close()  # as Python does when it exits
    assert caught.value.code == 1
    assert capfd.readouterr().err == ""


def test_shells_complete_commands_options_and_values(monkeypatch, main):
    def completions(*words):
        monkeypatch.setenv("_MASKLET_COMPLETE", "complete_bash")
        monkeypatch.setenv("COMP_WORDS", " ".join(("masklet", *words)))
        monkeypatch.setenv("COMP_CWORD", str(len(words)))
        return set(main()[1].split())

    assert completions("ev") == {"everything", "eval"}
    assert {"--point", "--points-per-side", "--json"} & completions("image", "--") == {"--point", "--json"}
    assert completions("image", "--device", "c") == {"cpu", "cuda"}
    assert completions("everything", "--model", "sam2.1-hiera-t") == {"sam2.1-hiera-tiny"}


def test_completion_is_installed_on_request_only(main, monkeypatch):
    # Typer asks which shell it was started from even if one is named; tests may be started by sh or by none.
    monkeypatch.setattr(shellingham, "detect_shell", lambda *_, **__: ("bash", "/bin/bash"))
    status, script, _ = main("--show-completion", "bash")
    assert status == 0
    assert "complete -o default -F _masklet_completion masklet" in script


# Values of pixels


@pytest.fixture
def dark(image, images):
    """Images of 16 bits that use 12 of them, and the image of 8 bits they are made of."""
    for name in ("x", "y"):
        Image.fromarray(image[..., 0].astype(np.uint16)).save(f"{name}.png")
    Image.fromarray(image[..., 0]).save("bright.png")
    return ["x.png", "y.png"]


def test_values_of_16_bits_are_scaled_as_requested(run, dark):
    expected = columns_of(run("bright.png", CLICK), 1, 2, 3)
    result = run(dark[0], CLICK, "--value-range", "0,255")
    assert (columns_of(result, 1, 2, 3), result.stderr) == (expected, "")
    assert columns_of(run(dark[0], CLICK, "--value-range", "0,65535"), 1, 2, 3) != expected


def test_a_warning_names_each_image(run, dark):
    lines = run(*dark, CLICK).stderr.splitlines()
    assert [line[:33] for line in lines] == [f"masklet: {name}: nearly all values" for name in dark]


def test_bands_are_selected(run, images, image):
    Image.fromarray(image[..., ::-1].copy()).save("bgr.png")
    expected = columns_of(run("a/1.png", CLICK), 1, 2, 3)
    assert columns_of(run("bgr.png", CLICK, "--bands", "2,1,0"), 1, 2, 3) == expected
    assert columns_of(run("bgr.png", CLICK), 1, 2, 3) != expected


def test_missing_values_are_black(run, images, image):
    black, marked = image[..., 0].copy(), image[..., 0].astype(np.float32) / 255
    black[:, :30], marked[:, :30] = 0, np.nan
    Image.fromarray(black).save("black.png")
    Image.fromarray(marked).save("marked.tif")
    result = run("marked.tif", CLICK, "--nodata", "nan")
    assert columns_of(result, 1, 2, 3) == columns_of(run("black.png", CLICK), 1, 2, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--value-range", "dark"], "--value-range dark: expected two numbers, as in 0,4095, or auto"),
        (["--value-range", "1"], "value_range is (1.0,): expected (low, high), two numbers of which the second is "),
        (["--value-range", "9,1"], "value_range is (9.0, 1.0): expected (low, high), two numbers of which the second "),
        (["--bands", "red"], "--bands red: expected numbers, as in 0 or 2,1,0"),
        (["--bands", "0,1"], "bands is (0, 1): expected the channel that becomes a greyscale image, or the three "),
    ],
)
def test_options_of_values_are_checked_before_the_model_is_loaded(run, images, options, message, monkeypatch):
    monkeypatch.setattr("masklet.segmenter.load", lambda *_, **__: pytest.fail("the model was loaded"))
    assert str(run("a/1.png", CLICK, *options).exception).startswith(message)
