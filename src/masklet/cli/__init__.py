"""The command line: parses arguments, calls the public API, and reports. It contains no segmentation."""

from __future__ import annotations

import io
import os
import sys
import warnings
from difflib import get_close_matches
from functools import partial
from typing import Any

import typer

from masklet.cli import batch, evaluation, everything, export, image, models, serve, train, video
from masklet.cli.cluster import CommandOnRay
from masklet.errors import MaskletError
from masklet.version import __version__

USAGE_ERROR: Any = typer.BadParameter.__base__
"""The parser's error for wrong options, a class that newer versions of Typer do not export."""

EXAMPLES = {
    "image": """
masklet image truck.jpg --box 40,130,862,440 -o overlay.png

masklet image truck.jpg --point truck@410,315 --point wheel@160,340 --json truck.json

masklet image 'images/*.jpg' --point 410,315 --mask-out masks -o overlays

curl https://example.org/truck.jpg | masklet image - --point 410,315 --mask-out - > mask.png
""",
    "everything": """
One image: masklet everything truck.jpg -o overlay.png --json truck.json

A folder: masklet everything images -o overlays --json coco --masks masks

A large image: masklet everything field.tif --tile 1024 --json field.jsonl

A video: masklet everything cups.mp4 --every 30 -o masked.mp4 --json masks.jsonl
""",
    "video": """
masklet video cups.mp4 --point ball@0:60,60 --box cup@0:30,20,120,110 -o masked.mp4

masklet video rtsp://192.168.1.20/stream --live --snapshot frame.png

masklet video rtsp://192.168.1.20/stream --live --point cup@210,350 -o recording.mp4
""",
    "batch": """
masklet batch images --out masks --format parquet,coco

masklet batch s3://bucket/images --out s3://bucket/masks --cluster auto --gpus-per-worker 1

masklet batch videos --out tracks --task track --prompts prompts.csv
""",
    "export": """
masklet export sam2.1-hiera-tiny --out onnx

masklet export sam2.1-hiera-tiny --out web --layout transformersjs --precision int8
""",
}
"""Shown below the help of a command."""

app = typer.Typer(
    name="masklet",
    help="SAM 2: segments objects of images and videos from points, boxes or rough masks.",
    pretty_exceptions_enable=False,
)
app.command("image", epilog=EXAMPLES["image"])(image.segment)
app.command("everything", epilog=EXAMPLES["everything"])(everything.find_everything)
app.command("video", epilog=EXAMPLES["video"])(video.track)
app.command("batch", cls=CommandOnRay, epilog=EXAMPLES["batch"])(batch.run_batch)
app.command("train")(train.train)
app.command("eval")(evaluation.evaluate)
app.command("serve", cls=CommandOnRay)(serve.serve)
app.command("export", epilog=EXAMPLES["export"])(export.export)
app.command("models")(models.list_models)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"masklet {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: bool = typer.Option(False, "--version", callback=_show_version, is_eager=True, help="Show the version."),
) -> None:
    """Options of all commands."""


def main() -> None:
    """Runs a command. Invalid input ends it with one line and exit status 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # file names and × must not stop a terminal of another encoding
            stream.reconfigure(errors="backslashreplace")
    warnings.showwarning = partial(_show_warning, warnings.showwarning)
    try:
        status = app(sys.argv[1:] or ["--help"], prog_name="masklet", standalone_mode=False)
        sys.stdout.flush()
        sys.exit(status)
    except MaskletError as error:
        message = str(error)
    except USAGE_ERROR as error:
        message = _usage_message(error)
    except (typer.Abort, KeyboardInterrupt):  # Ctrl-C
        sys.exit(130)
    except BrokenPipeError:  # the reader has enough, as in masklet models | head -1
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left is written when Python exits
        sys.exit(1)
    print("masklet:", " ".join(message.split()), file=sys.stderr)
    sys.exit(2)


def _show_warning(show_other: Any, message: Warning | str, category: type[Warning], *place: Any) -> None:
    """Prints a warning of masklet without the line of code that it came from."""
    if category.__module__.startswith("masklet."):
        print(f"masklet: {message}", file=sys.stderr)
    else:
        show_other(message, category, *place)


def _commands() -> set[str]:
    return {command.name for command in app.registered_commands if command.name}


def _usage_message(error: Any) -> str:
    """What is wrong with the options, the nearest option if one is misspelt, and whose help to read."""
    message, context = error.format_message(), error.ctx
    if context is None:  # an option without its value
        command = next((f"masklet {word}" for word in sys.argv[1:] if word in _commands()), "masklet")
        return f"{message} ({command} --help)"
    known = [name.lstrip("-") for parameter in context.command.params for name in parameter.opts]
    misspelt = (getattr(error, "option_name", None) or "").lstrip("-")
    if misspelt and misspelt not in known:
        message = error.message
        if near := get_close_matches(misspelt, known, n=1):
            message += f": did you mean --{near[0]}?"
    return f"{message} ({context.command_path} --help)"
