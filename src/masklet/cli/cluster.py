"""Options of commands that run on Ray."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from masklet.errors import ConfigError

if TYPE_CHECKING:
    from masklet.batch.runs import Execute
    from masklet.cluster.serving import Replicas

CLUSTER = "Cluster"
Address = Annotated[
    str | None,
    typer.Option(
        metavar="[ADDRESS]",
        help="Run on Ray. ADDRESS is host:port or ray://host:port; auto for the cluster that runs on this machine; or "
        "local to start processes here. With no ADDRESS, joins the cluster that runs on this machine, or starts one.",
        rich_help_panel=CLUSTER,
    ),
]
ADDRESS = re.compile(r"local|auto|ray://\S+|[^/\s]+:\d+")


class CommandOnRay(TyperCommand):
    """A command with an option ``--cluster`` that may have no value, which Typer does not offer."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parses the arguments, with an empty value for ``--cluster`` where no address follows it."""
        found = []
        for word, following in zip_longest(args, args[1:], fillvalue=""):
            found.append(word)
            if word == "--cluster" and not ADDRESS.fullmatch(following):
                found.append("")
        return super().parse_args(ctx, found)


@dataclass(frozen=True, kw_only=True)
class ClusterOptions:
    """Where the work on a data set runs."""

    cluster: Address = None
    workers: Annotated[
        int | None,
        typer.Option(
            min=1, help="Processes, each with a model.", show_default="as many as fit", rich_help_panel=CLUSTER
        ),
    ] = None
    cpus_per_worker: Annotated[float, typer.Option(help="CPUs per process.", rich_help_panel=CLUSTER)] = 1
    gpus_per_worker: Annotated[
        float, typer.Option(help="GPUs per process; with 0.5, two share one.", rich_help_panel=CLUSTER)
    ] = 0

    def execute(self) -> Execute | None:
        """Runs the work on a cluster; None to run it in this process.

        Raises:
            ConfigError: Cluster options are given without ``--cluster``.
        """
        if self.cluster is None:
            if self != ClusterOptions():
                raise ConfigError("--workers, --cpus-per-worker and --gpus-per-worker are for --cluster: give both")
            return None
        from masklet.cluster.runs import Cluster

        return Cluster(self.cluster or None, self.workers, self.cpus_per_worker, self.gpus_per_worker)


@dataclass(frozen=True, kw_only=True)
class ReplicaOptions:
    """Where a server runs."""

    cluster: Address = None
    min_replicas: Annotated[int, typer.Option(min=1, help="Least number of processes.", rich_help_panel=CLUSTER)] = 1
    max_replicas: Annotated[
        int | None,
        typer.Option(min=1, help="Processes under full load.", show_default="as many as fit", rich_help_panel=CLUSTER),
    ] = None
    cpus_per_replica: Annotated[float, typer.Option(help="CPUs per process.", rich_help_panel=CLUSTER)] = 1
    gpus_per_replica: Annotated[
        float, typer.Option(help="GPUs per process; with 0.5, two share one.", rich_help_panel=CLUSTER)
    ] = 0

    def replicas(self) -> Replicas | None:
        """The replicas; None to serve from this process.

        Raises:
            ConfigError: Cluster options are given without ``--cluster``, or a number is invalid.
        """
        if self.cluster is None:
            if self != ReplicaOptions():
                raise ConfigError(
                    "--min-replicas, --max-replicas, --cpus-per-replica and --gpus-per-replica are for --cluster: give "
                    "both"
                )
            return None
        from masklet.cluster.serving import Replicas

        return Replicas(
            self.cluster or None, self.min_replicas, self.max_replicas, self.cpus_per_replica, self.gpus_per_replica
        )
