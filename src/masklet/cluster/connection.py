"""A connection to Ray, with settings for long work."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from masklet.errors import MaskletError

LOCAL = "local"
"""Stands for a cluster that is started on this machine."""
TOKENS = "If it has tokens, as clusters have by default, set RAY_AUTH_MODE=token and see `ray get-auth-token`"
READING_CPUS = 1
"""CPUs left free for Ray's readers: if workers take all of them, a data set waits forever."""
TRIES = 3
"""How often Ray retries a task that raised an error, or the start of a worker that died while starting."""


def connect(address: str | None) -> Any:
    """The ``ray`` module, connected. Ray logs whether it has joined a cluster or started one.

    Args:
        address: Address of a running cluster (``host:6379``, ``ray://host:10001``); "auto" for the one that runs on
            this machine, or that the environment variable RAY_ADDRESS names; "local" to start one on this machine;
            None to start one if there is none to join, as in ``ray.init()``. Ignored if Ray is connected.

    Raises:
        MaskletError: Ray is missing, or the cluster cannot be reached.
    """
    try:
        import ray
    except ImportError as error:
        raise MaskletError("this needs Ray: pip install 'masklet[cluster]'") from error
    if ray.is_initialized():
        return ray
    address = address or os.environ.get("RAY_ADDRESS") or None
    start = partial(ray.init, num_cpus=(os.cpu_count() or 1) + READING_CPUS, log_to_driver=False)
    join = partial(ray.init, log_to_driver=False)
    try:
        if address is None:
            _join_or_start(join, start)
        elif address == LOCAL:
            start(address=LOCAL)
        else:
            join(address=address)
    except Exception as error:  # network failures, version mismatches …
        place = f"the Ray cluster at {address}" if address else "Ray"
        hint = "" if address in (None, LOCAL) else f". {TOKENS}"
        raise MaskletError(f"cannot connect to {place}: {error}{hint}") from error
    return ray


def _join_or_start(join: Callable[..., Any], start: Callable[..., Any]) -> None:
    try:
        start()
    except ValueError:  # Ray would join a cluster that was started here, which has a number of CPUs of its own
        try:
            join()
        except ConnectionError:  # it has crashed
            start(address=LOCAL)


def enter(folder: str) -> None:
    """Called by a process on Ray, so that relative paths mean there what they mean in the folder of the command."""
    with suppress(FileNotFoundError):  # on a machine that does not share it, addresses of object storage still work
        os.chdir(folder)


def connect_data(address: str | None) -> Any:
    """The ``ray`` module, connected, with settings of Ray Data for long work; see ``connect``.

    By default, Ray Data ends a job at the first error, and when a worker dies while starting. Errors caused by inputs
    are caught before Ray sees them. Other errors, such as a store that does not answer, are retried ``TRIES`` times.
    Workers and nodes that die later are replaced as often as necessary, which is Ray's default.
    """
    ray = connect(address)
    import ray.data as ray_data

    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # warns that there are no progress bars
    context = ray_data.DataContext.get_current()
    context.retried_map_errors = True
    context.max_map_retries = TRIES
    context.actor_init_retry_on_errors = True
    context.actor_init_max_retries = TRIES
    context.max_consecutive_actor_init_deaths = TRIES
    context.enable_progress_bars = False
    return ray


def processes_that_fit(ray: Any, wanted: int | None, *, cpus: float, gpus: float, spare_cpus: float) -> int:
    """How many processes, each with a model, to run on a cluster.

    Args:
        ray: As ``connect`` returns it.
        wanted: Number of processes; as many as fit if None.
        cpus: CPUs per process.
        gpus: GPUs per process; may be a fraction.
        spare_cpus: CPUs left free for other work.

    Raises:
        MaskletError: They do not fit.
    """
    total = ray.cluster_resources()
    fitting = [int((total.get("CPU", 0) - spare_cpus) / cpus)]
    if gpus:
        fitting.append(int(total.get("GPU", 0) / gpus))
    count = wanted or max(1, min(fitting))
    if count > min(fitting):
        spare = f", and {spare_cpus:g} CPU left free," if spare_cpus else ""
        raise MaskletError(
            f"the cluster has {total.get('CPU', 0):g} CPUs and {total.get('GPU', 0):g} GPUs: {count} workers with "
            f"{cpus:g} CPUs and {gpus:g} GPUs each{spare} do not fit. Expected fewer workers, or a larger cluster"
        )
    return count
