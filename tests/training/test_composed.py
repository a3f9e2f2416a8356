"""Examples of the synthetic world."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

from masklet.errors import DataError
from masklet.training.batches import fills_a_cell
from masklet.training.clips import draw_clip
from masklet.training.composed import MIN_AREA, Composed, _visible, compose
from masklet.training.config import Stage
from masklet.training.rendering import render
from masklet.training.sources import Sources
from masklet.training.synthetic import draw_image
from masklet.training.worlds import Texture, World

CPU = torch.device("cpu")
GROUND = Texture(np.zeros((2, 2, 3), np.uint8), True, np.zeros(3, np.uint8), 0.5, None)


def batch_of(composed, stage, step, places=range(2)):
    return composed.batch(stage, [composed.example(stage, step, place) for place in places])


def test_labels_are_numbered_without_gaps_and_nothing_tiny_is_asked_for(made_up_sources):
    counts = []
    for seed in range(60):
        made = compose(draw_image(made_up_sources, np.random.default_rng(seed)), 64)
        assert made.images.shape == (1, 64, 64, 3)
        assert made.images.dtype == made.labels.dtype == np.uint8
        numbers, areas = np.unique(made.labels[made.labels > 0], return_counts=True)
        assert numbers.tolist() == list(range(1, len(numbers) + 1))
        assert (areas >= MIN_AREA * made.labels.size).all()
        counts.append(len(numbers))
    assert max(counts) >= 3
    assert np.mean(counts) > 1


def test_all_that_is_asked_for_is_well_visible_in_the_first_frame_and_may_be_gone_later(made_up_sources):
    gone = 0
    for seed in range(60):
        made = compose(draw_clip(made_up_sources, 4, np.random.default_rng(seed)), 64)
        assert made.images.shape == (4, 64, 64, 3)
        assert made.labels.shape == (4, 64, 64)
        first = made.labels[0]
        numbers, areas = np.unique(first[first > 0], return_counts=True)
        assert numbers.tolist() == list(range(1, len(numbers) + 1))
        assert (areas >= MIN_AREA * first.size).all()
        assert made.labels.max() <= len(numbers)
        gone += sum(not (frame == number).any() for frame in made.labels for number in numbers)
    assert gone > 0


def test_what_is_visible_is_large_enough_and_fills_a_cell():
    labels = torch.zeros(2, 32, 32, dtype=torch.int16)
    labels[0, :4, :4], labels[0, 20, :] = 3, 5  # a cell; a line, which fills a quarter of each cell
    labels[0, 9:11, 4:8], labels[0, 31, 31] = 6, 7  # half a cell, below 1 %; a pixel
    labels[1, 8:20, 8:20] = 260
    assert [numbers.tolist() for numbers in _visible(labels)] == [[3], [260]]
    for number, expected in ((3, True), (5, False), (6, True), (7, False)):
        assert bool(fills_a_cell((labels[0] == number).numpy())) == expected
    assert [numbers.tolist() for numbers in _visible(torch.zeros(1, 8, 8, dtype=torch.int16))] == [[]]


def test_what_is_visible_agrees_with_masks_one_by_one():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 6, (8, 4, 8)).repeat(5, 1).repeat(5, 2)[:, :20, :40]
    found = _visible(torch.from_numpy(labels).short())
    for numbers, of_map in zip(found, labels, strict=True):
        masks = of_map == np.arange(1, 6).reshape(-1, 1, 1)
        is_asked_for = fills_a_cell(masks) & (masks.mean((1, 2)) >= MIN_AREA)
        assert numbers.tolist() == (np.flatnonzero(is_asked_for) + 1).tolist()


@pytest.mark.parametrize("frames", [1, 3])
def test_a_batch_is_a_function_of_seed_and_step(made_up_sources, frames):
    composed, stage = Composed(made_up_sources, seed=1), Stage(image_size=64, steps=9, objects=3, frames=frames)
    first, again, other = (batch_of(composed, stage, step) for step in (4, 4, 5))
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
def test_examples_drawn_together_are_those_drawn_alone(made_up_sources, frames):
    """As on a GPU, which draws a part of a batch at once."""
    composed, stage = Composed(made_up_sources, seed=2), Stage(image_size=64, steps=9, objects=2, frames=frames)
    drafts = [composed.example(stage, 3, place) for place in range(12)]
    together, alone = composed._drawn_in(6, stage, drafts), composed.batch(stage, drafts)
    assert together.names == alone.names
    assert (together.pixel_values != alone.pixel_values).float().mean() < 1e-3
    assert (together.targets != alone.targets).float().mean() < 1e-3
    again = composed.batch(stage, drafts)
    assert again.targets.equal(alone.targets)


def test_a_place_has_the_same_example_whatever_is_beside_it(made_up_sources):
    composed, stage = Composed(made_up_sources, seed=2), Stage(image_size=64, steps=9, objects=2)
    whole = batch_of(composed, stage, 3, range(4))
    half = batch_of(composed, stage, 3, range(2, 4))
    assert whole.pixel_values[2:].equal(half.pixel_values)
    assert whole.targets[2:].equal(half.targets)
    assert whole.names[2:] == half.names


def test_threads_make_the_same(made_up_sources):
    stage = Stage(image_size=64, steps=9, objects=2)
    one, other = (Composed(made_up_sources, seed=3) for _ in range(2))
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda step: batch_of(one, stage, step), range(8)))
    for step, batch in enumerate(found):
        assert batch.pixel_values.equal(batch_of(other, stage, step).pixel_values)


def test_worlds_without_objects_are_made_anew(made_up_sources):
    """Images whose instances are too small, on which nothing is pasted at times."""
    labels = Image.new("L", (90, 90))
    labels.paste(1, (0, 0, 3, 3))
    sources = Sources(made_up_sources.cutouts, made_up_sources.images, [(Image.new("RGB", (90, 90)), labels)])
    composed, stage = Composed(sources, seed=0), Stage(image_size=64, steps=1, objects=2)
    drafts = [composed.example(stage, 0, place) for place in range(40)]
    shown = [_visible(render([draft.world], 64, CPU).labels[:, 0])[0] for draft in drafts]
    assert any(not len(numbers) for numbers in shown)
    for at_once in (1, 40):
        assert composed._drawn_in(at_once, stage, drafts).targets.flatten(2).any(-1).all()


def test_sources_that_show_nothing_are_called_so(made_up_sources, monkeypatch):
    monkeypatch.setattr(Composed, "_world", lambda self, stage, rng: World(GROUND, []))
    with pytest.raises(DataError, match="100 compositions were made, and none shows an object at 64×64"):
        batch_of(Composed(made_up_sources, seed=0), Stage(image_size=64, steps=1), 0)


def test_parts_lie_in_objects_and_are_asked_for():
    y, x = np.mgrid[:80, :80]
    inside = (y - 40) ** 2 + (x - 40) ** 2 < 38**2
    coloured = np.where((y < 30)[..., None], (200, 30, 30), (20, 20, 220))
    patch = Image.fromarray(np.dstack([coloured, inside * 255]).astype(np.uint8), "RGBA")
    encoded = Image.new("RGB", (90, 90), "grey")
    sources = Sources([patch], [encoded], [(encoded, Image.new("L", encoded.size))])
    shares = []
    for seed in range(20):
        made = render([draw_image(sources, np.random.default_rng(seed), real_share=0)], 96, CPU)
        assert not (made.parts > 0)[made.labels == 0].any()
        shares.append(float((made.parts > 0).sum() / (made.labels > 0).sum().clamp(min=1)))
    assert 0.1 < np.median(shares) <= 1
    batch = batch_of(Composed(sources, seed=0), Stage(image_size=96, steps=1, objects=8), 0, range(16))
    within = [(a & ~b).sum() == 0 and (b & ~a).sum() > 0 for masks in batch.targets for a in masks for b in masks]
    assert any(within)
