"""The command line: parses arguments, calls the public API, and reports. It contains no segmentation."""

from __future__ import annotations

import sys
from typing import Any

import typer

from masklet.cli import evaluation, everything, image, models, train, video
from masklet.errors import MaskletError
from masklet.version import __version__

USAGE_ERROR: Any = typer.BadParameter.__base__
"""The parser's error for wrong options, a class that newer versions of Typer do not export."""

app = typer.Typer(
    name="masklet",
    help="SAM 2: segments objects of images and videos from points, boxes or rough masks.",
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("image")(image.segment)
app.command("everything")(everything.find_everything)
app.command("video")(video.track)
app.command("train")(train.train)
app.command("eval")(evaluation.evaluate)
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
    try:
        sys.exit(app(sys.argv[1:] or ["--help"], standalone_mode=False))
    except MaskletError as error:
        message = str(error)
    except USAGE_ERROR as error:
        message = f"{error.format_message()} (masklet --help)"
    except typer.Abort:  # Ctrl-C
        sys.exit(130)
    print("masklet:", " ".join(message.split()), file=sys.stderr)
    sys.exit(2)
