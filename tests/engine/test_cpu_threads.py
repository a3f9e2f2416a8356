"""The pool of the CPU engine: one block a thread, and never more threads than torch would use."""

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from masklet.engine.cpu.blocks import row_blocks
from masklet.engine.cpu.threads import for_each, in_pool, num_threads


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_every_item_runs_once_in_threads_whose_operators_are_single_threaded():
    seen, threads, lock = [], set(), threading.Lock()
    first = threading.Barrier(2)  # each thread takes an item before either finishes one

    def work(item):
        if item < 2:
            first.wait(timeout=60)
        with lock:
            seen.append((item, torch.get_num_threads()))
            threads.add(threading.current_thread().name)

    in_pool(lambda: for_each(work, range(20)))
    assert sorted(seen) == [(item, 1) for item in range(20)]
    assert len(threads) == 2
    assert threading.current_thread().name not in threads


@pytest.mark.usefixtures("two_threads")
def test_numbers_of_threads_of_others_do_not_change():
    in_pool(lambda: for_each(lambda _: torch.ones(9) @ torch.ones(9), range(8)))
    assert torch.get_num_threads() == 2
    with ThreadPoolExecutor(1) as other:
        assert other.submit(torch.get_num_threads).result() == 2


@pytest.mark.usefixtures("two_threads")
def test_many_callers_share_the_threads():
    busy, most, lock = 0, 0, threading.Lock()

    def work(_):
        nonlocal busy, most
        with lock:
            busy += 1
            most = max(most, busy)
        time.sleep(0.002)
        with lock:
            busy -= 1

    with ThreadPoolExecutor(5) as callers:
        list(callers.map(lambda _: in_pool(lambda: for_each(work, range(6))), range(10)))
    assert most == 2


@pytest.mark.usefixtures("two_threads")
def test_blocks_may_have_blocks_of_their_own():
    seen, lock = [], threading.Lock()

    def inner(item):
        with lock:
            seen.append(item)

    in_pool(lambda: for_each(lambda outer: for_each(lambda i: inner((outer, i)), range(5)), range(4)))
    assert sorted(seen) == [(outer, item) for outer in range(4) for item in range(5)]


@pytest.mark.usefixtures("two_threads")
def test_an_error_reaches_the_caller_and_stops_the_rest():
    seen = []

    def work(item):
        seen.append(item)
        if item == 1:
            raise ValueError("block 1")

    with pytest.raises(ValueError, match="block 1"):
        in_pool(lambda: for_each(work, range(10_000)))
    assert len(seen) < 10_000
    assert in_pool(lambda: 3) == 3  # the pool goes on


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("is_inference", [True, False])
def test_blocks_run_in_the_inference_mode_of_the_caller_and_without_gradients(is_inference):
    modes = []
    with torch.inference_mode(is_inference):
        in_pool(
            lambda: for_each(lambda _: modes.append((torch.is_inference_mode_enabled(), torch.is_grad_enabled())), "ab")
        )
    assert modes == [(is_inference, False)] * 2


def test_outside_the_pool_and_with_one_thread_work_runs_in_place():
    names = []
    for_each(lambda _: names.append(threading.current_thread()), range(3))
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    in_pool(lambda: names.append(threading.current_thread()))
    torch.set_num_threads(before)
    assert names == [threading.current_thread()] * 4


@pytest.mark.usefixtures("two_threads")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_process_has_a_pool_of_its_own():
    assert in_pool(num_threads) == 2
    if (child := os.fork()) == 0:
        os._exit(in_pool(num_threads))
    deadline = time.monotonic() + 60
    while (status := os.waitpid(child, os.WNOHANG))[0] == 0 and time.monotonic() < deadline:
        time.sleep(0.01)
    if status[0] == 0:
        os.kill(child, 9)
        os.waitpid(child, 0)
    assert status == (child, 2 << 8)


@pytest.mark.parametrize("rows", [1, 255, 256, 511, 4096, 65_536])
@pytest.mark.parametrize("most", [1, 512, 10_000])
def test_blocks_of_rows_cover_all_of_them(rows, most):
    blocks = row_blocks(rows, most)
    assert [row for block in blocks for row in range(rows)[block]] == list(range(rows))
    assert max(block.stop - block.start for block in blocks) <= most
