"""Images, the files that their masks are written to, and the loop over them."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import typer

from masklet.cli.options import OutputOptions
from masklet.cli.outputs import (
    STANDARD,
    OutputError,
    check_image_suffix,
    check_places,
    naming,
    remove_stale,
    write,
    write_image,
)
from masklet.cli.records import forget
from masklet.cli.sources import Sources
from masklet.cli.tables import show_progress
from masklet.errors import ImageError, ImageWarning, MaskletError, PromptError

if TYPE_CHECKING:
    from masklet.results import Masks

T = TypeVar("T")
Names = Mapping[int, str]
"""Names of objects, which become categories, by id."""
UNNAMED = "object"
"""The category of other objects."""


@dataclass(frozen=True)
class Job:
    """An image and its outputs."""

    source: Path
    name: str
    """In messages and data sets."""
    out: Path | None
    json: Path | None
    mask_out: Path | None
    masks: Path | None
    """A folder for the masks of this image."""
    image_id: int = 1
    """In the COCO data set."""
    tolerance: float | None = None
    """Tolerance of polygons in the COCO data set; None for run lengths."""

    @property
    def outputs(self) -> list[Path]:
        """The files and the folder that are written; not the standard output."""
        places = (self.out, self.json, self.mask_out, self.masks)
        return [path for path in places if path is not None and path != STANDARD]

    def write(self, masks: Masks, names: Names | None = None) -> None:
        """Writes all outputs, each completely or not at all."""
        for path in self.outputs:
            forget(path)
        if self.json is not None:
            write(self.json, self._json_text(masks, names or {}).encode())
        if self.out is not None:
            write_image(self.out, masks.overlay())
        if self.mask_out is not None:
            write_image(self.mask_out, masks.index_map())
        if self.masks is not None:
            with naming(self.masks):
                write_folder(self.masks, masks)

    def _json_text(self, masks: Masks, names: Names) -> str:
        """A COCO data set in a line; in a .jsonl file its annotations, one per line."""
        assert self.json is not None
        if masks.labels is not None:
            names = dict(zip(masks.object_ids.tolist(), masks.labels.tolist(), strict=True))
        categories = {number: names.get(number, UNNAMED) for number in masks.object_ids.tolist()}
        has_others = UNNAMED in categories.values() or not names
        classes = dict.fromkeys([*[UNNAMED] * has_others, *names.values()])
        data = masks.to_coco_dataset(
            self.name,
            image_id=self.image_id,
            categories=categories,
            names=list(classes),
            polygons=self.tolerance is not None,
            tolerance=self.tolerance or 0.0,
        )
        for instance in data["annotations"]:  # lines have no categories
            if instance["object_id"] in names:
                instance["object_name"] = names[instance["object_id"]]
        lines = data["annotations"] if self.json.suffix.lower() == ".jsonl" else [data]
        return "".join(json.dumps(line) + "\n" for line in lines)


# Making jobs


def make_jobs(sources: Sources, request: OutputOptions) -> list[Job]:
    """The jobs of images. All outputs are writable and replace nothing but earlier outputs."""
    if request.polygons is not None and not 0 <= request.polygons < math.inf:
        raise MaskletError(f"--polygons {request.polygons:g}: expected a number of pixels, 0 or more")
    if request.polygons is not None and request.json is None:
        raise MaskletError("--polygons is for --json: give both")
    if request.masks == STANDARD:
        raise MaskletError("--masks -: expected a folder, since there is a PNG for each mask")
    jobs = _jobs_of_batch(sources, request) if sources.is_batch else [_job_of_image(sources, request)]
    for job in jobs:
        if job.masks is not None:
            _check_masks_folder(job.masks, job.source)
    # The shortest name first, since it checks the folder: names that are too long fail later, one by one.
    by_length = sorted(jobs, key=lambda job: len(os.fsencode(job.name)))
    files = [
        (option, path)
        for job in by_length
        for option, path in (("--out", job.out), ("--json", job.json), ("--mask-out", job.mask_out))
        if path != STANDARD or not sources.is_batch
    ]
    # Folders of masks are made once they are complete; the folder around them can be checked now.
    folders = {job.masks.parent for job in jobs if job.masks is not None}
    check_places([*files, *(("--masks", folder / "000.png") for folder in folders)], [job.source for job in jobs])
    for folder in {path.parent for job in jobs for path in job.outputs}:
        remove_stale(folder)
    return jobs


def _job_of_image(sources: Sources, request: OutputOptions) -> Job:
    """The job of a single image, whose outputs have the names given."""
    check_image_suffix("--out", request.out)
    check_image_suffix("--mask-out", request.mask_out)
    if request.mask_out not in (None, STANDARD) and request.mask_out.suffix.lower() != ".png":
        raise ImageError(f"--mask-out {request.mask_out}: expected a name that ends in .png, which is lossless")
    masks = None if request.masks is None else request.masks / sources.stems[0]
    return Job(
        sources.paths[0],
        sources.names[0],
        request.out,
        request.json,
        request.mask_out,
        masks,
        tolerance=request.polygons,
    )


def _jobs_of_batch(sources: Sources, request: OutputOptions) -> list[Job]:
    """The jobs of several images, whose outputs are named after the images."""
    from masklet.results.exporters import stable_id  # slow: imports numpy

    folders = {path.resolve().parent for path in sources.paths}
    for option, place in (
        ("--out", request.out),
        ("--json", request.json),
        ("--mask-out", request.mask_out),
        ("--masks", request.masks),
    ):
        if place is not None:
            _check_folder(option, place, folders)

    def within(folder: Path | None, stem: str, suffix: str) -> Path | None:
        return folder if folder in (None, STANDARD) else folder / f"{stem}{suffix}"

    jobs = [
        Job(
            path,
            name,
            within(request.out, stem, ".png"),
            within(request.json, stem, ".json"),
            within(request.mask_out, stem, ".png"),
            within(request.masks, stem, ""),
            stable_id(name),
            request.polygons,
        )
        for path, name, stem in zip(sources.paths, sources.names, sources.stems, strict=True)
    ]
    if request.masks is not None:
        places = {job.masks for job in jobs}
        if nested := [job for job in jobs if job.masks is not None and places & set(job.masks.parents)]:
            raise MaskletError(
                f"the masks of {nested[0].name} would lie inside the folder of another image's masks: expected one "
                "command for each folder"
            )
    return jobs


def _check_folder(option: str, place: Path, sources: set[Path]) -> None:
    """Refuses an output of several images unless it is a folder apart from them; JSON may go to the standard output."""
    if place == STANDARD and option == "--json":
        return
    if place == STANDARD:
        raise MaskletError(f"{option} -: expected a folder, since there are several images")
    if place.resolve() in sources:
        raise MaskletError(f"{option} {place} is the folder of the images: expected another folder")
    if os.path.exists(place) and not place.is_dir():
        raise MaskletError(f"{option} {place} is a file: expected a folder, since there are several images")
    from PIL import Image

    is_file_name = place.suffix.lower() in (".json", ".jsonl", *Image.registered_extensions())
    if is_file_name and not os.path.exists(place):
        raise MaskletError(f"{option} {place} is the name of a file: expected a folder, since there are several images")


def _check_masks_folder(folder: Path, source: Path) -> None:
    """Refuses to replace anything but a folder of masks."""
    if not os.path.lexists(folder):
        return
    if not folder.is_dir():
        raise MaskletError(f"{folder} is a file: expected a folder of masks, which is replaced, or nothing")
    if others := [path.name for path in folder.iterdir() if not re.fullmatch(r"\d+\.png", path.name)]:
        raise MaskletError(f"{folder} holds {others[0]}: expected a folder of masks, which is replaced, or nothing")
    if source.resolve().parent == folder.resolve():
        raise MaskletError(f"--masks would replace {folder}, which holds the image: expected another folder")


def write_folder(folder: Path, masks: Masks) -> None:
    """Writes a PNG for each mask, 000.png for the best. An older folder of masks is replaced once all are written."""
    unfinished = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=folder.parent))
    try:
        complete, old = unfinished / "new", unfinished / "old"
        complete.mkdir()
        for number, mask in enumerate(masks):
            mask.save(complete / f"{number:03}.png")
        if folder.exists():
            folder.rename(old)  # ``make_jobs`` has found only masks in it
        complete.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


# Running jobs


def run_jobs(jobs: list[Job], work: Callable[[Job], T], *, is_batch: bool) -> tuple[list[T], dict[str, MaskletError]]:
    """Does the work of one job after the other.

    Returns:
        What the jobs returned, and in a batch the errors of images that failed.

    Raises:
        MaskletError: The single image failed.
    """
    done: list[T] = []
    failures: dict[str, MaskletError] = {}
    for job in show_progress(jobs, len(jobs), unit="images"):
        try:
            with named_warnings(job.name):
                done.append(work(job))
        except (ImageError, OutputError, PromptError) as error:
            failure = with_hint(error, job.source)
            if not is_batch:
                raise failure from error
            failures[job.name] = failure
    return done, failures


@contextmanager
def named_warnings(name: str) -> Iterator[None]:
    """Prints every warning about an image with the image's name; Python would name a line of code, once."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ImageWarning)
        yield
    for warning in caught:
        if issubclass(warning.category, ImageWarning):
            print(f"masklet: {name}: {warning.message}", file=sys.stderr)
        else:
            warnings.showwarning(warning.message, warning.category, warning.filename, warning.lineno)


def report_failures(failures: Mapping[str, MaskletError]) -> None:
    """Lists images that failed and ends the command with status 1, if there are any."""
    for name, failure in failures.items():
        print(f"masklet: {name}:", " ".join(str(failure).split()), file=sys.stderr)
    if failures:
        raise typer.Exit(1)


def with_hint(error: MaskletError, image: Path) -> MaskletError:
    """The error, with the option that may help."""
    from PIL import Image

    from masklet.images.folder import IMAGE_SUFFIXES

    if isinstance(error.__cause__, Image.DecompressionBombError):
        return ImageError(f"{error} Or process it in tiles: masklet everything --tile 1024 --json FILE.jsonl")
    if isinstance(error, ImageError) and image.is_file() and image.suffix.lower() not in IMAGE_SUFFIXES:
        return ImageError(f"{error} If it is a video: masklet video, or masklet everything --every 30")
    return error
