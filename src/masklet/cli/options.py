"""Options that several commands take."""

from __future__ import annotations

from typing import Annotated, Any

import typer

Model = Annotated[str, typer.Option(help="A name that masklet models lists, a model folder, or a .pt file.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")]
Dtype = Annotated[str, typer.Option(help="Precision: auto, float32, bfloat16 or float16. auto is float32.")]
EngineName = Annotated[str, typer.Option("--engine", help="How the network runs: auto, eager or cpu.")]
Resolution = Annotated[
    int | None, typer.Option(help="Input side of the network, a multiple of 32.", show_default="the model's")
]

# Options of automatic masks, of masklet everything and masklet eval --everything.
PANEL = "Automatic masks"
PointsPerSide = Annotated[
    int | None,
    typer.Option(
        help="Points along each side of the image; more find smaller objects.", show_default="32", rich_help_panel=PANEL
    ),
]
Crops = Annotated[
    int | None,
    typer.Option(help="Layers of crops to search as well, for small objects.", show_default="0", rich_help_panel=PANEL),
]
CropOverlap = Annotated[
    float | None,
    typer.Option(
        help="Overlap of crops, as a share of the image's shorter side.", show_default="0.34", rich_help_panel=PANEL
    ),
]
CropPointsDivisor = Annotated[
    int | None,
    typer.Option(
        help="In each layer of crops, divide the points a side by this.", show_default="1", rich_help_panel=PANEL
    ),
]
CropNms = Annotated[
    float | None, typer.Option(help="--box-nms between crops.", show_default="0.7", rich_help_panel=PANEL)
]
MinArea = Annotated[
    int | None,
    typer.Option(metavar="PIXELS", help="Remove holes and islands of fewer pixels.", rich_help_panel=PANEL),
]
IouThreshold = Annotated[
    float | None,
    typer.Option(help="Keep masks with a higher predicted IoU.", show_default="the model's", rich_help_panel=PANEL),
]
StabilityThreshold = Annotated[
    float | None,
    typer.Option(
        help="Keep masks with at least this stability score.", show_default="the model's", rich_help_panel=PANEL
    ),
]
StabilityOffset = Annotated[
    float | None,
    typer.Option(help="Offset of the stability score, in logits.", show_default="1", rich_help_panel=PANEL),
]
BoxNms = Annotated[
    float | None,
    typer.Option(help="Keep one of several boxes with a higher IoU.", show_default="0.7", rich_help_panel=PANEL),
]
Refine = Annotated[
    bool | None,
    typer.Option("--refine", help="Improve each mask once; four times slower.", rich_help_panel=PANEL),
]


def given(**options: Any) -> dict[str, Any]:
    """The options that are not None."""
    return {name: value for name, value in options.items() if value is not None}
