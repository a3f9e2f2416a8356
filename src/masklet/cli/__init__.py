"""The command line: parses, calls the public API, reports. It contains no segmentation."""

from __future__ import annotations

import sys

import typer

from masklet.cli import image, models
from masklet.errors import MaskletError
from masklet.version import __version__

app = typer.Typer(
    name="masklet",
    help="SAM 2: a click, a box or a rough mask gives the object's mask.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("image")(image.segment)
app.command("models")(models.list_models)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"masklet {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: bool = typer.Option(False, "--version", callback=_show_version, is_eager=True, help="Show the version."),
) -> None:
    """What every command shares."""


def main() -> None:
    """Run a command. Bad input ends it with one line and exit status 2."""
    try:
        app()
    except MaskletError as error:
        print("masklet:", " ".join(str(error).split()), file=sys.stderr)
        sys.exit(2)
