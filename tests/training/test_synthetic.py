"""Composed pictures, and what they are made of."""

import zipfile

import numpy as np
import pytest

from masklet.training.batches import Batch
from masklet.training.composed import Composed, shrink_labels
from masklet.training.config import Stage
from masklet.training.sources import (
    CUTOUT_ARCHIVES,
    INSTANCE_ARCHIVES,
    PHOTO_ARCHIVES,
    is_held_out,
    read_sources,
    source_group,
)
from masklet.training.synthetic import MIN_AREA, compose


def test_a_composition_is_a_function_of_the_generator(made_up_sources):
    first, second, other = (compose(made_up_sources, 64, np.random.default_rng(seed)) for seed in (5, 5, 6))
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert not np.array_equal(first[0], other[0])


def test_labels_are_numbered_without_gaps_and_nothing_tiny_is_asked_for(made_up_sources):
    counts = []
    for seed in range(60):
        picture, labels = compose(made_up_sources, 64, np.random.default_rng(seed))
        assert picture.shape == (64, 64, 3)
        assert picture.dtype == labels.dtype == np.uint8
        numbers, areas = np.unique(labels[labels > 0], return_counts=True)
        assert numbers.tolist() == list(range(1, len(numbers) + 1))
        assert (areas >= MIN_AREA * labels.size).all()
        counts.append(len(numbers))
    assert max(counts) >= 3
    assert np.mean(counts) > 1


def test_objects_shrink_to_disjoint_cells_that_they_fill():
    labels = np.zeros((8, 12), np.uint8)
    labels[:4, :6], labels[7, 11] = 1, 2
    masks = shrink_labels(labels)
    assert masks.tolist() == [[[True, True, False], [False, False, False]]]
    assert (masks.sum(0) <= 1).all()


def test_a_batch_is_a_function_of_seed_and_step(made_up_sources):
    composed, stage = Composed(made_up_sources, seed=1), Stage(image_size=64, steps=9, objects=3)
    batches = [Batch.of([composed.example(stage, step, place) for place in range(2)]) for step in (4, 4, 5)]
    assert batches[0].pixel_values.shape == (2, 3, 64, 64)
    assert batches[0].targets.shape == (2, 3, 16, 16)
    assert batches[0].targets.flatten(2).any(-1).all()
    assert batches[0].pixel_values.equal(batches[1].pixel_values)
    assert batches[0].targets.equal(batches[1].targets)
    assert not batches[0].pixel_values.equal(batches[2].pixel_values)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("coco_000000000030_002.webp", "images/coco_000000000030.jpg"),
        ("1f469-1f3fb-200d-1f373.webp", "u1f469.webp"),
        ("2602.webp", "u02602.webp"),
        ("ambulance/1.webp", "ambulance/5.webp"),
        ("images/dsb_ab12.jpg", "masks/dsb_ab12.png"),
    ],
)
def test_what_shows_the_same_thing_is_on_the_same_side(one, other):
    assert source_group(one) == source_group(other)


def test_held_out_sources_are_a_small_part_and_never_trained_on(data_folder):
    groups = {True: set(), False: set()}
    for name in [*(f"cutouts-{name}" for name in CUTOUT_ARCHIVES), *PHOTO_ARCHIVES, *INSTANCE_ARCHIVES]:
        with zipfile.ZipFile(data_folder / f"{name}.zip") as archive:
            for file in archive.namelist():
                groups[is_held_out(file)].add(source_group(file))
    assert not groups[True] & groups[False]
    assert 0.02 < len(groups[True]) / len(groups[False]) < 0.1


def test_the_held_out_side_has_something_of_everything(data_folder):
    sources = read_sources(data_folder, held_out=True)
    assert len(sources.cutouts) > 100
    assert len(sources.photos) > 10
    assert len(sources.instances) > 10
    assert all(photo.size == labels.size for photo, labels in sources.instances)
