"""Images, and the files that their masks are written to."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections import Counter
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from masklet.atomic import replacing
from masklet.cli.image import check_outputs
from masklet.cli.outputs import check_places, naming
from masklet.errors import ImageError, MaskletError

if TYPE_CHECKING:
    from masklet.results import Masks


@dataclass(frozen=True)
class Job:
    """An image and its outputs; as requested by the user, also a folder of images or a video."""

    source: Path
    overlay: Path | None
    json: Path | None
    masks: Path | None
    image_id: int = 1
    """In the COCO data set."""

    @property
    def outputs(self) -> list[Path]:
        """The requested files and folders."""
        return [path for path in (self.overlay, self.json, self.masks) if path is not None]

    @property
    def is_finished(self) -> bool:
        """Whether an earlier run wrote all outputs."""
        return bool(self.outputs) and all(os.path.exists(path) for path in self.outputs)  # False if a name is too long

    def write(self, masks: Masks) -> None:
        """Writes all outputs, each completely or not at all."""
        if self.json is not None:
            with naming(self.json), replacing(self.json) as unfinished:
                unfinished.write_text(self._json_text(masks), encoding="utf-8")
        if self.overlay is not None:
            with naming(self.overlay), replacing(self.overlay) as unfinished:
                masks.overlay().save(unfinished)
        if self.masks is not None:
            with naming(self.masks):
                write_folder(self.masks, masks)

    def _json_text(self, masks: Masks) -> str:
        """A COCO data set; in a .jsonl file its annotations, one per line."""
        from masklet.results.exporters import coco_data

        assert self.json is not None
        instances = masks.to_coco(image_id=self.image_id)
        if self.json.suffix.lower() == ".jsonl":
            return "".join(json.dumps(instance) + "\n" for instance in instances)
        return json.dumps(coco_data(instances, self.source.name, masks.size_hw, image_id=self.image_id))


def job_of_image(request: Job) -> Job:
    """The job of a single image, whose outputs have the names given."""
    check_outputs(out=request.overlay, mask_out=None)
    return request if request.masks is None else replace(request, masks=request.masks / request.source.stem)


def jobs_of_folder(request: Job) -> list[Job]:
    """The jobs of all images in a folder, whose outputs are named after the images."""
    from masklet.images.folder import IMAGE_SUFFIXES, images_in

    folder = request.source
    images = images_in(folder)
    if not images:
        raise ImageError(f"no images in {folder}: expected files that end in {', '.join(IMAGE_SUFFIXES)}")
    for option, place in (("--out", request.overlay), ("--json", request.json), ("--masks", request.masks)):
        if place is not None and place.resolve() == folder.resolve():
            raise MaskletError(f"{option} {place} is the folder of the images: expected another folder")
        if place is not None and place.exists() and not place.is_dir():
            raise MaskletError(f"{option} {place} is a file: expected a folder, since {folder} is a folder of images")
    stems = Counter(path.stem.casefold() for path in images)
    names = [path.stem if stems[path.stem.casefold()] == 1 else path.name for path in images]
    return [
        Job(
            image,
            None if request.overlay is None else request.overlay / f"{name}.png",
            None if request.json is None else request.json / f"{name}.json",
            None if request.masks is None else request.masks / name,
            image_id_of(image.name),
        )
        for image, name in zip(images, names, strict=True)
    ]


def image_id_of(name: str) -> int:
    """An id that depends on the image's name only, so that later runs on the same folder do not change it."""
    return int.from_bytes(sha256(os.fsencode(name)).digest()[:6], "big")  # numbers in JSON are exact up to 53 bits


def check_jobs(jobs: list[Job]) -> None:
    """Checks, before the work starts, that all outputs are writable and replace nothing but earlier outputs."""
    for job in jobs:
        if job.masks is not None:
            _check_masks_folder(job.masks, job.source)
    # The shortest name first, since it checks the folder: names that are too long fail later, one by one.
    by_length = sorted(jobs, key=lambda job: len(os.fsencode(job.source.name)))
    files = [(option, path) for job in by_length for option, path in (("--out", job.overlay), ("--json", job.json))]
    # Folders of masks are made once they are complete; the folder around them can be checked now.
    folders = {job.masks.parent for job in jobs if job.masks is not None}
    check_places([*files, *(("--masks", folder / "000.png") for folder in folders)], [job.source for job in jobs])


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
        for number, mask in enumerate(masks):
            mask.save(unfinished / f"{number:03}.png")
        unfinished.chmod(0o755)
        if folder.exists():
            shutil.rmtree(folder)  # ``check_jobs`` has found only masks in it
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
