"""A pool of threads whose operators are single-threaded: one block of work a thread.

Many small parallel regions, one after another, wait for the slowest thread each time; beside other processes that costs
more than the work. Here a thread takes the next block when it has finished one. All work of all callers runs in the
pool, so the number of busy threads never exceeds the number that torch would use, however many threads call.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import torch
from threadpoolctl import ThreadpoolController

Item = TypeVar("Item")
Result = TypeVar("Result")


class Pool:
    """As many threads as torch uses in the thread that makes it; started when needed, and kept."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._executor = ThreadPoolExecutor(threads, "masklet", initializer=self._start)

    def _start(self) -> None:
        _here.pool = self
        torch.get_num_threads()  # torch sets a thread's number of threads at the first use
        # OpenMP keeps the number for each thread, so nothing changes for others; MKL and oneDNN follow it.
        ThreadpoolController().limit(limits=1, user_api="openmp")

    def submit(self, work: Callable[[], Result]) -> Future[Result]:
        """Start work in the pool, in the inference mode of the caller."""
        return self._executor.submit(_in_mode, torch.is_inference_mode_enabled(), work)


_here = threading.local()
_pools: dict[int, Pool] = {}
_lock = threading.Lock()


def _forget_pools() -> None:
    """Drop all pools, since their threads do not run in a forked process."""
    global _lock
    _pools.clear()
    _lock = threading.Lock()
    _here.__dict__.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pools)


def in_pool(work: Callable[[], Result]) -> Result:
    """Run work in the pool and wait for it; in place where torch uses one thread, or the pool runs this already."""
    threads = torch.get_num_threads()
    if threads == 1:  # true in the pool as well
        return work()
    with _lock:
        pool = _pools.get(threads)
        if pool is None:
            pool = _pools[threads] = Pool(threads)
    return pool.submit(work).result()


def num_threads() -> int:
    """Threads that ``for_each`` can use here."""
    return 1 if (pool := _pool()) is None else pool.threads


def for_each(function: Callable[[Item], object], items: Iterable[Item]) -> None:
    """Call ``function`` for every item, each in one thread of the pool; in place outside ``in_pool``.

    A thread takes the next item when it has finished one. The calls must not depend on each other; they may call
    ``for_each`` themselves.
    """
    pool, todo = _pool(), list(items)
    if pool is None or len(todo) == 1:
        for item in todo:
            function(item)
        return
    queue = _Queue(todo)
    work = partial(_work_off, function, queue)
    helpers = [pool.submit(work) for _ in range(min(pool.threads, len(todo)) - 1)]
    try:
        work()
    finally:
        # Helpers that no thread was free for have nothing left to do.
        running = [helper for helper in helpers if not helper.cancel()]
        failures = [helper.exception() for helper in running]
    for failure in failures:
        if failure is not None:
            raise failure


class _Queue(Iterator[Item]):
    """Items, each given out once, to whichever thread asks."""

    def __init__(self, items: list[Item]) -> None:
        self._items = iter(items)
        self._lock = threading.Lock()

    def __next__(self) -> Item:
        with self._lock:
            return next(self._items)

    def stop(self) -> None:
        """Give out no more."""
        with self._lock:
            self._items = iter(())


def _work_off(function: Callable[[Item], object], queue: _Queue[Item]) -> None:
    try:
        for item in queue:
            function(item)
    except BaseException:
        queue.stop()
        raise


def _in_mode(is_inference: bool, work: Callable[[], Result]) -> Result:
    with torch.inference_mode(is_inference), torch.set_grad_enabled(False):
        return work()


def _pool() -> Pool | None:
    return getattr(_here, "pool", None)
