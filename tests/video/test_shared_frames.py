"""Streams that share encoded frames, and copies of streams."""

import numpy as np
import pytest


@pytest.fixture(scope="module")
def images():
    generator = np.random.default_rng(0)
    return [generator.integers(0, 255, (48, 64, 3), dtype=np.uint8) for _ in range(4)]


def logits(result):
    return result.masks.logits


def test_a_frame_that_was_encoded_before_gives_the_same_masks_to_the_bit(sam, images):
    plain, shared = sam.stream(), sam.stream()
    prompts = {1: {"box": (10, 10, 40, 30)}}
    for number, image in enumerate(images):
        given = prompts if number == 0 else None
        np.testing.assert_array_equal(
            logits(plain.push(image, given)), logits(shared.push(sam.stream().encode(image), given))
        )


def test_a_copy_goes_its_own_way(sam, images):
    stream, alone = sam.stream(), sam.stream()
    for each in (stream, alone):
        each.push(images[0], {1: {"box": (10, 10, 40, 30)}})
    copied = stream.copy()
    copied.push(images[3])
    copied.remove(1)
    np.testing.assert_array_equal(logits(stream.push(images[1])), logits(alone.push(images[1])))
    assert (stream.object_ids, copied.object_ids) == ((1,), ())


def test_memory_of_a_stream_grows_to_a_bound(sam, images):
    stream = sam.stream()
    assert stream.memory_bytes() == 0
    stream.push(images[0], {1: {"box": (10, 10, 40, 30)}})
    sizes = [stream.push(images[number % 4]) and stream.memory_bytes() for number in range(24)]
    assert 0 < sizes[0] < sizes[-1]
    assert sizes[-1] == sizes[-2]
