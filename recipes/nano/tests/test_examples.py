"""Examples and scenes composed of sources."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from masklet.errors import DataError
from masklet.training.batches import fills_a_cell
from masklet.training.config import Stage
from recipes.nano.clip_worlds import sample_clip_world
from recipes.nano.examples import MIN_AREA, ComposedExamples, compose, held_out_scenes, visible_labels
from recipes.nano.image_worlds import sample_image_world
from recipes.nano.rendering import render
from recipes.nano.sources import Sources
from recipes.nano.world import Texture, World

CPU = torch.device("cpu")
BACKGROUND = Texture(np.zeros((2, 2, 3), np.uint8), True, np.zeros(3, np.uint8), 0.5, None)


def batch_of(examples, stage, step, indices=range(2)):
    return examples.batch(stage, [examples.example(stage, step, index) for index in indices])


def test_labels_have_no_gaps_and_tiny_objects_are_left_out(sources):
    counts = []
    for seed in range(60):
        result = compose(sample_image_world(sources, np.random.default_rng(seed)), 64)
        assert result.images.shape == (1, 64, 64, 3)
        assert result.images.dtype == result.labels.dtype == np.uint8
        numbers, areas = np.unique(result.labels[result.labels > 0], return_counts=True)
        assert numbers.tolist() == list(range(1, len(numbers) + 1))
        assert (areas >= MIN_AREA * result.labels.size).all()
        counts.append(len(numbers))
    assert max(counts) >= 3
    assert np.mean(counts) > 1


def test_objects_are_well_visible_in_the_first_frame_and_may_leave(sources):
    gone = 0
    for seed in range(60):
        result = compose(sample_clip_world(sources, 4, np.random.default_rng(seed)), 64)
        assert result.images.shape == (4, 64, 64, 3)
        assert result.labels.shape == (4, 64, 64)
        first = result.labels[0]
        numbers, areas = np.unique(first[first > 0], return_counts=True)
        assert numbers.tolist() == list(range(1, len(numbers) + 1))
        assert (areas >= MIN_AREA * first.size).all()
        assert result.labels.max() <= len(numbers)
        gone += sum(not (frame == number).any() for frame in result.labels for number in numbers)
    assert gone > 0


def test_visible_labels_are_large_enough_and_fill_a_cell():
    labels = torch.zeros(2, 32, 32, dtype=torch.int16)
    labels[0, :4, :4], labels[0, 20, :] = 3, 5  # a cell; a line, which fills a quarter of each cell
    labels[0, 9:11, 4:8], labels[0, 31, 31] = 6, 7  # half a cell, below 1 %; a pixel
    labels[1, 8:20, 8:20] = 260
    assert [numbers.tolist() for numbers in visible_labels(labels)] == [[3], [260]]
    for number, expected in ((3, True), (5, False), (6, True), (7, False)):
        assert bool(fills_a_cell((labels[0] == number).numpy())) == expected
    assert [numbers.tolist() for numbers in visible_labels(torch.zeros(1, 8, 8, dtype=torch.int16))] == [[]]


def test_visible_labels_agree_with_masks_one_by_one():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 6, (8, 4, 8)).repeat(5, 1).repeat(5, 2)[:, :20, :40]
    found = visible_labels(torch.from_numpy(labels).short())
    for numbers, of_map in zip(found, labels, strict=True):
        masks = of_map == np.arange(1, 6).reshape(-1, 1, 1)
        is_visible = fills_a_cell(masks) & (masks.mean((1, 2)) >= MIN_AREA)
        assert numbers.tolist() == (np.flatnonzero(is_visible) + 1).tolist()


@pytest.mark.parametrize("frames", [1, 3])
def test_a_batch_is_a_function_of_seed_and_step(sources, frames):
    examples, stage = ComposedExamples(sources, seed=1), Stage(input_size=64, steps=9, objects=3, frames=frames)
    first, again, other = (batch_of(examples, stage, step) for step in (4, 4, 5))
    clip = (frames,) if frames > 1 else ()
    assert first.pixel_values.shape == (2, *clip, 3, 64, 64)
    assert first.targets.shape == (2, *clip, 3, 64, 64)
    assert first.targets.dtype == torch.bool
    in_first = first.targets[:, 0] if clip else first.targets
    assert in_first.flatten(2).any(-1).all()
    assert first.pixel_values.equal(again.pixel_values)
    assert first.targets.equal(again.targets)
    assert not first.pixel_values.equal(other.pixel_values)
    assert [half.targets.shape[0] for half in first.split(2)] == [1, 1]


@pytest.mark.parametrize("frames", [1, 3])
def test_examples_rendered_together_are_those_rendered_alone(sources, frames):
    """As on a GPU, which renders several at once."""
    examples, stage = ComposedExamples(sources, seed=2), Stage(input_size=64, steps=9, objects=2, frames=frames)
    drafts = [examples.example(stage, 3, index) for index in range(12)]
    together, alone = examples._render(6, stage, drafts), examples.batch(stage, drafts)
    assert together.names == alone.names
    assert (together.pixel_values != alone.pixel_values).float().mean() < 1e-3
    assert (together.targets != alone.targets).float().mean() < 1e-3
    again = examples.batch(stage, drafts)
    assert again.targets.equal(alone.targets)


def test_an_example_does_not_depend_on_the_rest_of_the_batch(sources):
    examples, stage = ComposedExamples(sources, seed=2), Stage(input_size=64, steps=9, objects=2)
    whole = batch_of(examples, stage, 3, range(4))
    half = batch_of(examples, stage, 3, range(2, 4))
    assert whole.pixel_values[2:].equal(half.pixel_values)
    assert whole.targets[2:].equal(half.targets)
    assert whole.names[2:] == half.names


def test_threads_get_the_same_examples(sources):
    stage = Stage(input_size=64, steps=9, objects=2)
    one, other = (ComposedExamples(sources, seed=3) for _ in range(2))
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda step: batch_of(one, stage, step), range(8)))
    for step, batch in enumerate(found):
        assert batch.pixel_values.equal(batch_of(other, stage, step).pixel_values)


def test_worlds_without_visible_objects_are_replaced(sources):
    """Instances are too small here, and some images have no sprites."""
    labels = Image.new("L", (90, 90))
    labels.paste(1, (0, 0, 3, 3))
    sources = Sources(sources.cutouts, sources.images, [(Image.new("RGB", (90, 90)), labels)])
    examples, stage = ComposedExamples(sources, seed=0), Stage(input_size=64, steps=1, objects=2)
    drafts = [examples.example(stage, 0, index) for index in range(40)]
    visible = [visible_labels(render([draft.world], 64, CPU).labels[:, 0])[0] for draft in drafts]
    assert any(not len(numbers) for numbers in visible)
    for chunk_size in (1, 40):
        assert examples._render(chunk_size, stage, drafts).targets.flatten(2).any(-1).all()


def test_sources_without_visible_objects_are_an_error(sources, monkeypatch):
    monkeypatch.setattr(ComposedExamples, "_sample_world", lambda self, stage, rng: World(BACKGROUND, []))
    with pytest.raises(DataError, match="100 compositions were rendered, and none has a visible object at 64×64"):
        batch_of(ComposedExamples(sources, seed=0), Stage(input_size=64, steps=1), 0)


def test_parts_lie_in_objects_and_are_among_the_masks():
    y, x = np.mgrid[:80, :80]
    inside = (y - 40) ** 2 + (x - 40) ** 2 < 38**2
    coloured = np.where((y < 30)[..., None], (200, 30, 30), (20, 20, 220))
    patch = Image.fromarray(np.dstack([coloured, inside * 255]).astype(np.uint8), "RGBA")
    image = Image.new("RGB", (90, 90), "grey")
    sources = Sources([patch], [image], [(image, Image.new("L", image.size))])
    shares = []
    for seed in range(20):
        result = render([sample_image_world(sources, np.random.default_rng(seed), annotated_share=0)], 96, CPU)
        assert not (result.parts > 0)[result.labels == 0].any()
        shares.append(float((result.parts > 0).sum() / (result.labels > 0).sum().clamp(min=1)))
    assert 0.1 < np.median(shares) <= 1
    batch = batch_of(ComposedExamples(sources, seed=0), Stage(input_size=96, steps=1, objects=8), 0, range(16))
    within = [(a & ~b).sum() == 0 and (b & ~a).sum() > 0 for masks in batch.targets for a in masks for b in masks]
    assert any(within)


@pytest.mark.parametrize("frames", [1, 2])
def test_held_out_scenes_are_images_or_videos_like_the_stages_and_always_the_same(recipe, sources, frames):
    stages = (replace(recipe.training.stages[0], frames=frames, rounds=1),)
    one, other = (held_out_scenes(sources, replace(recipe.training, stages=stages)) for _ in range(2))
    assert [scene.name for scene in one] == ["composition 0", "composition 1"]
    assert one[0].count() == (1 if frames == 1 else 8)
    last = one[1].count() - 1
    frame, same = one[1].frame(last), other[1].frame(last)
    assert frame.image.shape == (512, 512, 3)
    assert np.array_equal(frame.image, same.image)
    assert all(np.array_equal(frame.mask(n), same.mask(n)) for n in frame.masks)
