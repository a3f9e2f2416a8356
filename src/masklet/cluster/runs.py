"""Runs over data sets on Ray: many processes, on one machine or on many.

The results themselves show what is finished, so nothing else needs to survive a failure.
"""

from __future__ import annotations

import json
import os
import pickle
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from masklet.batch.worker import Block, Report, Work, Worker
from masklet.cluster.connection import READING_CPUS, connect_data, enter, processes_that_fit
from masklet.errors import ConfigError, MaskletError


@dataclass(frozen=True)
class Cluster:
    """Where to run, and with which resources. Pass it to a ``Run`` as ``execute``.

    Args:
        address: Address of a cluster, "auto" or "local", see ``connect``; None to join one or start one.
        workers: Processes, each with a model; as many as fit if None.
        cpus: CPUs per worker.
        gpus: GPUs per worker; with a fraction, workers share one.
    """

    address: str | None = None
    workers: int | None = None
    cpus: float = 1
    gpus: float = 0

    def __post_init__(self) -> None:
        if (self.workers is not None and self.workers < 1) or self.cpus <= 0 or self.gpus < 0:
            raise ConfigError("workers and cpus: expected numbers above 0; gpus: 0 or more")

    def __call__(self, work: Work, blocks: Sequence[Block]) -> Iterator[Report]:
        """Runs the blocks and yields a report for each part when it is written.

        Raises:
            MaskletError: Ray is missing, the cluster cannot be reached, or is too small; a worker cannot continue, for
                example because the results cannot be written.
        """
        if not blocks:
            return
        ray = connect_data(self.address)
        fitting = processes_that_fit(ray, self.workers, cpus=self.cpus, gpus=self.gpus, spare_cpus=READING_CPUS)
        workers = min(fitting, len(blocks))
        dataset = ray.data.from_items(
            [{"block": pickle.dumps(block)} for block in blocks], override_num_blocks=len(blocks)
        )
        dataset.context.target_max_block_size = 1  # so that Ray passes on each report at once
        reports = dataset.map_batches(
            _WorkerOnRay, fn_constructor_args=[work, os.getcwd()], batch_size=1, **self.resources(ray, workers)
        )
        try:
            for row in reports.iter_rows():
                yield Report(**json.loads(row["report"]))
        except ray.exceptions.RayError as error:
            raise MaskletError(f"a worker cannot continue: {_reason(error)}") from error

    def resources(self, ray: Any, workers: int) -> dict[str, Any]:
        """Arguments of ``Dataset.map_batches``."""
        return {
            "compute": ray.data.ActorPoolStrategy(size=workers),
            "num_cpus": self.cpus,
            "num_gpus": self.gpus or None,
        }


class _WorkerOnRay:
    """A process on Ray that makes parts."""

    def __init__(self, work: Work, folder: str) -> None:
        enter(folder)
        self.worker = Worker(work)

    def __call__(self, batch: dict[str, Any]) -> Iterator[dict[str, Any]]:
        for block in batch["block"]:
            for report in self.worker(pickle.loads(block)):
                yield {"report": [json.dumps(asdict(report))]}


def _reason(error: Exception) -> str:
    """The message of a worker's error, extracted from Ray's text."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    ours = [line.partition(": ")[2] for line in lines if re.match(r"masklet\.errors\.\w+: ", line)]
    return (ours or lines or [type(error).__name__])[-1]
