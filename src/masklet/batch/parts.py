"""Parts of the results: Parquet files of masks, each with a record of the inputs it was made from.

The record is in the metadata of the file, so that masks and record appear together.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from masklet.batch.storage import Storage, missing
from masklet.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

    from masklet.results import Masks
    from masklet.video.frame_result import FrameResult

FOLDER = "masks"
"""Folder of the parts. pandas, Polars and DuckDB read it as one table."""
PARTS = f"{FOLDER}/part-*.parquet"
RECORD = b"masklet"
FORMAT = 1


@dataclass(frozen=True)
class Done:
    """An input, or the frames of a video, whose masks are in a part; or why there are none."""

    name: str
    stamp: str
    """See ``Input.stamp``."""
    digest: str
    """Digest of its content, see ``digest_of``; empty if it could not be read."""
    prompts: str = ""
    """Digest of its prompts."""
    masks: int = 0
    height: int = 0
    """Height of an image."""
    width: int = 0
    frames: int = 1
    chunk: int = 0
    """Chunk of a video, from 0."""
    is_last: bool = True
    error: str | None = None


def schema() -> pa.Schema:
    """The columns of all parts.

    - ``input``: the name of the image or video; ``frame`` and ``time`` (seconds): of a video, null for images.
    - ``object``: the object's id as text, unique within the image or video.
    - ``iou_score``: predicted IoU, 0 to 1; ``object_score``: of a video, a logit: above 0 the object is in the frame.
    - ``area``: pixels; ``box``: x0, y0, x1, y1, edges in pixels.
    - ``height``, ``width``: of the image; ``counts``: run lengths of the mask as COCO's bytes, column by column.
    """
    try:
        import pyarrow as pa
    except ImportError as error:
        raise missing("pyarrow") from error
    return pa.schema(
        [
            ("input", pa.string()),
            ("frame", pa.int32()),
            ("time", pa.float64()),
            ("object", pa.string()),
            ("iou_score", pa.float32()),
            ("object_score", pa.float32()),
            ("area", pa.int64()),
            ("box", pa.list_(pa.float32(), 4)),
            ("height", pa.int32()),
            ("width", pa.int32()),
            ("counts", pa.binary()),
        ]
    )


def rows_of(
    name: str,
    masks: Masks,
    objects: Sequence[Any],
    *,
    frame: int | None = None,
    time: float | None = None,
    object_scores: Iterable[float] | None = None,
) -> list[dict[str, Any]]:
    """A row for each mask, see ``schema``."""
    height, width = masks.masks.shape[-2:]
    scores = [None] * len(objects) if object_scores is None else list(map(float, object_scores))
    columns = (objects, masks.to_rle(), masks.iou_scores.tolist(), scores, masks.areas.tolist(), masks.boxes.tolist())
    return [
        {
            "input": name,
            "frame": frame,
            "time": time,
            "object": str(object_id),
            "iou_score": iou_score,
            "object_score": score,
            "area": area,
            "box": box,
            "height": height,
            "width": width,
            "counts": _as_bytes(run["counts"]),
        }
        for object_id, run, iou_score, score, area, box in zip(*columns, strict=True)
    ]


def frame_rows(name: str, result: FrameResult) -> list[dict[str, Any]]:
    """A row for each mask of a frame of a video."""
    return rows_of(
        name,
        result.masks,
        result.object_ids,
        frame=result.index,
        time=result.time,
        object_scores=result.object_scores,
    )


def write_part(
    storage: Storage, name: str, rows: Sequence[Mapping[str, Any]] | pa.Table, done: Sequence[Done], settings: str
) -> None:
    """Writes a part, whole or not at all.

    Args:
        storage: The folder of the results.
        name: Name of the file.
        rows: Rows of all masks, see ``rows_of``, or a table of them.
        done: What they were made from.
        settings: Identifies the model and the options.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(list(rows), schema())
    record = {"format": FORMAT, "settings": settings, "inputs": [asdict(one) for one in done]}
    table = table.replace_schema_metadata({RECORD: json.dumps(record)})
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    storage.write(name, buffer.getvalue())


def read_record(storage: Storage, name: str) -> tuple[str, list[Done]]:
    """The settings and the inputs of a part.

    Raises:
        DataError: It is not a part.
    """
    import pyarrow.parquet as pq

    try:
        with storage.open(name) as file:
            record = json.loads((pq.read_schema(file).metadata or {})[RECORD])
        if record["format"] != FORMAT:
            raise DataError(f"{name} has format {record['format']}: expected {FORMAT}")
        return record["settings"], [Done(**one) for one in record["inputs"]]
    except DataError:
        raise
    except Exception as error:  # pyarrow's own errors
        raise DataError(
            f"{storage.address} holds {name}, which masklet batch did not write: expected an empty folder, or the "
            "results of an earlier run"
        ) from error


def keep_only(storage: Storage, name: str, kept: Sequence[Done], settings: str) -> None:
    """Removes all but these inputs from a part; the part itself if there are none."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    if not kept:
        storage.remove(name)
        return
    table = pq.read_table(io.BytesIO(storage.read(name)))
    names = [one.name for one in kept]
    write_part(storage, name, table.filter(pc.is_in(table.column("input"), pa.array(names))), kept, settings)


def _as_bytes(counts: str | bytes) -> bytes:
    return counts.encode() if isinstance(counts, str) else counts
