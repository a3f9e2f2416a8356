"""masklet everything."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from masklet.atomic import replacing
from masklet.cli.groups import grouped
from masklet.cli.jobs import Job, make_jobs, report_failures, run_jobs
from masklet.cli.options import (
    IMAGES,
    GridOptions,
    ModelOptions,
    OutputOptions,
    PixelOptions,
    Policy,
    WordOptions,
    given,
)
from masklet.cli.outputs import STANDARD, naming
from masklet.cli.prompts import loaded
from masklet.cli.records import Finished, record, state_of
from masklet.cli.sources import find_sources, opened
from masklet.cli.tables import show_progress, show_table
from masklet.cli.video import check_video_places, final_results, write_results
from masklet.errors import MaskletError

if TYPE_CHECKING:
    from masklet.segmenter import Segmenter

VIDEO_NAME = re.compile(r".+\.(3gp|avi|flv|m4v|mkv|mov|mp4|mpe?g|mts|ogv|ts|webm|wmv)", re.IGNORECASE)
"""Names of videos. Other files, and folders, are videos if ``--every`` is given."""
VIDEOS, TILES = "Videos", "Large images"


@dataclass(frozen=True, kw_only=True)
class TileOptions:
    """Options of a large image."""

    tile: Annotated[
        int | None,
        typer.Option(
            metavar="PIXELS", help="Process a large image in square tiles of this size.", rich_help_panel=TILES
        ),
    ] = None
    overlap: Annotated[
        int | None,
        typer.Option(metavar="PIXELS", help="Overlap of tiles.", show_default="an eighth", rich_help_panel=TILES),
    ] = None


@dataclass(frozen=True, kw_only=True)
class VideoOptions:
    """Options of a video; None for the defaults."""

    every: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Search every Nth frame for objects; a folder of images is then a video.",
            show_default="30",
            rich_help_panel=VIDEOS,
        ),
    ] = None
    same_iou: Annotated[
        float | None,
        typer.Option(
            help="A mask that has at least this IoU with a known object is that object.",
            show_default="0.5",
            rich_help_panel=VIDEOS,
        ),
    ] = None
    min_object: Annotated[
        int | None,
        typer.Option(metavar="PIXELS", help="Ignore smaller objects.", show_default="100", rich_help_panel=VIDEOS),
    ] = None
    patience: Annotated[
        int | None,
        typer.Option(
            metavar="FRAMES",
            help="Drop objects that have been invisible for longer.",
            show_default="100",
            rich_help_panel=VIDEOS,
        ),
    ] = None


@dataclass(frozen=True)
class Request:
    """The images or the video, and how to find everything in it."""

    images: list[str]
    output: OutputOptions
    grid: dict[str, Any]
    pixels: dict[str, Any]
    model: ModelOptions
    policy: str = "paper"
    words: dict[str, Any] = field(default_factory=dict)

    def load(self) -> Segmenter:
        """Loads the model, unless an option is invalid."""
        from masklet.everything.options import EverythingOptions

        EverythingOptions(**self.grid)
        if self.words and self.grid:
            raise MaskletError(f"--{next(iter(self.grid)).replace('_', '-')} is of the grid of points, without --text")
        return self.model.load()


@grouped
def find_everything(
    images: Annotated[
        list[str],
        typer.Argument(metavar="IMAGE", help=f"{IMAGES}; a video; - for the standard input."),
    ],
    *,
    output: OutputOptions,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Process images again even if their results are up to date.")
    ] = False,
    grid: GridOptions,
    words: WordOptions,
    tiles: TileOptions,
    video: VideoOptions,
    policy: Policy = "paper",
    pixels: PixelOptions,
    model: ModelOptions,
) -> None:
    """Find all objects in images or in a video, or those that words name.

    With several images, the outputs are folders. A later run skips images whose results are up to date. It processes
    images again that have changed or whose results were made with other options.
    """
    request = Request(images, output, grid.keywords, pixels.keywords, model, policy, words.keywords)
    video_options = given(**vars(video))
    if video.every is not None or any(map(VIDEO_NAME.fullmatch, images)):
        if tiles.tile is not None:
            raise MaskletError("--tile is for large images, and this is a video: expected one of them")
        find_in_video(request, video_options)
    elif policy != "paper":
        raise MaskletError(f"--policy {policy} is for videos: give --every as well")
    elif video_options:
        raise MaskletError(f"--{next(iter(video_options)).replace('_', '-')} is for videos: give --every as well")
    elif tiles.tile is not None and request.words:
        raise MaskletError("--text does not go with --tile: expected one of them")
    elif tiles.tile is not None:
        find_in_tiles(request, vars(tiles))
    elif tiles.overlap is not None:
        raise MaskletError("--overlap is for tiles of a large image: give --tile as well")
    else:
        find_in_images(request, overwrite=overwrite)


def find_in_video(request: Request, options: dict[str, Any]) -> None:
    """Finds and tracks all objects of a video. The model is loaded once the request has been checked."""
    source, output = Path(request.images[0]), request.output
    if len(request.images) > 1:
        raise MaskletError(f"{len(request.images)} images or videos: expected one video, or images without --every")
    if output.mask_out is not None:
        raise MaskletError("--mask-out is for images: expected --masks FOLDER, with a PNG for each frame")
    if output.polygons is not None:
        raise MaskletError("--polygons is for images: the JSON of a video has run lengths")
    check_jsonl(output.json, "a video has one line per frame")
    check_video_places(source, output.out, output.masks, output.json)
    video = request.load().video(source, policy=request.policy, **request.pixels)
    found = video.everything(**options, **request.words, **request.grid)
    results = final_results(video, found, video.video.count, with_images=output.out is not None)
    write_results(video, results, video.video.count, output.out, output.masks, output.json)


def find_in_tiles(request: Request, options: dict[str, Any]) -> None:
    """Writes the masks of one large image as they are found."""
    sources, path = find_sources(request.images, request.output.places), request.output.json
    others = (request.output.out, request.output.mask_out, request.output.masks)
    if sources.is_batch or path is None or any(others):
        raise MaskletError("--tile is for one large image: expected --json FILE.jsonl, and no other output")
    if request.output.polygons is not None:
        raise MaskletError("--polygons is for images that are processed in one piece: tiles have run lengths")
    check_jsonl(path, "masks are written as they are found")
    (job,) = make_jobs(sources, request.output)
    sam = request.load()
    instances = sam.everything_tiled(opened(job.source), **options, **request.pixels, **request.grid)
    start, count = perf_counter(), 0
    with open_lines(path) as lines:
        for instance in show_progress(instances, None, unit="masks"):
            print(json.dumps(instance), file=lines)
            count += 1
    show_counts([(job.name, count, f"{perf_counter() - start:.1f}")], prints=request.output.prints)


def find_in_images(request: Request, *, overwrite: bool) -> None:
    """Processes one image after the other. Failures in a batch are reported at the end, with exit status 1."""
    sources = find_sources(request.images, request.output.places)
    jobs = make_jobs(sources, request.output)
    sam = request.load()
    settings = settings_of(request, sam)
    words = loaded(request.words)
    may_skip = sources.is_batch and not request.output.prints and not overwrite
    skipped = finished_names(jobs, settings) if may_skip else set()

    def work(job: Job) -> tuple[str, object, str]:
        if job.name in skipped:
            return job.name, "finished before", ""
        start = perf_counter()
        state = state_of(job.source) if sources.is_batch else {}
        found = sam.everything(opened(job.source), packed=True, **request.pixels, **request.grid, **words)
        job.write(found)
        if state:
            record(job.outputs, state, settings)
        return job.name, len(found), f"{perf_counter() - start:.1f}"

    rows, failures = run_jobs(jobs, work, is_batch=sources.is_batch)
    show_counts(rows, prints=request.output.prints)
    report_failures(failures)


def finished_names(jobs: list[Job], settings: dict[str, Any]) -> set[str]:
    """The names of images whose results are up to date. Prints why others are processed again."""
    finished = Finished(settings)
    names = {job.name for job in jobs if finished.includes(job.source, job.outputs)}
    finished.explain()
    return names


def settings_of(request: Request, sam: Segmenter) -> dict[str, Any]:
    """All that the results depend on besides the image."""
    from masklet.everything.options import EverythingOptions
    from masklet.images.options import ImageOptions
    from masklet.model.fingerprint import fingerprint
    from masklet.version import __version__

    model = sam.model
    return {
        "masklet": __version__,
        "model": fingerprint(model.config, model.state_dict().values()),
        "input size": sam.image_processor.input_hw,
        "dtype": str(sam.engine.dtype),
        "products": str(sam.engine.products),
        **vars(EverythingOptions.for_model(model.config, request.grid)),
        **request.words,
        **given(**ImageOptions(**request.pixels).to_json(), polygons=request.output.polygons),
    }


@contextmanager
def open_lines(path: Path) -> Iterator[TextIO]:
    """Opens a file to write lines to, which appears once it is complete; or the standard output."""
    if path == STANDARD:
        yield sys.stdout
        return
    with naming(path), replacing(path) as unfinished, unfinished.open("w", encoding="utf-8") as lines:
        yield lines


def check_jsonl(path: Path | None, reason: str) -> None:
    """Raises an error unless a file is for JSON lines."""
    if path not in (None, STANDARD) and path.suffix.lower() != ".jsonl":
        raise MaskletError(f"--json {path}: expected a name that ends in .jsonl, since {reason}")


def show_counts(rows: list[tuple[str, object, str]], *, prints: bool) -> None:
    """Shows the number of masks of each image, unless results are printed, and a hint if there are none at all."""
    if not prints:
        show_table(("image", "masks", "seconds"), rows)
    if rows and not any(count for _, count, _ in rows):
        print("masklet: no masks found: lower --iou-threshold or --stability-threshold", file=sys.stderr)
