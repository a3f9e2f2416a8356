"""Composed pictures, and what they are made of."""

import zipfile

import numpy as np
import pytest
from PIL import Image

from masklet.training.batches import Batch, fills_a_cell
from masklet.training.composed import Composed
from masklet.training.config import Stage
from masklet.training.sources import (
    CUTOUT_ARCHIVES,
    INSTANCE_ARCHIVES,
    PHOTO_ARCHIVES,
    Sources,
    is_held_out,
    read_sources,
    source_group,
)
from masklet.training.synthetic import MIN_AREA, compose, parts_of


def test_a_composition_is_a_function_of_the_generator(made_up_sources):
    first, second, other = (compose(made_up_sources, 64, np.random.default_rng(seed)) for seed in (5, 5, 6))
    for name in ("picture", "labels", "parts"):
        assert np.array_equal(getattr(first, name), getattr(second, name))
    assert not np.array_equal(first.picture, other.picture)


def test_labels_are_numbered_without_gaps_and_nothing_tiny_is_asked_for(made_up_sources):
    counts = []
    for seed in range(60):
        made = compose(made_up_sources, 64, np.random.default_rng(seed))
        labels = made.labels
        assert made.picture.shape == (64, 64, 3)
        assert made.picture.dtype == labels.dtype == made.parts.dtype == np.uint8
        numbers, areas = np.unique(labels[labels > 0], return_counts=True)
        assert numbers.tolist() == list(range(1, len(numbers) + 1))
        assert (areas >= MIN_AREA * labels.size).all()
        counts.append(len(numbers))
    assert max(counts) >= 3
    assert np.mean(counts) > 1


def drawn(paint):
    """An opaque round object of 80 pixels."""
    y, x = np.mgrid[:80, :80]
    inside = (y - 40) ** 2 + (x - 40) ** 2 < 38**2
    pixels = np.dstack([paint(x, y), inside * 255]).astype(np.uint8)
    return Image.fromarray(pixels, "RGBA"), inside


def test_parts_are_regions_of_one_colour():
    def shirt_and_trousers(x, y):
        return np.where((y < 30)[..., None], (200, 30, 30), (20, 20, 220))

    patch, inside = drawn(shirt_and_trousers)
    parts = parts_of(patch)
    y = np.mgrid[:80, :80][0]
    assert set(np.unique(parts)) == {0, 1, 2}
    assert ((parts == 1) == (inside & (y >= 30))).mean() > 0.98
    assert ((parts == 2) == (inside & (y < 30))).mean() > 0.98


def test_shading_and_texture_are_no_parts():
    shaded, _ = drawn(lambda x, y: np.dstack([x * 3, x * 2, y]))
    noise, _ = drawn(lambda x, y: np.random.default_rng(0).integers(0, 255, (*x.shape, 3)))
    plain, _ = drawn(lambda x, y: np.full((*x.shape, 3), 90))
    assert not any(parts_of(patch).any() for patch in (shaded, noise, plain))
    assert not parts_of(Image.new("RGBA", (9, 7))).any()


def test_parts_lie_in_objects_and_are_asked_for():
    patch, _ = drawn(lambda x, y: np.where((y < 30)[..., None], (200, 30, 30), (20, 20, 220)))
    photo = Image.new("RGB", (90, 90), "grey")
    sources = Sources([patch], [photo], [(photo, Image.new("L", photo.size))])
    areas = []
    for seed in range(20):
        made = compose(sources, 96, np.random.default_rng(seed), real_share=0)
        areas.append((made.parts > 0).mean() / max(1e-9, (made.labels > 0).mean()))
    assert 0.1 < np.median(areas) <= 1
    composed, stage = Composed(sources, seed=0), Stage(image_size=96, steps=1, objects=8)
    batch = Batch.of([composed.example(stage, 0, place) for place in range(16)])
    inside = [(a & ~b).sum() == 0 and (b & ~a).sum() > 0 for m in batch.targets for a in m for b in m]
    assert any(inside)


def test_an_object_that_fills_no_cell_by_half_is_too_small():
    masks = np.zeros((3, 8, 12), bool)
    masks[0, :4, 4:6] = masks[1, 7, 11] = masks[2, 2:6, 2:6] = True
    assert fills_a_cell(masks).tolist() == [True, False, False]


def test_a_batch_is_a_function_of_seed_and_step(made_up_sources):
    composed, stage = Composed(made_up_sources, seed=1), Stage(image_size=64, steps=9, objects=3)
    batches = [Batch.of([composed.example(stage, step, place) for place in range(2)]) for step in (4, 4, 5)]
    assert batches[0].pixel_values.shape == (2, 3, 64, 64)
    assert batches[0].targets.shape == (2, 3, 64, 64)
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
