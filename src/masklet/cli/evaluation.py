"""masklet eval."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, TypeVar

import typer

from masklet.cli.groups import grouped
from masklet.cli.options import IouThreshold, ModelOptions, PointsPerSide, Policy, StabilityThreshold, given
from masklet.cli.outputs import STANDARD, check_image_suffix, check_places, write, write_image
from masklet.cli.tables import show_progress, show_table
from masklet.errors import MaskletError
from masklet.version import __version__

if TYPE_CHECKING:
    from masklet.datasets.detection import DataLocation
    from masklet.evaluation.grid import Extremes
    from masklet.segmenter import Segmenter

Kind: TypeAlias = Literal["images", "everything", "videos"]
"""What is measured."""
T = TypeVar("T")
LAYOUTS = "images/NAME.jpg and masks/NAME.png, or JPEGImages/VIDEO/*.jpg and Annotations/VIDEO/*.png"


@dataclass(frozen=True, kw_only=True)
class RecallOptions:
    """Options of automatic masks; None for the defaults of ``EverythingOptions``."""

    everything: Annotated[
        bool, typer.Option("--everything", help="Measure the recall of automatic masks, for images.")
    ] = False
    points_per_side: PointsPerSide = None
    iou_threshold: IouThreshold = None
    stability_threshold: StabilityThreshold = None

    @property
    def keywords(self) -> dict[str, Any]:
        """The keyword arguments of ``Segmenter.everything``, without those that are not given.

        Raises:
            MaskletError: One of them is invalid, or has no effect.
        """
        options = given(**{name: value for name, value in vars(self).items() if name != "everything"})
        if options and not self.everything:
            raise MaskletError(f"--{next(iter(options)).replace('_', '-')} is an option of --everything: give both")
        from masklet.everything.options import EverythingOptions

        EverythingOptions(**options)
        return options


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """Where scores are shown. ``-`` is the standard output."""

    objects: Annotated[bool, typer.Option("--objects", help="Print a row for each object, then the means.")] = False
    json: Annotated[
        Path | None,
        typer.Option(
            metavar="JSON", help="Write the scores of all objects and their means; - for the standard output."
        ),
    ] = None
    grid: Annotated[
        Path | None, typer.Option(metavar="PNG", help="Write an image of the best and the worst objects.")
    ] = None

    def check(self) -> None:
        """Checks that the files can be written."""
        if self.grid not in (None, STANDARD) and self.grid.suffix.lower() != ".png":
            raise MaskletError(f"--grid {self.grid}: expected a name that ends in .png")
        check_image_suffix("--grid", self.grid)
        check_places([("--json", self.json), ("--grid", self.grid)])


@grouped
def evaluate(
    *,
    data: Annotated[Path, typer.Option(metavar="FOLDER|JSON", help=f"{LAYOUTS}; or COCO's JSON file, SA-1B or SA-V.")],
    annotations: Annotated[
        Path | None, typer.Option(metavar="JSON", help="File of COCO, if its images are elsewhere, in --data.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Measure only this many images or videos, evenly spread.")
    ] = None,
    recall: RecallOptions,
    report: ReportOptions,
    policy: Policy = "paper",
    model: ModelOptions,
) -> None:
    """Measure a model on annotated images (IoU for clicks and boxes) or videos (J and F)."""
    from masklet.datasets import VIDEO_LAYOUTS
    from masklet.datasets.detection import DataLocation, detect_layout

    place = detect_layout(data) if annotations is None else DataLocation("coco", data, annotations)
    options, is_videos = recall.keywords, place.layout in VIDEO_LAYOUTS
    if recall.everything and is_videos:
        raise MaskletError(f"--everything is for images, and {data} holds videos: expected images/ and masks/ in it")
    if policy != "paper" and not is_videos:
        raise MaskletError(f"--policy {policy} is for videos, and {data} holds images")
    report.check()
    from masklet.evaluation.grid import Extremes

    examples = read_examples(place, limit)  # before a model is loaded
    sam = model.load()
    extremes = Extremes()
    remaining = show_progress(examples, len(examples), unit="videos" if is_videos else "images")
    kind: Kind = "videos" if is_videos else "everything" if recall.everything else "images"
    scores, summary = measured(kind, sam, remaining, extremes, options, policy)
    if report.json is not None:
        setting = {
            "masklet": __version__,
            "data": str(data),
            "model": model.model,
            "input_hw": sam.image_processor.input_hw,
            "device": str(sam.model.device),
            **({"policy": policy} if is_videos else {}),
            **options,
        }
        write_scores(report.json, setting, scores, summary)
    if report.grid is not None:
        write_image(report.grid, extremes.draw(f"{data.name}, {model.model}"))
    if STANDARD not in (report.json, report.grid):
        print_scores(scores, summary, title=f"{model.model}: {data}", each_object=report.objects)


def measured(
    kind: Kind,
    sam: Segmenter,
    examples: Iterator[Any],
    extremes: Extremes,
    options: dict[str, Any],
    policy: str,
) -> tuple[list[Any], dict[str, float]]:
    """The scores of all objects, and their means.

    Args:
        kind: What is measured.
        sam: The model.
        examples: Images or videos.
        extremes: Keeps the best and the worst objects.
        options: Options of automatic masks.
        policy: The memory policy, for videos.
    """
    from masklet.evaluation.measure import measure
    from masklet.evaluation.recall import measure_recall, summarise_recall
    from masklet.evaluation.scores import summarise
    from masklet.evaluation.video import evaluate_videos, summarise_videos

    if kind == "videos":
        of_videos = list(evaluate_videos(sam, examples, extremes=extremes, policy=policy))
        return of_videos, summarise_videos(of_videos)
    if kind == "everything":
        recalls = list(measure_recall(sam, examples, extremes=extremes, **options))
        return recalls, summarise_recall(recalls)
    scores = list(measure(sam, examples, extremes=extremes))
    return scores, summarise(scores)


def write_scores(path: Path, setting: dict[str, Any], scores: list[Any], summary: dict[str, float]) -> None:
    """Writes the setting, the means and the scores of all objects as JSON."""
    content = {**setting, "summary": summary, "objects": [asdict(score) for score in scores]}
    write(path, json.dumps(content, indent=2).encode() + b"\n")


def print_scores(scores: list[Any], summary: dict[str, float], *, title: str, each_object: bool) -> None:
    """Prints a row for each measure, or a row for each object and a last one of the means."""
    if not each_object:
        show_table(("measure", "value"), [(name, text_of(value)) for name, value in summary.items()], title=title)
        return
    columns = list(asdict(scores[0]))
    rows = [[text_of(value) for value in asdict(score).values()] for score in scores]
    means = ["mean", *(text_of(summary.get(name, "")) for name in columns[1:])]
    show_table(columns, [*rows, means], title=title)


def read_examples(place: DataLocation, limit: int | None) -> Any:
    """The images or videos of a data set, evenly spread if there are more than ``limit``."""
    from masklet.datasets import read_scenes
    from masklet.evaluation.folder import ExampleFolder, read_folder
    from masklet.evaluation.layouts import SceneImages, SceneVideos
    from masklet.evaluation.video import read_videos

    if place.layout == "videos":
        return spread(read_videos(place.path), limit)
    if place.layout == "folder" and not any((place.path / "masks").glob("*/")):
        folder = read_folder(place.path)
        return ExampleFolder(folder.folder, spread(folder.files, limit))
    scenes = spread(read_scenes(place.layout, place.path, annotations=place.annotations), limit)
    return SceneVideos(scenes) if place.layout == "sav" else SceneImages(scenes)


def spread(items: list[T], limit: int | None) -> list[T]:
    """At most ``limit`` of the items, evenly spread, in order."""
    if limit is None or limit >= len(items):
        return items
    return [items[index * len(items) // limit] for index in range(limit)]


def text_of(value: object) -> str:
    """A value as the table shows it."""
    return f"{value:.3f}" if isinstance(value, float) else str(value)
