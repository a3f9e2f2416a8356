"""Batches that threads and processes prepare ahead of time."""

import threading
import time
from contextlib import closing

import pytest
import torch

from masklet.training.batches import Batch
from masklet.training.config import Stage
from masklet.training.prefetching import prefetch

STAGE = Stage(input_size=32, steps=9, batch_size=3)


class Slow:
    """Examples that are numbers. The first of a batch take longest; records what was requested."""

    def __init__(self):
        self.requested, self.lock = [], threading.Lock()

    def example(self, stage, step, index):
        with self.lock:
            self.requested.append((step, index))
        time.sleep(0.002 * (3 - index))
        if (step, index) == (5, 1):
            raise ValueError("a broken image")
        return 10 * step + index

    def batch(self, stage, examples):
        assert stage is STAGE
        return Batch(torch.tensor(examples), torch.zeros(0), tuple(map(str, examples)))


def wanted(steps):
    return [(STAGE, step, range(3)) for step in range(steps)]


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_batches_come_in_order_and_whole(workers):
    found = [batch.pixels.tolist() for batch in prefetch(Slow(), wanted(5), workers=workers)]
    assert found == [[10 * step, 10 * step + 1, 10 * step + 2] for step in range(5)]


def test_at_most_two_batches_are_prepared_ahead():
    examples = Slow()
    with closing(prefetch(examples, wanted(5), workers=4)) as batches:
        next(batches)
        time.sleep(0.1)
        assert {step for step, _ in examples.requested} == {0, 1}


def test_an_error_is_raised_with_its_batch_and_not_before():
    batches = prefetch(Slow(), wanted(7), workers=2)
    assert [next(batches).names[0] for _ in range(5)] == ["0", "10", "20", "30", "40"]
    with pytest.raises(ValueError, match="a broken image"):
        next(batches)


def test_closing_stops_the_preparation():
    examples = Slow()
    batches = prefetch(examples, wanted(100), workers=1)
    next(batches)
    batches.close()
    requested = len(examples.requested)
    time.sleep(0.05)
    assert len(examples.requested) == requested < 10
