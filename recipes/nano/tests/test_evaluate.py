"""Compositions for evaluation."""

import numpy as np
from PIL import Image

from recipes.nano.evaluate import MAX_OBJECTS, held_out_examples
from recipes.nano.sources import Sources


def test_held_out_compositions_are_always_the_same_and_differ_from_each_other(sources):
    first, again = (list(held_out_examples(sources, 5, side_px=64)) for _ in range(2))
    for one, other in zip(first, again, strict=True):
        assert np.array_equal(one.image, other.image)
        assert np.array_equal(one.labels, other.labels)
    assert len({one.image.tobytes() for one in first}) == 5


def test_an_image_of_many_objects_does_not_outweigh_the_others(sources):
    labels = np.arange(1, 17, dtype=np.uint8).reshape(4, 4).repeat(30, 0).repeat(30, 1)  # 16 objects
    crowded = Sources(sources.cutouts, sources.images, [(Image.new("RGB", (120, 120)), Image.fromarray(labels))])
    examples = list(held_out_examples(crowded, 8, side_px=64, annotated_share=1.0))
    assert [len(example.objects) for example in examples] == [MAX_OBJECTS] * 8
    assert len({tuple(example.objects) for example in examples}) > 1  # a random choice
