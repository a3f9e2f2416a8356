"""Files of results, written by the exporters of the package."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from masklet.masks import decode_rle
from masklet.results import Masks
from masklet.serve.annotate import unpack_logits
from masklet.serve.library import file_of
from masklet.serve.problems import Problem
from masklet.serve.state.rows import objects_in, results_in
from masklet.serve.state.tables import Media
from masklet.serve.workspace import Workspace

IMAGE_FORMATS = {
    "coco": "json",
    "coco-polygons": "json",
    "png": "png",
    "overlay": "png",
    "cutout": "png",
    "npz": "npz",
    "svg": "svg",
    "geojson": "geojson",
    "labelme": "json",
    "labelstudio": "json",
    "cvat": "xml",
    "yolo": "txt",
}
"""Suffixes by format, of images."""
VIDEO_FORMATS = {
    "mp4": "mp4",
    "gif": "gif",
    "jsonl": "jsonl",
    "png": "zip",
    "cvat": "xml",
    "mot": "txt",
    "mots": "txt",
}
"""Suffixes by format, of videos."""


def export_media(ws: Workspace, media: Media, format: str, folder: Path) -> Path:
    """Writes one image or video, and returns the file.

    Raises:
        Problem: There is no such format, or nothing to export.
    """
    formats = IMAGE_FORMATS if media.kind == "image" else VIDEO_FORMATS
    if format not in formats:
        of = "an image" if media.kind == "image" else "a video"
        raise Problem(422, f"there is no export format {format!r} of {of}: expected {', '.join(formats)}")
    with ws.database.reading() as db:
        names = {row.number: row.name for row in objects_in(db, media.id)}
    path = folder / f"{Path(media.name).stem or 'masks'}-{format}.{formats[format]}"
    if media.kind == "image":
        write_image(ws, media, format, names, path)
    else:
        write_video(ws, media, format, names, path)
    return path


def masks_of(ws: Workspace, media: Media) -> Masks:
    """The masks of an image, with its pixels.

    Raises:
        Problem: There are none.
    """
    with ws.database.reading() as db:
        rows = results_in(db, media.id, 0)
    if not rows:
        raise Problem(409, f"there is nothing to export: {media.name} has no masks")
    with ws.encoded(media, 0) as encoded:
        image = encoded.image
    size = [media.height, media.width]
    logits = [unpack_logits(row.state) for row in rows]
    same = len({one.shape for one in logits}) == 1
    return Masks(
        decode_rle([{"size": size, "counts": row.counts} for row in rows]),
        np.concatenate(logits) if same else np.zeros((len(rows), 0, 0), np.float32),
        np.array([row.iou_score for row in rows], np.float32),
        np.array([row.object_number for row in rows]),
        image,
    )


def write_image(ws: Workspace, media: Media, format: str, names: dict[int, str], path: Path) -> None:
    """Writes the masks of an image."""
    masks = masks_of(ws, media)
    writers: dict[str, Callable[[], Any]] = {
        "coco": lambda: masks.to_coco_dataset(media.name, categories=names),
        "coco-polygons": lambda: masks.to_coco_dataset(media.name, categories=names, polygons=True),
        "geojson": lambda: masks.to_geojson(categories=names),
        "labelme": lambda: masks.to_labelme(media.name, categories=names),
        "labelstudio": lambda: [masks.to_label_studio(media.name, categories=names)],
        "cvat": lambda: masks.to_cvat(media.name, categories=names),
        "yolo": lambda: masks.to_yolo(categories=names),
        "overlay": lambda: masks.overlay().save(path),
        "cutout": lambda: masks.cutout().save(path),
        "png": lambda: masks.save(path),
        "npz": lambda: masks.save(path),
        "svg": lambda: masks.save(path),
    }
    written = writers[format]()
    if isinstance(written, str):
        path.write_text(written, encoding="utf-8")
    elif written is not None:
        path.write_text(json.dumps(written), encoding="utf-8")


def write_video(ws: Workspace, media: Media, format: str, names: dict[int, str], path: Path) -> None:
    """Writes the tracks of a video, from a separate session, so that others may continue to use the shared one."""
    session = ws.restored(media)
    if format in ("cvat", "mot", "mots"):
        session.export(path, format, categories=names)  # type: ignore[arg-type]
    elif format == "png":
        masks = path.with_suffix("")
        session.write(masks)
        pack(masks, path)
        shutil.rmtree(masks)
    else:
        session.write(path)


def export_project(ws: Workspace, media: list[Media], folder: Path, name: str) -> Path:
    """Writes an archive: the images of a project with one COCO data set, and its videos as JSON lines."""
    root = folder / "project"
    (root / "images").mkdir(parents=True)
    (root / "videos").mkdir()
    data: dict[str, Any] = {"images": [], "annotations": [], "categories": []}
    categories: dict[str, int] = {}
    for number, row in enumerate(media, start=1):
        stem = f"{number:04}-{Path(row.name).stem}"
        if row.kind == "video":
            session = ws.restored(row)
            if session.tracked_frames:
                session.write(root / "videos" / f"{stem}.jsonl")
            continue
        file_name = f"{stem}{Path(row.name).suffix}"  # an upload is kept without its suffix
        shutil.copyfile(file_of(ws.settings, row), root / "images" / file_name)
        data["images"].append({"id": number, "file_name": file_name, "width": row.width, "height": row.height})
        add_annotations(ws, row, number, data, categories)
    data["categories"] = [{"id": category, "name": one, "supercategory": ""} for one, category in categories.items()]
    (root / "annotations.json").write_text(json.dumps(data), encoding="utf-8")
    path = folder / f"{name}.zip"
    pack(root, path)
    return path


def add_annotations(ws: Workspace, row: Media, image_id: int, data: dict[str, Any], categories: dict[str, int]) -> None:
    """Adds the masks of an image to a COCO data set."""
    with ws.database.reading() as db:
        names = {one.number: one.name for one in objects_in(db, row.id)}
        if not results_in(db, row.id, 0):
            return
    masks = masks_of(ws, row)
    for name in names.values():
        categories.setdefault(name, len(categories) + 1)
    known = [*categories]
    for instance in masks.to_coco(image_id=image_id, categories=names, names=known):
        data["annotations"].append({**instance, "id": len(data["annotations"]) + 1})


def pack(folder: Path, path: Path) -> None:
    """Writes the files of a folder to an archive."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, file.relative_to(folder))
