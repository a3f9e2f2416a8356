"""masklet export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from masklet.errors import ConfigError

LAYOUTS = "masklet, transformersjs or samexporter"


def export(
    model: Annotated[str, typer.Argument(help="A name that masklet models lists, a model folder, or a .pt file.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Output folder.")],
    layout: Annotated[
        str, typer.Option(help=f"{LAYOUTS}: who is to run it; masklet is for images and videos.")
    ] = "masklet",
    resolution: Annotated[
        str | None,
        typer.Option(metavar="SIDE|HEIGHT,WIDTH", help="Input size of the network.", show_default="the model's"),
    ] = None,
    precision: Annotated[str, typer.Option(help="fp32, fp16 or int8.")] = "fp32",
    opset: Annotated[int, typer.Option(help="Of ONNX, 18 to 22.")] = 18,
    check: Annotated[bool, typer.Option(help="Compare each graph with torch.")] = True,
) -> None:
    """Export a model to ONNX, to run it without PyTorch."""
    from masklet.export.writer import to_onnx  # slow: imports torch

    try:
        graphs = to_onnx(
            model,
            out,
            layout=layout,
            resolution=_size(resolution),
            precision=precision,
            opset=opset,
            check=check,
        )
    except ModuleNotFoundError as error:
        raise ConfigError(str(error)) from error
    for graph in graphs:
        difference = "" if graph.difference is None else f", differs from torch by {graph.difference:.1e}"
        print(f"{graph.file}: {graph.precision}, {graph.num_bytes / 1e6:.1f} MB{difference}")


def _size(text: str | None) -> int | tuple[int, int] | None:
    """(height, width) or one side, from HEIGHT,WIDTH or SIDE."""
    if text is None:
        return None
    try:
        sides = [int(side) for side in text.split(",")]
    except ValueError:
        sides = []
    if len(sides) not in (1, 2):
        raise ConfigError(f"--resolution is {text!r}: expected a side, 1024, or HEIGHT,WIDTH, 768,1024")
    return sides[0] if len(sides) == 1 else (sides[0], sides[1])
