"""masklet eval."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from masklet.atomic import replacing
from masklet.cli.options import (
    Device,
    Dtype,
    EngineName,
    IouThreshold,
    Model,
    PointsPerSide,
    Resolution,
    StabilityThreshold,
    given,
)
from masklet.cli.outputs import check_places, naming
from masklet.cli.tables import show_progress, show_table
from masklet.errors import MaskletError

LAYOUTS = "images/NAME.jpg and masks/NAME.png, or JPEGImages/VIDEO/*.jpg and Annotations/VIDEO/*.png"


def evaluate(
    data: Annotated[Path, typer.Option(metavar="FOLDER", help=f"{LAYOUTS}.")],
    everything: Annotated[
        bool, typer.Option("--everything", help="Measure the recall of automatic masks, for images.")
    ] = False,
    points_per_side: PointsPerSide = None,
    iou_threshold: IouThreshold = None,
    stability_threshold: StabilityThreshold = None,
    model: Model = "nano",
    device: Device = "auto",
    dtype: Dtype = "auto",
    engine: EngineName = "auto",
    resolution: Resolution = None,
    objects: Annotated[bool, typer.Option("--objects", help="Print a row for each object, then the means.")] = False,
    json_out: Annotated[
        Path | None, typer.Option("--json", metavar="JSON", help="Write the scores of all objects and their means.")
    ] = None,
    grid: Annotated[
        Path | None, typer.Option(metavar="PNG", help="Write an image of the best and the worst objects.")
    ] = None,
) -> None:
    """Measure a model on annotated images (IoU for clicks and boxes) or videos (J and F)."""
    options = given(
        points_per_side=points_per_side, iou_threshold=iou_threshold, stability_threshold=stability_threshold
    )
    is_videos = holds_videos(data)
    if options and not everything:
        raise MaskletError(f"--{next(iter(options)).replace('_', '-')} is an option of --everything: give both")
    if everything and is_videos:
        raise MaskletError(f"--everything is for images, and {data} holds videos: expected images/ and masks/ in it")
    if grid is not None and grid.suffix.lower() != ".png":
        raise MaskletError(f"--grid {grid}: expected a name that ends in .png")
    check_places([("--json", json_out), ("--grid", grid)])
    import masklet
    from masklet.evaluation.folder import read_folder
    from masklet.evaluation.grid import Extremes
    from masklet.evaluation.measure import measure
    from masklet.evaluation.recall import measure_recall, summarise_recall
    from masklet.evaluation.scores import summarise
    from masklet.evaluation.video import evaluate_videos, read_videos, summarise_videos
    from masklet.everything.options import EverythingOptions

    EverythingOptions(**options)  # refused here, as is a folder that lacks something, before a model is loaded
    examples: Any = read_videos(data) if is_videos else read_folder(data)
    sam = masklet.load(model, device, dtype, engine=engine, resolution=resolution)
    extremes = Extremes()
    remaining = show_progress(examples, len(examples), unit="videos" if is_videos else "images")
    scores: list[Any]
    if is_videos:
        scores = list(evaluate_videos(sam, remaining, extremes=extremes))
        summary = summarise_videos(scores)
    elif everything:
        scores = list(measure_recall(sam, remaining, extremes=extremes, **options))
        summary = summarise_recall(scores)
    else:
        scores = list(measure(sam, remaining, extremes=extremes))
        summary = summarise(scores)
    if json_out is not None:
        setting = {
            "masklet": masklet.__version__,
            "data": str(data),
            "model": model,
            "input_hw": sam.image_processor.input_hw,
            "device": str(sam.model.device),
            **options,
        }
        write_scores(json_out, setting, scores, summary)
    if grid is not None:
        with naming(grid), replacing(grid) as unfinished:
            extremes.draw(f"{data.name}, {model}").save(unfinished)
    print_scores(scores, summary, title=f"{model}: {data}", each_object=objects)


def write_scores(path: Path, setting: dict[str, Any], scores: list[Any], summary: dict[str, float]) -> None:
    """Writes the setting, the means and the scores of all objects as JSON."""
    content = {**setting, "summary": summary, "objects": [asdict(score) for score in scores]}
    with naming(path), replacing(path) as unfinished:
        unfinished.write_text(json.dumps(content, indent=2), encoding="utf-8")


def print_scores(scores: list[Any], summary: dict[str, float], *, title: str, each_object: bool) -> None:
    """Prints a row for each measure, or a row for each object and a last one of the means."""
    if not each_object:
        show_table(("measure", "value"), [(name, text_of(value)) for name, value in summary.items()], title=title)
        return
    columns = list(asdict(scores[0]))
    rows = [[text_of(value) for value in asdict(score).values()] for score in scores]
    means = ["mean", *(text_of(summary.get(name, "")) for name in columns[1:])]
    show_table(columns, [*rows, means], title=title)


def holds_videos(data: Path) -> bool:
    """Whether a folder holds videos or images; a folder with neither or both is refused."""
    images, videos = (data / "images").is_dir(), (data / "JPEGImages").is_dir()
    if not data.is_dir():
        raise MaskletError(f"there is no folder {data}: expected one with {LAYOUTS}")
    if images == videos:
        raise MaskletError(f"{data} holds {'both images and videos' if videos else 'neither'}: expected {LAYOUTS}")
    return videos


def text_of(value: object) -> str:
    """A value as the table shows it."""
    return f"{value:.3f}" if isinstance(value, float) else str(value)
