"""The same work on Ray: many processes, on one machine or on many.

Ray schedules, restarts and retries. What was finished is known from the results, so nothing else needs to survive.
"""

from __future__ import annotations

import io
import json
import logging
import os
import pickle
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from masklet.batch.parts import frame_rows, rows_of, schema
from masklet.batch.prompt_files import prompts_of
from masklet.batch.tasks import ImageTask, Task, make_task
from masklet.batch.worker import Block, Report, Work, Worker
from masklet.errors import ConfigError, MaskletError

if TYPE_CHECKING:
    import pyarrow as pa
    import ray.data

LOCAL = "local"
"""Address of a cluster that is started on this machine."""
READING_CPUS = 1
"""CPUs left to Ray for reading: if workers take all, a data set waits for ever."""


@dataclass(frozen=True)
class Cluster:
    """Where to run, and with how much. Call it as ``execute`` of a ``Run``.

    Args:
        address: Of a running cluster (``ray://host:10001``, ``auto``), or "local".
        workers: Processes that each hold a model; as many as fit if None.
        cpus: Of each worker.
        gpus: Of each worker; a part of one shares it.
    """

    address: str = LOCAL
    workers: int | None = None
    cpus: float = 1
    gpus: float = 0

    def __post_init__(self) -> None:
        if (self.workers is not None and self.workers < 1) or self.cpus <= 0 or self.gpus < 0:
            raise ConfigError("workers and cpus: expected numbers above 0; gpus: 0 or more")

    def __call__(self, work: Work, blocks: Sequence[Block]) -> Iterator[Report]:
        """Runs the blocks; reports come as they are done.

        Raises:
            MaskletError: Ray is missing, the cluster cannot be reached, or is too small.
        """
        if not blocks:
            return
        ray = self.connect()
        workers = min(self._fitting(ray), len(blocks))
        dataset = ray.data.from_items(
            [{"block": pickle.dumps(block)} for block in blocks], override_num_blocks=len(blocks)
        )
        reports = dataset.map_batches(
            _WorkerOnRay, fn_constructor_args=[work], batch_size=1, **self.resources(ray, workers)
        )
        for row in reports.iter_rows():
            yield Report(**json.loads(row["report"]))

    def connect(self) -> Any:
        """The ``ray`` module, connected, with settings for long work.

        By default Ray Data ends a job at the first error of a worker. Errors of inputs are caught before it sees them;
        what is left (a worker or a node that died, a store that does not answer) is tried again.
        """
        try:
            import ray
        except ImportError as error:
            raise MaskletError("this needs Ray: pip install 'masklet[cluster]'") from error
        if not ray.is_initialized():
            try:
                if self.address == LOCAL:
                    ray.init(num_cpus=(os.cpu_count() or 1) + READING_CPUS, log_to_driver=False)
                else:
                    ray.init(address=self.address, log_to_driver=False)
            except Exception as error:  # of the network, of versions …
                raise MaskletError(f"cannot connect to the Ray cluster at {self.address}: {error}") from error
        logging.getLogger("ray.data").setLevel(logging.WARNING)
        context = ray.data.DataContext.get_current()
        context.actor_task_retry_on_errors = True
        context.enable_progress_bars = False
        return ray

    def resources(self, ray: Any, workers: int) -> dict[str, Any]:
        """Arguments of ``Dataset.map_batches``."""
        return {
            "compute": ray.data.ActorPoolStrategy(size=workers),
            "num_cpus": self.cpus,
            "num_gpus": self.gpus or None,
        }

    def _fitting(self, ray: Any) -> int:
        """How many workers there are to be."""
        total = ray.cluster_resources()
        fitting = [int((total.get("CPU", 0) - READING_CPUS) / self.cpus)]
        if self.gpus:
            fitting.append(int(total.get("GPU", 0) / self.gpus))
        wanted = self.workers or max(1, min(fitting))
        if wanted > min(fitting):
            raise MaskletError(
                f"the cluster has {total.get('CPU', 0):g} CPUs and {total.get('GPU', 0):g} GPUs: {wanted} workers with "
                f"{self.cpus:g} CPUs and {self.gpus:g} GPUs each, and {READING_CPUS} CPU for reading, do not fit. "
                "Expected fewer workers, or a larger cluster"
            )
        return wanted


class _WorkerOnRay:
    """A process on Ray that makes parts."""

    def __init__(self, work: Work) -> None:
        self.worker = Worker(work)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        reports = [self.worker(pickle.loads(block)) for block in batch["block"]]
        return {"report": [json.dumps(asdict(report)) for report in reports]}


# In other people's pipelines


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
        dataset: A row for each image or video. ``image``: an array (height, width, channels), as ``read_images`` makes
            them, or ``bytes``: the content of a file, or ``path``: of a file; videos have a ``path``. ``prompts``, for
            the tasks "prompts" and "track": a list of dicts with the columns of ``masklet.batch.prompt_files``.
            ``input``: the name in the results; the path, or the number of the row in its batch, if it is missing.
        task: "everything", "prompts", "track" or "discover".
        model: As in ``masklet.load``.
        options: Of automatic masks.
        pixels: How values become colours, see ``Segmenter.image``.
        workers: Processes, each of which loads the model once.
        cpus: Of each.
        gpus: Of each.
        tracking: ``direction`` and ``every`` of "track"; ``every`` of "discover".

    Returns:
        A row for each mask, with the columns of ``masklet.batch.parts.schema`` and ``error``: a row with only ``input``
        and ``error`` stands for an input that could not be processed. Frames of a video come as they are tracked.

    Raises:
        ConfigError: There is no such task or option.
        MaskletError: Ray is missing.
    """
    cluster = Cluster(workers=workers, cpus=cpus, gpus=gpus)
    chosen = make_task(task, options, pixels, **tracking)
    ray = cluster.connect()
    return dataset.map_batches(
        _Segmenting,
        fn_constructor_args=[chosen, {"name": model}],
        batch_size=1,
        batch_format="numpy",
        **cluster.resources(ray, workers),
    )


class _Segmenting:
    """A process on Ray that yields the masks of rows."""

    def __init__(self, task: Task, model: Mapping[str, Any]) -> None:
        import masklet

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
