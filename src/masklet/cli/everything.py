"""masklet everything."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from masklet.atomic import replacing
from masklet.cli.jobs import Job, check_jobs, job_of_image, jobs_of_folder
from masklet.cli.options import (
    BoxNms,
    CropNms,
    CropOverlap,
    CropPointsDivisor,
    Crops,
    Device,
    Dtype,
    EngineName,
    IouThreshold,
    MinArea,
    Model,
    PointsPerSide,
    Refine,
    Resolution,
    StabilityOffset,
    StabilityThreshold,
    given,
)
from masklet.cli.outputs import OutputError, naming
from masklet.cli.tables import show_progress, show_table
from masklet.cli.video import check_video_places, write_results
from masklet.errors import ImageError, MaskletError

if TYPE_CHECKING:
    from masklet.segmenter import Segmenter

VIDEO_NAME = re.compile(r".+\.(3gp|avi|flv|m4v|mkv|mov|mp4|mpe?g|mts|ogv|ts|webm|wmv)", re.IGNORECASE)
"""Names of videos. Other files, and folders, are videos if ``--every`` is given."""
VIDEOS, TILES = "Videos", "Large images"


def find_everything(
    images: Annotated[Path, typer.Argument(metavar="IMAGE", help="An image, a folder of images, or a video.")],
    points_per_side: PointsPerSide = None,
    crops: Crops = None,
    crop_overlap: CropOverlap = None,
    crop_points_divisor: CropPointsDivisor = None,
    crop_nms: CropNms = None,
    min_area: MinArea = None,
    iou_threshold: IouThreshold = None,
    stability_threshold: StabilityThreshold = None,
    stability_offset: StabilityOffset = None,
    box_nms: BoxNms = None,
    refine: Refine = None,
    tile: Annotated[
        int | None,
        typer.Option(metavar="PIXELS", help="Process a large image in tiles of this side.", rich_help_panel=TILES),
    ] = None,
    overlap: Annotated[
        int | None,
        typer.Option(metavar="PIXELS", help="Overlap of tiles.", show_default="an eighth", rich_help_panel=TILES),
    ] = None,
    every: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Search every Nth frame for objects; makes a folder of images a video.",
            show_default="30",
            rich_help_panel=VIDEOS,
        ),
    ] = None,
    same_iou: Annotated[
        float | None,
        typer.Option(
            help="A mask with this IoU or more is a known object.", show_default="0.5", rich_help_panel=VIDEOS
        ),
    ] = None,
    min_object: Annotated[
        int | None,
        typer.Option(metavar="PIXELS", help="Ignore smaller objects.", show_default="100", rich_help_panel=VIDEOS),
    ] = None,
    patience: Annotated[
        int | None,
        typer.Option(
            metavar="FRAMES",
            help="Drop objects that are not visible for longer.",
            show_default="100",
            rich_help_panel=VIDEOS,
        ),
    ] = None,
    model: Model = "nano",
    device: Device = "auto",
    dtype: Dtype = "auto",
    engine: EngineName = "auto",
    resolution: Resolution = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="PNG", help="Write the image or video with the masks over it; for a folder, a folder."),
    ] = None,
    json_out: Annotated[
        Path | None,
        typer.Option(
            "--json",
            "--jsonl",
            metavar="JSON",
            help="Write a COCO data set (RLE), or annotations, one per line, to a .jsonl file; for a folder, a folder; "
            "for a video, one line per frame.",
        ),
    ] = None,
    masks: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Write a folder with a PNG per mask for each image; for a video, per frame."
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Process images of a folder again that an earlier run has finished.")
    ] = False,
) -> None:
    """Find all objects of an image, of each image in a folder, or of a video.

    Images of a folder whose outputs exist are skipped, whatever the options: see --overwrite.
    """
    options = given(
        points_per_side=points_per_side,
        crops=crops,
        crop_overlap=crop_overlap,
        crop_points_divisor=crop_points_divisor,
        crop_nms=crop_nms,
        min_area=min_area,
        iou_threshold=iou_threshold,
        stability_threshold=stability_threshold,
        stability_offset=stability_offset,
        box_nms=box_nms,
        refine=refine,
    )
    video_options = given(every=every, same_iou=same_iou, min_object=min_object, patience=patience)
    request = Job(images, out, json_out, masks)
    load = partial(load_model, options, model, device, dtype, engine=engine, resolution=resolution)
    if every is not None or VIDEO_NAME.fullmatch(images.name):
        if tile is not None:
            raise MaskletError("--tile is for large images, and this is a video: expected one of them")
        find_in_video(load, request, {**video_options, **options})
    elif video_options:
        raise MaskletError(f"--{next(iter(video_options)).replace('_', '-')} is for videos: give --every as well")
    elif tile is not None:
        find_in_tiles(load, request, {"tile": tile, "overlap": overlap, **options})
    elif overlap is not None:
        raise MaskletError("--overlap is for tiles of a large image: give --tile as well")
    else:
        find_in_images(load, request, options, overwrite=overwrite)


def load_model(options: dict[str, Any], *args: Any, **kwargs: Any) -> Segmenter:
    """Loads the model, unless an option is invalid."""
    import masklet
    from masklet.everything.options import EverythingOptions

    EverythingOptions(**options)
    return masklet.load(*args, **kwargs)


def find_in_video(load: Callable[[], Segmenter], request: Job, options: dict[str, Any]) -> None:
    """Finds and tracks all objects of a video. The model is loaded once the request has been checked."""
    check_jsonl(request.json, "a video has one line per frame")
    check_video_places(request.source, request.overlay, request.masks, request.json)
    video = load().video(request.source)
    results = video.everything(**options)
    write_results(video, results, video.video.count, request.overlay, request.masks, request.json)


def find_in_tiles(load: Callable[[], Segmenter], request: Job, options: dict[str, Any]) -> None:
    """Writes the masks of one large image as they are found."""
    path = request.json
    if request.source.is_dir() or path is None or request.outputs != [path]:
        raise MaskletError("--tile is for one large image: expected --json FILE.jsonl, and no other output")
    check_jsonl(path, "masks are written as they are found")
    check_jobs([request])
    instances = load().everything_tiled(request.source, **options)
    start, count = perf_counter(), 0
    with naming(path), replacing(path) as unfinished, unfinished.open("w", encoding="utf-8") as lines:
        for instance in show_progress(instances, None, unit="masks"):
            print(json.dumps(instance), file=lines)
            count += 1
    show_counts([(request.source.name, count, f"{perf_counter() - start:.1f}")])


def find_in_images(load: Callable[[], Segmenter], request: Job, options: dict[str, Any], *, overwrite: bool) -> None:
    """Processes one image after the other. Failures in a folder are reported at the end, with exit status 1."""
    is_folder = request.source.is_dir()
    jobs = jobs_of_folder(request) if is_folder else [job_of_image(request)]
    check_jobs(jobs)
    sam = load()
    rows: list[tuple[str, object, str]] = []
    failures: dict[str, MaskletError] = {}
    for job in show_progress(jobs, len(jobs), unit="images"):
        if is_folder and job.is_finished and not overwrite:
            rows.append((job.source.name, "finished before", ""))
            continue
        start = perf_counter()
        try:
            found = sam.everything(job.source, packed=True, **options)
            job.write(found)
            rows.append((job.source.name, len(found), f"{perf_counter() - start:.1f}"))
        except (ImageError, OutputError) as error:
            failure = with_hint(error, job.source)
            if not is_folder:
                raise failure from error
            failures[job.source.name] = failure
    show_counts(rows)
    for name, failure in failures.items():
        print(f"masklet: {name}:", " ".join(str(failure).split()), file=sys.stderr)
    if failures:
        raise typer.Exit(1)


def with_hint(error: MaskletError, image: Path) -> MaskletError:
    """The error, with the option that may help."""
    from PIL.Image import DecompressionBombError

    from masklet.images.folder import IMAGE_SUFFIXES

    if isinstance(error.__cause__, DecompressionBombError):
        return ImageError(f"{error} Or process it in tiles: --tile 1024 --json FILE.jsonl")
    if isinstance(error, ImageError) and image.is_file() and image.suffix.lower() not in IMAGE_SUFFIXES:
        return ImageError(f"{error} If it is a video, add --every 30")
    return error


def check_jsonl(path: Path | None, reason: str) -> None:
    """Raises an error unless a file is for JSON lines."""
    if path is not None and path.suffix.lower() != ".jsonl":
        raise MaskletError(f"--json {path}: expected a name that ends in .jsonl, since {reason}")


def show_counts(rows: list[tuple[str, object, str]]) -> None:
    """Shows the number of masks of each image, and a hint if there are none at all."""
    show_table(("image", "masks", "seconds"), rows)
    if rows and not any(count for _, count, _ in rows):
        print("masklet: no masks found: lower --iou-threshold or --stability-threshold", file=sys.stderr)
