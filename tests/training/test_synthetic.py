"""What chance puts into images."""

from dataclasses import replace

import numpy as np
import torch

from masklet.training.rendering import render
from masklet.training.synthetic import draw_image
from masklet.training.worlds import EncodedImage

CPU = torch.device("cpu")


def test_a_world_is_a_function_of_the_generator(made_up_sources, same_worlds):
    first, second, other = (draw_image(made_up_sources, np.random.default_rng(seed)) for seed in (5, 5, 6))
    assert same_worlds(first, second)
    assert not same_worlds(first, other)


def test_all_kinds_of_things_and_grounds_come_up(made_up_sources):
    worlds = [draw_image(made_up_sources, np.random.default_rng(seed)) for seed in range(200)]
    things = [thing for world in worlds for thing in world.things]
    is_real = [world.ground_labels is not None for world in worlds]
    assert 0.2 < np.mean(is_real) < 0.4
    assert {isinstance(world.ground, EncodedImage) for world in worlds} == {True, False}
    assert all(np.any([bool(len(world.things)) == some for world in worlds]) for some in (True, False))
    for name in ("material", "look", "light", "shadow", "bend"):
        assert 0.05 < np.mean([getattr(thing, name) is not None for thing in things]) < 0.95, name
    for name in ("look", "softness", "is_grey", "quality", "loudness"):
        assert 0.03 < np.mean([bool(getattr(world.camera, name)) for world in worlds]) < 0.5, name


def test_places_that_are_free_are_preferred(made_up_sources):
    """Objects hide less of each other than they would at places of chance."""
    rng = np.random.default_rng(0)

    def hidden(worlds):
        alone = [render([replace(world, things=[world.things[0]])], 32, CPU).labels[0] == 1 for world in worlds]
        still_seen = [render([world], 32, CPU).labels[0] == 1 for world in worlds]
        return 1 - sum(int(m.sum()) for m in still_seen) / sum(int(m.sum()) for m in alone)

    worlds = [draw_image(made_up_sources, np.random.default_rng(seed), real_share=0) for seed in range(120)]
    scattered = [
        replace(world, things=[replace(thing, middle=rng.uniform(-0.4, 0.4, 2)) for thing in world.things])
        for world in worlds
    ]
    assert hidden(worlds) < 0.85 * hidden(scattered)


def test_annotated_images_keep_their_instances_where_they_are(made_up_sources):
    colours = {1: (0, 200, 0), 2: (0, 0, 200)}  # of the squares in the made-up encoded
    seen = set()
    for seed in range(30):
        world = draw_image(made_up_sources, np.random.default_rng(seed), real_share=1)
        assert set(np.unique(world.ground.labels)) <= {0, 1, 2}  # 255 is not told apart
        plain = type(world)(EncodedImage(world.ground.pixels, None, world.ground.labels), [])
        made = render([plain], 64, CPU)
        for number, colour in colours.items():
            inside = (made.labels[0, 0] == number).numpy()
            if inside.sum() > 100:
                seen.add(number)
                shown = made.images[0, 0].permute(1, 2, 0).numpy()[inside]
                assert np.median(np.abs(shown - np.array(colour, np.int16))) < 3
    assert seen == {1, 2}


def test_parts_are_looked_for_when_asked_for(made_up_sources):
    with_parts = draw_image(made_up_sources, np.random.default_rng(3), real_share=0)
    without = draw_image(made_up_sources, np.random.default_rng(3), real_share=0, with_parts=False)
    assert all(thing.parts is None for thing in without.things)
    for thing in with_parts.things:
        assert (thing.parts is None) == (thing.material is not None)
