"""Options that several commands take."""

from __future__ import annotations

from typing import Annotated, Any

import typer

Model = Annotated[str, typer.Option(help="See masklet models; or a folder, or a .pt file.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")]
Resolution = Annotated[
    int | None, typer.Option(help="Input side of the network, a multiple of 32; the model's own if not given.")
]


def given(**options: Any) -> dict[str, Any]:
    """Those that were given."""
    return {name: value for name, value in options.items() if value is not None}
