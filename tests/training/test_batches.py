"""Batches that threads make ahead."""

import threading
import time
from contextlib import closing

import pytest
import torch

from masklet.training.batches import Batch, prepared
from masklet.training.config import Stage

STAGE = Stage(image_size=32, steps=9, images=3)


class Slow:
    """Examples that are numbers, the earlier ones of a batch later made; notes what was asked for."""

    def __init__(self):
        self.asked, self.lock = [], threading.Lock()

    def example(self, stage, step, place):
        with self.lock:
            self.asked.append((step, place))
        time.sleep(0.002 * (3 - place))
        if (step, place) == (5, 1):
            raise ValueError("a broken image")
        return 10 * step + place

    def batch(self, stage, examples):
        assert stage is STAGE
        return Batch(torch.tensor(examples), torch.zeros(0), tuple(map(str, examples)))


def wanted(steps):
    return [(STAGE, step, range(3)) for step in range(steps)]


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_batches_come_in_order_and_whole(workers):
    found = [batch.pixel_values.tolist() for batch in prepared(Slow(), wanted(5), workers=workers)]
    assert found == [[10 * step, 10 * step + 1, 10 * step + 2] for step in range(5)]


def test_no_more_than_two_batches_are_made_ahead():
    examples = Slow()
    with closing(prepared(examples, wanted(5), workers=4)) as batches:
        next(batches)
        time.sleep(0.1)
        assert {step for step, _ in examples.asked} == {0, 1}


def test_an_error_comes_with_its_batch_and_not_before():
    batches = prepared(Slow(), wanted(7), workers=2)
    assert [next(batches).names[0] for _ in range(5)] == ["0", "10", "20", "30", "40"]
    with pytest.raises(ValueError, match="a broken image"):
        next(batches)


def test_what_is_closed_makes_no_more():
    examples = Slow()
    batches = prepared(examples, wanted(100), workers=1)
    next(batches)
    batches.close()
    asked = len(examples.asked)
    time.sleep(0.05)
    assert len(examples.asked) == asked < 10
