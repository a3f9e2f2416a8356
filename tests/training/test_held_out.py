"""The compositions that are measured on."""

import numpy as np

from masklet.training.held_out import MAX_OBJECTS, held_out_examples


def test_held_out_compositions_are_always_the_same_and_differ_from_each_other(made_up_sources):
    first, again = (list(held_out_examples(made_up_sources, 5, side_px=64)) for _ in range(2))
    for one, other in zip(first, again, strict=True):
        assert np.array_equal(one.image, other.image)
        assert np.array_equal(one.labels, other.labels)
    assert len({one.image.tobytes() for one in first}) == 5


def test_an_image_of_many_objects_does_not_outweigh_the_others(made_up_sources):
    counts = [len(np.unique(e.labels)) - 1 for e in held_out_examples(made_up_sources, 40, side_px=64)]
    assert max(counts) <= MAX_OBJECTS
    assert min(counts) >= 0
