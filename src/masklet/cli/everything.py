"""masklet everything."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from masklet.atomic import replacing
from masklet.cli.image import check_outputs
from masklet.cli.options import Device, Model, Resolution, given
from masklet.cli.outputs import OutputError, check_places, naming
from masklet.cli.tables import show_progress, show_table
from masklet.cli.video import check_video_places, write_results
from masklet.errors import ImageError, MaskletError

if TYPE_CHECKING:
    from masklet.config import SizeHW
    from masklet.results import Masks
    from masklet.segmenter import Segmenter

VIDEO_SUFFIXES = (
    ".3gp",
    ".avi",
    ".flv",
    ".m4v",
    ".mkv",
    ".mov",
    ".mp4",
    ".mpeg",
    ".mpg",
    ".mts",
    ".ogv",
    ".ts",
    ".webm",
    ".wmv",
)
"""Of files that are videos without being called so by ``--every``."""


@dataclass(frozen=True)
class Job:
    """What to look at, and where what is found in it goes."""

    source: Path
    """An image; in what was asked for it may be a folder of them, or a video."""
    overlay: Path | None
    instances: Path | None
    masks: Path | None
    image_id: int = 1
    """In the COCO data set."""

    @property
    def outputs(self) -> list[Path]:
        """Those that were asked for."""
        return [path for path in (self.overlay, self.instances, self.masks) if path is not None]

    @property
    def is_finished(self) -> bool:
        """Whether an earlier run has written all of them."""
        return bool(self.outputs) and all(os.path.exists(path) for path in self.outputs)  # None of a name too long


def find_everything(
    images: Annotated[Path, typer.Argument(metavar="IMAGE", help="An image, a folder of them, or a video.")],
    points_per_side: Annotated[
        int | None, typer.Option(help="Clicks along each side; more find smaller objects. 32 if not given.")
    ] = None,
    crops: Annotated[int | None, typer.Option(help="Layers of crops looked at too, for small objects.")] = None,
    crop_overlap: Annotated[
        float | None, typer.Option(help="Share of the shorter side by which crops overlap. 0.34 if not given.")
    ] = None,
    crop_points_divisor: Annotated[
        int | None, typer.Option(help="Layer n of crops has so many times fewer clicks a side, n times over. 1.")
    ] = None,
    crop_nms: Annotated[float | None, typer.Option(help="As --box-nms, between crops. 0.7 if not given.")] = None,
    min_area: Annotated[
        int | None, typer.Option(metavar="PIXELS", help="Remove holes and islands of fewer pixels.")
    ] = None,
    iou_threshold: Annotated[
        float | None, typer.Option(help="Keep masks of a higher predicted IoU. 0.8 if not given.")
    ] = None,
    stability_threshold: Annotated[
        float | None, typer.Option(help="Keep masks of this stability. 0.95 if not given.")
    ] = None,
    stability_offset: Annotated[
        float | None, typer.Option(help="Of stability: by how much the cut-off moves, in logits. 1 if not given.")
    ] = None,
    box_nms: Annotated[
        float | None, typer.Option(help="Of boxes that overlap by a higher IoU keep one. 0.7 if not given.")
    ] = None,
    refine: Annotated[bool | None, typer.Option("--refine", help="Improve every mask once; four times slower.")] = None,
    tile: Annotated[
        int | None,
        typer.Option(metavar="PIXELS", help="Look at a large image in squares of this side; writes JSON lines."),
    ] = None,
    overlap: Annotated[
        int | None, typer.Option(metavar="PIXELS", help="By how much squares overlap. An eighth if not given.")
    ] = None,
    every: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="In a video, or a folder of frames, look for objects on one frame in so many; 30 if not given.",
        ),
    ] = None,
    same_iou: Annotated[
        float | None, typer.Option(help="In a video, a mask is of a known object from this IoU on. 0.5 if not given.")
    ] = None,
    min_object: Annotated[
        int | None, typer.Option(metavar="PIXELS", help="In a video, fewer are no object. 100 if not given.")
    ] = None,
    patience: Annotated[
        int | None,
        typer.Option(metavar="FRAMES", help="In a video, forget objects out of sight for more. 100 if not given."),
    ] = None,
    model: Model = "nano",
    device: Device = "auto",
    resolution: Resolution = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="PNG", help="Write the image or video with the masks on it; a folder for a folder."),
    ] = None,
    json_out: Annotated[
        Path | None,
        typer.Option(
            "--json",
            "--jsonl",
            metavar="JSON",
            help="Write a COCO data set (RLE), or to .jsonl its annotations, one a line; a folder for a folder; of a "
            "video a line a frame.",
        ),
    ] = None,
    masks: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Write a PNG for each mask into a folder for each image; or for each frame."
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Of a folder: do images again whose files an earlier run has written.")
    ] = False,
) -> None:
    """Find all objects of an image, of each image in a folder, or of a video.

    Images of a folder whose files are all there are left out, also if they were made with other options: --overwrite
    does them again.
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
    of_videos = given(every=every, same_iou=same_iou, min_object=min_object, patience=patience)
    asked, ready = Job(images, out, json_out, masks), partial(load, model, device, options)
    if every is not None or images.suffix.lower() in VIDEO_SUFFIXES:
        if tile is not None:
            raise MaskletError("--tile is for a large image, and this is a video: expected one of them")
        find_in_video(ready, asked, resolution, {**of_videos, **options})
    elif of_videos:
        raise MaskletError(f"--{next(iter(of_videos)).replace('_', '-')} is for videos: give --every, too")
    elif tile is not None:
        find_in_tiles(ready, asked, {"resolution": resolution, "tile": tile, "overlap": overlap, **options})
    elif overlap is not None:
        raise MaskletError("--overlap is about squares of a large image: give --tile, too")
    else:
        find_in_images(ready, asked, {"resolution": resolution, **options}, overwrite=overwrite)


def find_in_video(ready: Callable[[], Segmenter], asked: Job, resolution: int | None, options: dict[str, Any]) -> None:
    """Follow all that is found in a video; ``ready`` gives the model, when nothing else is amiss."""
    check_lines(asked.instances, "a video has a line for each frame")
    check_video_places(asked.source, asked.overlay, asked.masks, asked.instances)
    video = ready().video(asked.source, resolution=resolution)
    results = video.everything(**options)
    write_results(video, results, video.video.count, asked.overlay, asked.masks, asked.instances)


def find_in_tiles(ready: Callable[[], Segmenter], asked: Job, how: dict[str, Any]) -> None:
    """Write the masks of a large image as they are found, a COCO instance a line."""
    if asked.outputs != [asked.instances] or asked.instances is None or asked.source.is_dir():
        raise MaskletError("--tile is for one large image: expected --json FILE.jsonl, and no other output")
    check_lines(asked.instances, "masks are written as they are found")
    check_jobs([asked])
    sam, path = ready(), asked.instances
    start, count = perf_counter(), 0
    instances = sam.everything(asked.source, **how)
    with naming(path), replacing(path) as unfinished, unfinished.open("w", encoding="utf-8") as lines:
        for instance in show_progress(instances, None, unit="masks"):
            print(json.dumps(instance), file=lines)
            count += 1
    show_found([(asked.source.name, count, f"{perf_counter() - start:.1f}")])


def find_in_images(ready: Callable[[], Segmenter], asked: Job, how: dict[str, Any], *, overwrite: bool) -> None:
    """EncodedImage by image; what fails in a folder is told at the end, and ends the command with status 1."""
    is_folder = asked.source.is_dir()
    jobs = jobs_of_folder(asked) if is_folder else [job_of_image(asked)]
    check_jobs(jobs)
    sam = ready()
    rows: list[tuple[str, object, str]] = []
    failures: dict[str, MaskletError] = {}
    for job in show_progress(jobs, len(jobs), unit="images"):
        if is_folder and job.is_finished and not overwrite:
            rows.append((job.source.name, "finished before", ""))
            continue
        start = perf_counter()
        try:
            count = find_and_write(sam, job, how)
            rows.append((job.source.name, count, f"{perf_counter() - start:.1f}"))
        except (ImageError, OutputError) as error:
            failure = with_way_out(error, job.source)
            if not is_folder:
                raise failure from error
            failures[job.source.name] = failure
    show_found(rows)
    for name, failure in failures.items():
        print(f"masklet: {name}:", " ".join(str(failure).split()), file=sys.stderr)
    if failures:
        raise typer.Exit(1)


def with_way_out(error: MaskletError, image: Path) -> MaskletError:
    """What went wrong, and the option that may help."""
    from PIL.Image import DecompressionBombError

    from masklet.images.folder import IMAGE_SUFFIXES

    if isinstance(error.__cause__, DecompressionBombError):
        return ImageError(f"{error} Or look at it in squares: --tile 1024 --json FILE.jsonl")
    if isinstance(error, ImageError) and image.is_file() and image.suffix.lower() not in IMAGE_SUFFIXES:
        return ImageError(f"{error} If it is a video, say so: --every 30")
    return error


def load(model: str, device: str, options: dict[str, Any]) -> Segmenter:
    """The model, unless options make no sense."""
    import masklet
    from masklet.everything.generator import Options

    Options(**options)  # refused here, before a model is loaded
    return masklet.load(model, device=device)


def check_lines(path: Path | None, reason: str) -> None:
    """Refuse a file that is not one of JSON lines."""
    if path is not None and path.suffix.lower() != ".jsonl":
        raise MaskletError(f"--json {path}: expected a name that ends in .jsonl, since {reason}")


def show_found(rows: list[tuple[str, object, str]]) -> None:
    """Show how many masks each image has, and what to do if there are none at all."""
    show_table(("image", "masks", "seconds"), rows)
    if rows and not any(count for _, count, _ in rows):
        print("masklet: nothing found: lower --iou-threshold or --stability-threshold", file=sys.stderr)


def job_of_image(asked: Job) -> Job:
    """One image, with outputs as they are named."""
    check_outputs(out=asked.overlay, mask_out=None)
    return asked if asked.masks is None else replace(asked, masks=asked.masks / asked.source.stem)


def jobs_of_folder(asked: Job) -> list[Job]:
    """All images right in the folder, with outputs of their names in the folders asked for."""
    from masklet.images.folder import IMAGE_SUFFIXES, images_in

    folder, out, instances, masks = asked.source, asked.overlay, asked.instances, asked.masks
    images = images_in(folder)
    if not images:
        raise ImageError(f"no images in {folder}: expected files that end in {', '.join(IMAGE_SUFFIXES)}")
    for option, place in (("--out", out), ("--json", instances), ("--masks", masks)):
        if place is not None and place.resolve() == folder.resolve():
            raise MaskletError(f"{option} {place} is where the images are: expected another folder")
        if place is not None and place.exists() and not place.is_dir():
            raise MaskletError(f"{option} {place} is a file: expected a folder, since there is a folder of images")
    stems = Counter(path.stem.casefold() for path in images)
    names = [path.stem if stems[path.stem.casefold()] == 1 else path.name for path in images]
    return [
        Job(
            image,
            None if out is None else out / f"{name}.png",
            None if instances is None else instances / f"{name}.json",
            None if masks is None else masks / name,
            image_id_of(image.name),
        )
        for image, name in zip(images, names, strict=True)
    ]


def image_id_of(name: str) -> int:
    """A number that is an image's own, whatever other images a later run finds in the folder."""
    return int.from_bytes(sha256(os.fsencode(name)).digest()[:6], "big")  # JSON's numbers are exact up to 53 bits


def check_jobs(jobs: list[Job]) -> None:
    """Refuse, before the work, what ``check_places`` does, and folders of masks that hold something else."""
    for job in jobs:
        if job.masks is not None and os.path.lexists(job.masks):
            others = [] if not job.masks.is_dir() else [p.name for p in job.masks.iterdir() if not _is_mask(p)]
            if others or not job.masks.is_dir():
                what = f"holds {others[0]}" if others else "is a file"
                raise MaskletError(f"{job.masks} {what}: expected a folder of masks, or none, since it is replaced")
            if job.source.resolve().parent == job.masks.resolve():
                raise MaskletError(f"--masks would replace {job.masks}, where the image is: expected another folder")
    # The shortest name tries a folder: one that is too long is no reason to do none.
    by_length = sorted(jobs, key=lambda job: len(os.fsencode(job.source.name)))
    files = [
        (option, path) for job in by_length for option, path in (("--out", job.overlay), ("--json", job.instances))
    ]
    # Folders of masks are made when they are complete; what is beside them can be tried now.
    folders = {job.masks.parent for job in jobs if job.masks is not None}
    check_places([*files, *(("--masks", folder / "000.png") for folder in folders)], [job.source for job in jobs])


def _is_mask(path: Path) -> bool:
    return re.fullmatch(r"\d+\.png", path.name) is not None


def find_and_write(sam: Segmenter, job: Job, options: dict[str, Any]) -> int:
    """How many masks an image has; what was asked for is written, each output whole or not at all."""
    from masklet.images.reading import read_image
    from masklet.results import Masks

    image = read_image(job.source)
    size_hw = (image.shape[0], image.shape[1])
    # As run lengths: of many masks of a large image, one at a time in memory.
    instances = [one | {"image_id": job.image_id} for one in sam.everything(image, output="rle", **options)]
    write_json(job, instances, size_hw)
    masks = Masks.from_coco(instances, size_hw=size_hw, packed=True)
    if job.overlay is not None:
        with naming(job.overlay), replacing(job.overlay) as unfinished:
            masks.overlay(image).save(unfinished)
    if job.masks is not None:
        with naming(job.masks):
            write_folder(job.masks, masks)
    return len(masks)


def write_json(job: Job, instances: list[dict[str, Any]], size_hw: SizeHW) -> None:
    """Write a COCO data set, or its annotations a line each, if that was asked for."""
    from masklet.results.exporters import coco_data

    if (path := job.instances) is not None:
        with naming(path), replacing(path) as unfinished:
            if path.suffix.lower() == ".jsonl":
                text = "".join(json.dumps(instance) + "\n" for instance in instances)
            else:
                text = json.dumps(coco_data(instances, job.source.name, size_hw, image_id=job.image_id))
            unfinished.write_text(text, encoding="utf-8")


def write_folder(folder: Path, masks: Masks) -> None:
    """A PNG for each mask, 000.png the best; an older folder of masks gives way when all are written."""
    unfinished = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=folder.parent))
    try:
        for number, mask in enumerate(masks):
            mask.save(unfinished / f"{number:03}.png")
        unfinished.chmod(0o755)
        if folder.exists():
            shutil.rmtree(folder)  # which ``check_places`` found to hold masks alone
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
