"""Random worlds for images."""

from dataclasses import replace

import numpy as np
import torch

from recipes.nano.image_worlds import sample_image_world
from recipes.nano.rendering import render
from recipes.nano.world import ImageSurface

CPU = torch.device("cpu")


def test_a_world_is_a_function_of_the_generator(sources, same_worlds):
    first, second, other = (sample_image_world(sources, np.random.default_rng(seed)) for seed in (5, 5, 6))
    assert same_worlds(first, second)
    assert not same_worlds(first, other)


def test_all_kinds_of_sprites_and_backgrounds_occur(sources):
    worlds = [sample_image_world(sources, np.random.default_rng(seed)) for seed in range(200)]
    sprites = [sprite for world in worlds for sprite in world.sprites]
    is_annotated = [world.background_labels is not None for world in worlds]
    assert 0.2 < np.mean(is_annotated) < 0.4
    assert {isinstance(world.background, ImageSurface) for world in worlds} == {True, False}
    assert {bool(world.sprites) for world in worlds} == {True, False}
    for name in ("material", "jitter", "light", "shadow", "bend"):
        assert 0.05 < np.mean([getattr(sprite, name) is not None for sprite in sprites]) < 0.95, name
    for name in ("jitter", "blur", "is_grey", "jpeg_quality", "noise"):
        assert 0.03 < np.mean([bool(getattr(world.camera, name)) for world in worlds]) < 0.5, name


def test_free_places_are_preferred(sources):
    """Sprites occlude each other less than at random places."""
    rng = np.random.default_rng(0)

    def occluded(worlds):
        alone = [render([replace(world, sprites=[world.sprites[0]])], 32, CPU).labels[0] == 1 for world in worlds]
        visible = [render([world], 32, CPU).labels[0] == 1 for world in worlds]
        return 1 - sum(int(m.sum()) for m in visible) / sum(int(m.sum()) for m in alone)

    worlds = [sample_image_world(sources, np.random.default_rng(seed), annotated_share=0) for seed in range(80)]
    scattered = [
        replace(world, sprites=[replace(sprite, centre=rng.uniform(-0.4, 0.4, 2)) for sprite in world.sprites])
        for world in worlds
    ]
    assert occluded(worlds) < 0.85 * occluded(scattered)


def test_instances_of_annotated_images_stay_with_their_pixels(sources):
    colours = {1: (0, 200, 0), 2: (0, 0, 200)}  # of the squares in the annotated image
    found = set()
    for seed in range(30):
        world = sample_image_world(sources, np.random.default_rng(seed), annotated_share=1)
        assert set(np.unique(world.background.labels)) <= {0, 1, 2}  # without 255, unknown
        plain = type(world)(ImageSurface(world.background.pixels, None, world.background.labels), [])
        result = render([plain], 64, CPU)
        for number, colour in colours.items():
            inside = (result.labels[0, 0] == number).numpy()
            if inside.sum() > 100:
                found.add(number)
                colours_inside = result.images[0, 0].permute(1, 2, 0).numpy()[inside]
                assert np.median(np.abs(colours_inside - np.array(colour, np.int16))) < 3
    assert found == {1, 2}


def test_parts_are_found_on_demand(sources):
    with_parts = sample_image_world(sources, np.random.default_rng(3), annotated_share=0)
    without = sample_image_world(sources, np.random.default_rng(3), annotated_share=0, with_parts=False)
    assert all(sprite.parts is None for sprite in without.sprites)
    for sprite in with_parts.sprites:
        assert (sprite.parts is None) == (sprite.material is not None)
