"""COCO data sets of the parts of a run: one for each part, and one of all."""

from __future__ import annotations

import io
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any

from masklet.batch.parts import read_record
from masklet.batch.storage import Storage
from masklet.masks import Rle
from masklet.results.exporters import coco_instance, stable_id

CATEGORY_ID = 1
CATEGORIES = [{"id": CATEGORY_ID, "name": "object"}]
MERGED = "annotations.json"


def write_coco(storage: Storage, parts: Sequence[str]) -> None:
    """Writes ``coco/<part>.json`` for each part, and ``annotations.json`` of all, which is never in memory whole."""
    for part in parts:
        pairs = list(instances(storage, part))
        data = {"images": [image for image, _ in pairs], "annotations": [one for _, found in pairs for one in found]}
        storage.write(_place(part), json.dumps({**data, "categories": CATEGORIES}).encode())
    kept = set(map(_place, parts))
    for name in storage.names("coco/part-*.json"):
        if name not in kept:
            storage.remove(name)
    with storage.writing(MERGED) as file:
        file.write(b'{"categories": ' + json.dumps(CATEGORIES).encode())
        for key in ("images", "annotations"):
            file.write(b', "' + key.encode() + b'": [')
            separator = b"\n"
            for image, found in (pair for part in parts for pair in instances(storage, part)):
                for one in [image] if key == "images" else found:
                    file.write(separator + json.dumps(one).encode())
                    separator = b",\n"
            file.write(b"]")
        file.write(b"}\n")


def instances(storage: Storage, part: str) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """The images of a part, each with its annotations. Ids depend on the image's name only."""
    import pyarrow.parquet as pq

    rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in pq.read_table(io.BytesIO(storage.read(part))).to_pylist():
        rows[row["input"]].append(row)
    for done in read_record(storage, part)[1]:
        if done.error is not None:
            continue
        number = stable_id(done.name)
        image = {"id": number, "file_name": done.name, "height": done.height, "width": done.width}
        yield image, [_annotation(row, number, place) for place, row in enumerate(rows[done.name])]


def _place(part: str) -> str:
    """Path of the data set of a part."""
    return f"coco/{PurePosixPath(part).stem}.json"


def _annotation(row: dict[str, Any], image_id: int, place: int) -> dict[str, Any]:
    segmentation: Rle = {"size": [row["height"], row["width"]], "counts": row["counts"].decode("ascii")}
    return coco_instance(
        number=stable_id(f"{row['input']}/{place}"),
        segmentation=segmentation,
        box=row["box"],
        area=row["area"],
        score=row["iou_score"],
        object_id=row["object"],
        image_id=image_id,
        category_id=CATEGORY_ID,
    )
