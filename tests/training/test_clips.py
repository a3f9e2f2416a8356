"""Composed clips, and the batches of them."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from masklet.training.batches import Batch
from masklet.training.clips import Mover, Path, World, compose_clip
from masklet.training.composed import Composed
from masklet.training.config import Stage
from masklet.training.synthetic import MIN_AREA

SIDE_PX = 64


def still():
    return Path(*np.zeros((4, 5)))


def moving(dx, dy):
    return replace(still(), velocity=np.array([dx, dy, 0, 0, 0]))


@pytest.fixture
def crossing():
    """A red square stands still in the middle of a grey world; a blue one passes over it from the left."""
    red, blue = (Image.new("RGBA", (16, 16), colour) for colour in ("red", "blue"))
    return World(
        ground=np.full((SIDE_PX, SIDE_PX, 3), 128, np.uint8),
        ground_labels=np.zeros((SIDE_PX, SIDE_PX), np.uint8),
        from_ground=np.array([[1, 0, -SIDE_PX / 2], [0, 1, -SIDE_PX / 2], [0, 0, SIDE_PX]]) / SIDE_PX,
        camera=still(),
        movers=[Mover(red, np.zeros(2), still()), Mover(blue, np.array([-0.25, 0]), moving(0.25, 0))],
    )


def test_a_clip_is_a_function_of_the_generator(made_up_sources):
    first, second, other = (compose_clip(made_up_sources, 64, 3, np.random.default_rng(seed)) for seed in (5, 5, 6))
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert not np.array_equal(first[0], other[0])


def test_all_that_is_asked_for_is_well_visible_in_the_first_frame_and_may_be_gone_later(made_up_sources):
    gone = 0
    for seed in range(60):
        film, labels = compose_clip(made_up_sources, 64, 4, np.random.default_rng(seed))
        assert film.shape == (4, 64, 64, 3)
        assert labels.shape == (4, 64, 64)
        assert film.dtype == labels.dtype == np.uint8
        numbers, areas = np.unique(labels[0][labels[0] > 0], return_counts=True)
        assert numbers.tolist() == list(range(1, len(numbers) + 1))
        assert (areas >= MIN_AREA * labels[0].size).all()
        assert labels.max() <= len(numbers)
        gone += sum(not (frame == number).any() for frame in labels for number in numbers)
    assert gone > 0


def test_a_label_stays_with_its_object(crossing):
    covered = []
    for time in range(4):
        picture, labels = crossing.picture(time, SIDE_PX)
        for label, colour in ((1, (255, 0, 0)), (2, (0, 0, 255))):
            assert np.array_equal(labels == label, (picture == colour).all(-1))
        covered.append(int((labels == 1).sum()))
    assert covered[0] == covered[2] == 256
    assert covered[1] == 0


def test_objects_and_the_camera_move_as_their_paths_say(crossing):
    def middle(world, time, label=2):
        _, labels = world.picture(time, SIDE_PX)
        return np.argwhere(labels == label).mean(0)[::-1] + 0.5

    assert middle(crossing, 0) == pytest.approx([16, 32])
    assert middle(crossing, 2) == pytest.approx([48, 32])
    # A camera that goes down sees all go up.
    assert middle(replace(crossing, camera=moving(0, 0.25)), 1) == pytest.approx([32, 16])
    assert (crossing.picture(4, SIDE_PX)[1] == 2).sum() == 0


def test_paths_begin_where_they_are():
    assert Path.draw(np.random.default_rng(0), (0.1, 1)).at(0) == pytest.approx(np.eye(3))


def test_a_batch_of_clips_is_a_function_of_seed_and_step(made_up_sources):
    composed, stage = Composed(made_up_sources, seed=1), Stage(image_size=64, steps=9, objects=3, frames=3)
    first, again, other = (Batch.of([composed.example(stage, step, place) for place in range(2)]) for step in (4, 4, 5))
    assert first.pixel_values.shape == (2, 3, 3, 64, 64)
    assert first.targets.shape == (2, 3, 3, 64, 64)
    assert first.targets[:, 0].flatten(2).any(-1).all()
    assert first.pixel_values.equal(again.pixel_values)
    assert first.targets.equal(again.targets)
    assert not first.pixel_values.equal(other.pixel_values)
    assert [half.targets.shape[0] for half in first.split(2)] == [1, 1]
