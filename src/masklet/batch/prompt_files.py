"""Prompts of many images or videos, from a file.

A JSON, CSV or Parquet file has a row for each prompt, with the columns

- ``image`` or ``video``: the input's name, as in the results; without it, the prompts are for every input;
- ``frame``: of a video, from 0; 0 if it is missing;
- ``object``: the object's id, a number or a name; rows of one input without it are objects of their own;
- ``x``, ``y`` and ``label``: a point in pixels, x right and y down; label 1 on the object (or missing), 0 beside it;
- ``points``: several of them, [[x, y], …] or [[x, y, label], …];
- ``box``: [x0, y0, x1, y1]; or the columns ``x0``, ``y0``, ``x1`` and ``y1``;
- ``mask``: the path of an image of the object, black outside, or a COCO run length {"size", "counts"}.

Rows of one input, frame and object are one prompt: their points add up. JSON is a list of rows, or a row in each line.
A COCO data set is read as well: its boxes; the mask of annotations without a box; and visible keypoints as points.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from masklet.batch.storage import missing, open_file_system
from masklet.errors import PromptError
from masklet.numbers import real_number, shown, whole_number

EVERY = ""
"""Stands for every input."""
SUFFIXES = (".json", ".jsonl", ".csv", ".parquet")


@dataclass
class ObjectPrompt:
    """What is known of an object in an image, or in a frame of a video."""

    object: int | str
    frame: int = 0
    points: list[tuple[float, float, int]] = field(default_factory=list)
    box: tuple[float, float, float, float] | None = None
    mask: str | dict[str, Any] | None = None
    """The path of an image, or a COCO run length."""

    def keywords(self) -> dict[str, Any]:
        """The arguments of ``VideoSession.prompt``, and of ``EncodedImage.predict`` for one object."""
        return {"points": self.points or None, "box": self.box, "mask": self._mask()}

    def to_json(self) -> dict[str, Any]:
        """As a dict for JSON."""
        return asdict(self)

    def _mask(self) -> np.ndarray | None:
        if self.mask is None:
            return None
        if isinstance(self.mask, str):
            from masklet.mask_prompts import read_mask_file  # slow: imports torch

            if "://" not in self.mask:
                return read_mask_file(self.mask)
            file_system, path = open_file_system(self.mask)
            return read_mask_file(io.BytesIO(file_system.cat_file(path)))
        from masklet.masks import decode_rle
        from masklet.results.importers import read_run_lengths

        mask: np.ndarray = decode_rle([read_run_lengths(self.mask["size"], self.mask["counts"], 0)])[0]
        return mask


class PromptTable:
    """The prompts of a file by input."""

    def __init__(self) -> None:
        self.by_input: dict[str, dict[tuple[int | str, int], ObjectPrompt]] = {}

    def of(self, name: str) -> list[ObjectPrompt]:
        """The prompts of an input: its own, or those of every input."""
        found = self.by_input.get(name) or self.by_input.get(name.rpartition("/")[2]) or self.by_input.get(EVERY) or {}
        return list(found.values())

    def at(self, name: str, object_id: int | str | None, frame: int) -> ObjectPrompt:
        """The prompt of an object, made if it is not there; an object without an id is one of its own."""
        prompts = self.by_input.setdefault(name, {})
        if object_id is None:
            object_id = 1 + len({object_id for object_id, _ in prompts})
        return prompts.setdefault((object_id, frame), ObjectPrompt(object_id, frame))


def read_prompt_file(address: str) -> PromptTable:
    """Reads a file of prompts, see this module.

    Raises:
        PromptError: It cannot be read, or a row is invalid.
    """
    file_system, path = open_file_system(address)
    try:
        content: bytes = file_system.cat_file(path)
    except OSError as error:
        raise PromptError(f"cannot read the prompts in {address}: {error.strerror or error}") from error
    suffix = next((suffix for suffix in SUFFIXES if path.lower().endswith(suffix)), None)
    if suffix is None:
        raise PromptError(f"{address}: expected prompts in a file that ends in {', '.join(SUFFIXES)}")
    data = _DECODERS[suffix](content, address)
    table = PromptTable()
    if isinstance(data, Mapping) and {"images", "annotations"} <= data.keys():
        _add_coco(table, data, address)
    else:
        _add_rows(table, data.get("prompts") if isinstance(data, Mapping) else data, address)
    if not table.by_input:
        raise PromptError(f"{address} holds no prompts")
    return table


def prompts_of(rows: Sequence[Mapping[str, Any]]) -> list[ObjectPrompt]:
    """The prompts of one input, from rows with the columns of this module.

    Raises:
        PromptError: A row is invalid.
    """
    table = PromptTable()
    _add_rows(table, [{**row, "image": EVERY} for row in rows], "prompts")
    return table.of(EVERY)


def _add_rows(table: PromptTable, rows: Any, address: str) -> None:
    if not isinstance(rows, list) or not all(isinstance(row, Mapping) for row in rows):
        raise PromptError(f"{address}: expected a list of rows, each with its columns by name, or a COCO data set")
    for number, row in enumerate(rows, start=1):
        try:
            _add_row(table, {key: value for key, value in row.items() if not _is_blank(value)})
        except PromptError as error:
            raise PromptError(f"{address}, row {number}: {error}") from error


def _add_row(table: PromptTable, row: Mapping[str, Any]) -> None:
    known = {"image", "video", "frame", "object", "x", "y", "label", "points", "box", "mask", "x0", "y0", "x1", "y1"}
    if unknown := row.keys() - known:
        raise PromptError(f"there is no column {min(unknown)}: expected {', '.join(sorted(known))}")
    name = str(row.get("image", row.get("video", EVERY)))
    frame = whole_number("frame", _number(row.get("frame", 0)), PromptError, least=0)
    prompt = table.at(name, _object_id(row.get("object")), frame)
    given = len(prompt.points), prompt.box, prompt.mask
    if ("x" in row) != ("y" in row):
        raise PromptError("a point needs both x and y")
    if "x" in row:
        prompt.points.append(_point([row["x"], row["y"], row.get("label", 1)]))
    prompt.points += [_point(point) for point in _listed(row.get("points", []), "points")]
    box = _listed(row["box"], "box") if "box" in row else [row[c] for c in ("x0", "y0", "x1", "y1") if c in row]
    if box:
        if len(box) != 4:
            raise PromptError(f"box is {shown(box)}: expected x0, y0, x1 and y1")
        if prompt.box is not None:
            raise PromptError(
                f"object {prompt.object!r} has a second box: expected one, and other ids for other objects"
            )
        prompt.box = tuple(real_number("box", _number(value), PromptError) for value in box)  # type: ignore[assignment]
    if "mask" in row:
        if prompt.mask is not None:
            raise PromptError(f"object {prompt.object!r} has a second mask: expected one")
        prompt.mask = _mask(row["mask"])
    if given == (len(prompt.points), prompt.box, prompt.mask):
        raise PromptError("there is no prompt in it: expected x and y, points, box or mask")


def _add_coco(table: PromptTable, data: Mapping[str, Any], address: str) -> None:
    """Adds the annotations of a COCO data set."""
    try:
        names = {image["id"]: str(image["file_name"]) for image in data["images"]}
        for annotation in data["annotations"]:
            name = names[annotation["image_id"]]
            prompt = table.at(
                name, annotation.get("object_id"), whole_number("frame", annotation.get("frame", 0), PromptError)
            )
            keypoints = annotation.get("keypoints") or []
            prompt.points += [
                _point([x, y]) for x, y, v in zip(keypoints[::3], keypoints[1::3], keypoints[2::3], strict=False) if v
            ]
            if annotation.get("bbox"):
                x, y, width, height = (real_number("bbox", value, PromptError) for value in annotation["bbox"])
                prompt.box = (x, y, x + width, y + height)
            elif annotation.get("segmentation"):
                prompt.mask = _coco_mask(annotation, data)
    except (KeyError, TypeError, ValueError) as error:
        raise PromptError(f"{address} is not a COCO data set that can be read: {error!r}") from error


def _coco_mask(annotation: Mapping[str, Any], data: Mapping[str, Any]) -> dict[str, Any]:
    from masklet.results.importers import read_segmentation

    image = next(image for image in data["images"] if image["id"] == annotation["image_id"])
    size_hw = (image["height"], image["width"]) if {"height", "width"} <= image.keys() else None
    run = read_segmentation(annotation["segmentation"], size_hw, 0)
    counts = run["counts"]
    return {"size": list(run["size"]), "counts": counts.decode() if isinstance(counts, bytes) else counts}


def _mask(value: Any) -> str | dict[str, Any]:
    if isinstance(value, str) and not value.lstrip().startswith("{"):
        return value
    found = _decoded(value, "mask")
    if isinstance(found, Mapping) and {"size", "counts"} <= found.keys():
        return {"size": found["size"], "counts": found["counts"]}
    raise PromptError("mask is neither the path of an image nor a COCO run length with size and counts")


def _object_id(value: Any) -> int | str | None:
    """Numbers, also as text (in CSV) and as whole floats (in pandas), are numbers."""
    if value is None:
        return None
    if isinstance(value, str):
        return int(value) if value.isascii() and value.isdigit() else value
    return whole_number("object", value, PromptError)


def _point(values: Any) -> tuple[float, float, int]:
    values = list(values) if isinstance(values, list | tuple | np.ndarray) else []
    if len(values) not in (2, 3):
        raise PromptError("a point is x, y, or x, y, label")
    x, y = (real_number(name, _number(value), PromptError) for name, value in zip("xy", values, strict=False))
    return x, y, whole_number("label", _number(values[2]), PromptError, least=0, most=1) if len(values) == 3 else 1


def _listed(value: Any, name: str) -> list[Any]:
    """A list, also as JSON text (in CSV) or as an array (in Parquet)."""
    found = _decoded(value, name)
    found = found.tolist() if isinstance(found, np.ndarray) else found
    if not isinstance(found, list | tuple):
        raise PromptError(f"{name} is {shown(value)}: expected a list, as in [10, 20, 30, 40] or [[10, 20], [30, 40]]")
    return list(found)


def _decoded(value: Any, name: str) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        raise PromptError(f"{name} is {value!r}: expected JSON, as in [[10, 20], [30, 40]]") from None


def _number(value: Any) -> Any:
    """A number, also as text (in CSV)."""
    if not isinstance(value, str):
        return value
    try:
        return float(value)
    except ValueError:
        raise PromptError(f"{value!r} is not a number") from None


def _is_blank(value: Any) -> bool:
    return (
        value is None or (isinstance(value, str) and not value.strip()) or (isinstance(value, float) and value != value)
    )


def _read_json(content: bytes, address: str) -> Any:
    try:
        return json.loads(content)
    except ValueError as error:
        if address.lower().endswith(".jsonl"):
            return _read_lines(content, address)
        raise PromptError(f"{address} is not JSON: {error}") from error


def _read_lines(content: bytes, address: str) -> list[Any]:
    try:
        return [json.loads(line) for line in content.splitlines() if line.strip()]
    except ValueError as error:
        raise PromptError(f"{address} is not a line of JSON for each prompt: {error}") from error


def _read_csv(content: bytes, address: str) -> list[dict[str, Any]]:
    rows = list(csv.DictReader(io.StringIO(content.decode("utf-8-sig", "replace"), newline="")))
    if any(None in row for row in rows):
        raise PromptError(f"{address} has rows with more values than columns: put lists into quotation marks")
    return rows


def _read_parquet(content: bytes, address: str) -> list[dict[str, Any]]:
    try:
        import pyarrow.parquet as pq
    except ImportError as error:
        raise missing("pyarrow") from error
    try:
        rows: list[dict[str, Any]] = pq.read_table(io.BytesIO(content)).to_pylist()
    except Exception as error:  # pyarrow's own errors
        raise PromptError(f"{address} is not a Parquet file that pyarrow can read: {error}") from error
    return rows


_DECODERS = {".json": _read_json, ".jsonl": _read_lines, ".csv": _read_csv, ".parquet": _read_parquet}
