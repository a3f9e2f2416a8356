"""Memory that threads free goes back to the system."""

import sys
from pathlib import Path
from threading import Thread

import numpy as np
import pytest

from masklet.serve.heap import HeapTrimmer


def resident_mb():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6


@pytest.mark.skipif(sys.platform != "linux", reason="the allocator is glibc's on Linux alone")
def test_free_memory_between_kept_memory_is_returned():
    kept = []

    def fill():  # 100 MB in pieces, of which every 16th stays
        pieces = [np.ones(64_000, np.uint8) for _ in range(1600)]
        kept.extend(pieces[::16])

    trim = HeapTrimmer()
    for _ in range(3):
        thread = Thread(target=fill)
        thread.start()
        thread.join(timeout=60)
    before = resident_mb()
    trim()
    assert resident_mb() < before - 40
    assert len(kept) == 300


def test_the_heap_is_not_searched_all_the_time(monkeypatch):
    trim, calls = HeapTrimmer(), []
    monkeypatch.setattr(trim, "_trim", calls.append)
    for _ in range(10):
        trim()
    assert calls == [0]
