"""The server as a Ray Serve application: replicas that scale with the load, on one machine or on many.

Each replica is the application of ``masklet serve`` with a model of its own. They share the database and the data
folder, and one of them at a time works on an image or a video, see ``masklet.serve.state.leases``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from masklet.cluster.connection import connect, enter, processes_that_fit
from masklet.errors import ConfigError, MaskletError
from masklet.serve.settings import Settings

if TYPE_CHECKING:
    from fastapi import FastAPI

NAME = "masklet"
"""Name of the application in Ray's dashboard."""
ROUTER = "masklet.cluster.routing:MediaRouter"
BUSY_REQUESTS = 4
"""Concurrent requests per replica above which Ray adds replicas. Streams of tracking jobs count."""
MAX_REQUESTS = 500
"""Concurrent requests in one replica; most of them are idle streams."""


@dataclass(frozen=True)
class Replicas:
    """Where replicas run, and how many.

    Args:
        address: Address of a cluster, "auto" or "local", see ``connect``; None to join one or start one.
        least: Least number of replicas.
        most: Greatest number of replicas, under load; as many as fit if None.
        cpus: CPUs per replica.
        gpus: GPUs per replica; with a fraction, replicas share one.

    Raises:
        ConfigError: A number is invalid.
    """

    address: str | None = None
    least: int = 1
    most: int | None = None
    cpus: float = 1
    gpus: float = 0

    def __post_init__(self) -> None:
        if self.least < 1 or (self.most is not None and self.most < self.least) or self.cpus <= 0 or self.gpus < 0:
            raise ConfigError(
                f"replicas from {self.least} to {self.most}, {self.cpus:g} CPUs and {self.gpus:g} GPUs: expected at "
                "least 1 replica, a maximum that is not smaller, more than 0 CPUs, and 0 or more GPUs"
            )


@contextmanager
def serving(settings: Settings, model: Mapping[str, Any], replicas: Replicas) -> Iterator[None]:
    """Serves until the block ends.

    Args:
        settings: Settings of the server. Ray's proxies, one per machine with a replica, listen on its host and port.
        model: Arguments of ``masklet.load``.
        replicas: Where replicas run, and how many.

    Raises:
        MaskletError: Ray Serve is missing, or the cluster cannot be reached or is too small; its machines would not
            share a database; a replica does not start.
    """
    ray = connect(replicas.address)
    try:
        from ray import serve
        from ray.serve.config import HTTPOptions, RequestRouterConfig
    except ImportError as error:
        raise MaskletError(f"Ray Serve needs {error.name}: pip install 'masklet[cluster]'") from error
    machines = {node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
    if len(machines) > 1 and settings.database is None:
        raise MaskletError(
            f"the cluster has {len(machines)} machines: give --database postgresql+psycopg://…, and a --data folder "
            "that all of them share"
        )
    fit = partial(processes_that_fit, ray, cpus=replicas.cpus, gpus=replicas.gpus, spare_cpus=0)
    fit(replicas.least)  # refuses what does not fit
    most = fit(replicas.most)

    folder = os.getcwd()

    def build() -> FastAPI:
        import masklet
        from masklet.serve.app import create_app

        enter(folder)
        return create_app(settings, masklet.load(**model))

    deployment = serve.deployment(
        name="server",
        ray_actor_options={"num_cpus": replicas.cpus, "num_gpus": replicas.gpus},
        max_ongoing_requests=MAX_REQUESTS,
        autoscaling_config={
            "min_replicas": replicas.least,
            "max_replicas": most,
            "target_ongoing_requests": BUSY_REQUESTS,
        },
        request_router_config=RequestRouterConfig(request_router_class=cast(Any, ROUTER)),  # Ray takes its path as well
    )(serve.ingress(build)())
    serve.start(proxy_location="EveryNode", http_options=HTTPOptions(host=settings.host, port=settings.port))
    try:
        try:
            serve.run(deployment.bind(), name=NAME, route_prefix="/")
        except RuntimeError as error:
            raise MaskletError(f"the replicas do not start: {error}") from error
        yield
    finally:
        serve.delete(NAME)
