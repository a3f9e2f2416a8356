"""Masks of Ray data sets, for your own pipelines."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from masklet.batch.parts import frame_rows, rows_of, schema
from masklet.batch.prompt_files import prompts_of
from masklet.batch.tasks import ImageTask, Task, make_task
from masklet.cluster.connection import connect_data, enter
from masklet.cluster.runs import Cluster

if TYPE_CHECKING:
    import pyarrow as pa
    import ray.data


def segment(
    dataset: ray.data.Dataset,
    task: str = "everything",
    *,
    model: str = "nano",
    options: Mapping[str, Any] | None = None,
    pixels: Mapping[str, Any] | None = None,
    workers: int = 1,
    cpus: float = 1,
    gpus: float = 0,
    **tracking: Any,
) -> ray.data.Dataset:
    """Masks of the images or videos of a Ray data set.

    Args:
        dataset: One row per image or video. An image has a column ``image``, an array (height, width, channels) as
            ``read_images`` makes it, ``bytes``, the content of a file, or ``path``; a video has ``path``. The tasks
            "prompts" and "track" read ``prompts``, a list of dicts with the columns of ``masklet.batch.prompt_files``.
            ``input`` is the name in the results: by default the path, or the number of the row in its batch.
        task: "everything", "prompts", "track" or "discover".
        model: As in ``masklet.load``.
        options: Options of automatic masks.
        pixels: How values become colours, see ``Segmenter.image``.
        workers: Processes, each of which loads the model once.
        cpus: CPUs per worker.
        gpus: GPUs per worker.
        tracking: ``direction``, ``every`` and ``policy`` of "track"; ``every`` and ``policy`` of "discover".

    Returns:
        A row for each mask, with the columns of ``masklet.batch.parts.schema`` and ``error``: a row with only ``input``
        and ``error`` stands for an input that could not be processed.

    Raises:
        ConfigError: There is no such task or option.
        MaskletError: Ray is missing.
    """
    cluster = Cluster(workers=workers, cpus=cpus, gpus=gpus)
    chosen = make_task(task, options, pixels, **tracking)
    ray = connect_data(None)
    return dataset.map_batches(
        _Segmenting,
        fn_constructor_args=[chosen, {"name": model}, os.getcwd()],
        batch_size=1,
        batch_format="numpy",
        **cluster.resources(ray, workers),
    )


class _Segmenting:
    """A process on Ray that yields the masks of rows."""

    def __init__(self, task: Task, model: Mapping[str, Any], folder: str) -> None:
        import masklet

        enter(folder)
        self.task = task
        self.sam = masklet.load(**model)

    def __call__(self, batch: Mapping[str, Any]) -> Iterator[pa.Table]:
        (count,) = {len(column) for column in batch.values()}
        for number in range(count):
            row = {name: column[number] for name, column in batch.items()}
            name = str(row.get("input", row.get("path", number)))
            try:
                for rows in self._rows(name, row):
                    yield _table(rows)
            except Exception as error:  # one input must not stop the others
                yield _table([{"input": name, "error": f"{type(error).__name__}: {error}"}])

    def _rows(self, name: str, row: Mapping[str, Any]) -> Iterator[list[dict[str, Any]]]:
        prompts = prompts_of(list(row["prompts"])) if row.get("prompts") is not None else []
        if isinstance(self.task, ImageTask):
            yield rows_of(name, *self.task.segment(self.sam, _image_of(row), prompts))
            return
        session = self.task.open(self.sam, Path(row["path"]))
        for result in self.task.start(session, prompts):
            yield frame_rows(name, result)


def _image_of(row: Mapping[str, Any]) -> Any:
    if "image" in row:
        return np.asarray(row["image"])
    return io.BytesIO(row["bytes"]) if "bytes" in row else row["path"]


def _table(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    import pyarrow as pa

    return pa.Table.from_pylist([dict(row) for row in rows], schema().append(pa.field("error", pa.string())))
