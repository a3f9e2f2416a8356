"""Rendering of worlds."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from recipes.nano.clip_worlds import sample_clip_world
from recipes.nano.image_worlds import sample_image_world
from recipes.nano.rendering import render
from recipes.nano.world import Bend, Camera, ColourJitter, ImageSurface, Motion, Sprite, Stripes, Texture, World

CPU = torch.device("cpu")
SIDE_PX = 64
RED, BLUE = (255, 0, 0), (0, 0, 255)


def moving(dx, dy):
    return Motion(velocity=np.array([dx, dy, 0, 0, 0]))


def plain(colour, alpha=255, size_px=16):
    return np.full((size_px, size_px, 4), (*colour, alpha), np.uint8)


def square(colour=RED, centre=(0.0, 0.0), **more):
    return Sprite(plain(colour), np.full(2, 0.25), 0.0, np.array(centre), **more)


GREY = Texture(np.full((2, 2, 3), 128, np.uint8), True, np.full(3, 128, np.uint8), 0.5, None)


def rendered(world, side_px=SIDE_PX):
    """Images, (frames, height, width, 3), and labels, (frames, height, width)."""
    result = render([world], side_px, CPU)
    return result.images[0].movedim(1, -1).numpy(), result.labels[0].numpy()


@pytest.fixture
def crossing():
    """A red square stands still in the middle of a grey world; a blue one passes over it from the left."""
    sprites = [square(), square(BLUE, (-0.25, 0), motion=moving(0.25, 0))]
    return World(GREY, sprites, exposures=np.arange(5.0)[:, None])


def test_a_label_stays_with_its_object(crossing):
    images, labels = rendered(crossing)
    for label, colour in ((1, RED), (2, BLUE)):
        assert np.array_equal(labels == label, (images == colour).all(-1))
    assert (images[labels == 0] == 128).all()
    covered = [(frame == 1).sum() for frame in labels]
    assert covered[0] == covered[2] == 256
    assert covered[1] == 0


def test_sprites_and_the_camera_move_as_described(crossing):
    def centre_of(world, frame, label=2):
        return np.argwhere(rendered(world)[1][frame] == label).mean(0)[::-1] + 0.5

    assert centre_of(crossing, 0) == pytest.approx([16, 32])
    assert centre_of(crossing, 2) == pytest.approx([48, 32])
    # When the camera moves down, everything moves up in the image.
    assert centre_of(replace(crossing, camera=Camera(moving(0, 0.25))), 1) == pytest.approx([32, 16])
    assert not (rendered(crossing)[1][4] == 2).any()


def test_motion_blur_smears_moving_sprites_and_labels_are_those_of_the_middle():
    world = World(GREY, [square(), square(BLUE, (-0.375, 0), motion=moving(0.25, 0))])
    _, labels = rendered(world)
    smeared, named = rendered(replace(world, exposures=np.array([[-0.25, 0, 0.25]])))
    assert np.array_equal(labels, named)
    assert (smeared[0][labels[0] == 1] == RED).all()
    # Blue covered a column of the first 20 in none, some or all of three exposures.
    assert np.unique(smeared[0, 32, :23, 0]).tolist() == [0, 43, 85, 128]


def test_a_sprite_is_scaled_rotated_and_cut_by_the_border():
    rotated = replace(square(), angle=np.pi / 4, size=np.array([0.5, 0.25]))
    _, labels = rendered(World(GREY, [rotated]))
    places = np.argwhere(labels[0])[:, ::-1] + 0.5 - 32  # x, y from the centre
    assert len(places) == pytest.approx(32 * 16, rel=0.03)
    along, across = places @ np.array([1, 1]) * 0.5**0.5, places @ np.array([1, -1]) * 0.5**0.5
    assert np.abs(along).max() == pytest.approx(16, abs=0.8)
    assert np.abs(across).max() == pytest.approx(8, abs=0.8)
    _, labels = rendered(World(GREY, [square(centre=(0.5, 0.5))]))
    assert labels[0, 56:, 56:].all()
    assert labels.sum() == 64
    assert not rendered(World(GREY, [square(centre=(3, 0))]))[1].any()


def test_half_opaque_sprites_are_blended_and_have_no_label():
    faint = replace(square(), pixels=plain(RED, alpha=102))
    images, labels = rendered(World(GREY, [faint]))
    assert images[0, 32, 32].tolist() == [179, 77, 77]  # 0.4 of red, 0.6 of grey
    assert not labels.any()


def test_a_shadow_is_at_its_offset_and_has_no_label():
    images, labels = rendered(World(GREY, [square(shadow=np.array([0.125, 0.0]))]))
    brightness = images[0, 32, :, 0]
    assert (brightness[24:40] == 255).all()  # red, not darkened by its own shadow
    assert brightness[42] == pytest.approx(64, abs=2)
    assert brightness[20] == brightness[55] == 128
    assert labels.sum() == 256


def test_light_and_jitter_change_colours_and_nothing_else():
    inverted = ColourJitter(np.ones(3), np.ones(3), 0.0, True)
    plain_labels = rendered(World(GREY, [square()]))[1]
    for sprite, is_changed in (
        (square(jitter=inverted), lambda piece: (piece == (0, 255, 255)).all()),
        (square(light=np.array([1.0, 0.0])), lambda piece: (np.diff(piece[8, :, 0].astype(int)) > 0).any()),
    ):
        images, labels = rendered(World(GREY, [sprite]))
        assert np.array_equal(labels, plain_labels)
        assert is_changed(images[0, 24:40, 24:40])
        assert (images[0][labels[0] == 0] == 128).all()


def test_material_fills_the_outline():
    green = replace(GREY, noise=np.full((1, 1, 3), (0, 255, 0), np.uint8), noise_share=1.0)
    images, labels = rendered(World(GREY, [square(material=green)]))
    assert (images[0][labels[0] == 1] == (0, 255, 0)).all()
    assert (labels > 0).sum() == 256


def mean_x(mask):
    """The mean x of each row of a mask."""
    return (mask * np.arange(mask.shape[1])).sum(1) / mask.sum(1)


def test_a_bend_shifts_rows_keeps_their_length_and_travels():
    bend = Bend(amount=0.25, waves=1.0, phase=0.0, frequency=0.25)
    _, labels = rendered(World(GREY, [square(bend=bend)], exposures=np.arange(2.0)[:, None]))
    assert np.abs(labels[:, 24:40].sum(2) - 16).max() <= 1
    # Sampled further along x where the wave is high, so it appears shifted the other way.
    y = (np.arange(16) + 0.5) / 8 - 1
    for time, rows in enumerate(labels[:, 24:40]):
        assert np.abs(mean_x(rows) - 31.5 + 8 * 0.25 * np.sin(np.pi * y + np.pi / 2 * time)).max() <= 0.6


def test_the_shadow_of_a_bent_sprite_is_bent_too():
    bend = Bend(amount=0.3, waves=1.0, phase=0.0, frequency=0.0)
    sprite = square(bend=bend, shadow=np.array([0.3125, 0.125]))  # 80 and 32 pixels: beside it, half its height down
    images, labels = rendered(World(GREY, [sprite]), 256)
    own = mean_x(labels[0, 104:152] == 1)
    shadow = mean_x((images[0, 136:184, :, 0] < 96) & (labels[0, 136:184] == 0))
    assert np.ptp(own) > 10
    assert np.abs(shadow - own - 80).max() <= 2.5


def test_a_shadow_is_visible_where_its_sprite_is_outside_the_image():
    images, _ = rendered(World(GREY, [square(centre=(0.5, 0), shadow=np.array([-0.25, 0.125]))]))
    cut, _ = rendered(World(GREY, [square(centre=(0.2, 0), shadow=np.array([0.3, 0.3]))]))
    assert (images[0, 36:38, 42:46, 0] == 64).all()
    assert (cut[0, 50, 58:, 0] == 64).all()


def test_blurred_edges_are_half_opaque_at_the_border():
    wide = replace(square(BLUE, blur=2 / SIDE_PX), size=np.full(2, 0.5))
    images, labels = rendered(World(GREY, [wide]))
    assert np.abs(labels.sum() - 1024) < 70
    row = images[0, 32, 10:24, 0].astype(int)
    assert (np.diff(row) <= 0).all()
    assert (row[5] + row[6]) / 2 == pytest.approx(64, abs=4)  # half of grey has no red


def test_material_is_antialiased_on_small_sprites():
    """Stripes finer than a pixel are averaged, not sampled."""
    stripes = Stripes(0.0, 30, 8, False, np.array((255, 255, 255), np.uint8))
    black = replace(GREY, plain=np.zeros(3, np.uint8), noise_share=0.0, stripes=stripes)
    images, labels = rendered(World(GREY, [square(material=black)]))
    assert np.abs(images[0][labels[0] == 1].astype(int) - 128).max() < 30


def test_a_growing_sprite_is_antialiased_where_it_is_small():
    """Stripes finer than a pixel are averaged, not sampled."""
    striped = np.full((256, 256, 4), 255, np.uint8)
    striped[:, np.arange(256) % 8 < 4, :3] = 0
    growing = Motion(velocity=np.array([0, 0, np.log(8), 0, 0]))
    sprite = Sprite(striped, np.full(2, 0.26), 0.0, np.zeros(2), growing)
    images, labels = rendered(World(GREY, [sprite], exposures=np.arange(2.0)[:, None]))
    small = images[0][labels[0] == 1].astype(int)
    assert 200 < len(small) < 400
    assert np.abs(small - 128).max() < 20


def test_parts_lie_in_their_sprites_and_have_distinct_numbers():
    halves = np.repeat(np.array([[1, 2]], np.uint8), 16, 0).repeat(8, 1)
    world = World(GREY, [square(parts=halves), square(BLUE, (0.125, 0), parts=halves)])
    result = render([world], SIDE_PX, CPU)
    parts, labels = result.parts[0, 0], result.labels[0, 0]
    assert torch.equal(parts > 0, labels > 0)
    numbers, areas = torch.unique(parts[parts > 0], return_counts=True)
    assert len(numbers) == 3  # one half of the first sprite is occluded
    assert areas.tolist() == [128] * 3


def test_instances_of_the_background_come_first():
    labels = np.zeros((8, 8), np.uint8)
    labels[:2], labels[4:6] = 3, 7
    background = ImageSurface(np.full((8, 8, 3), 90, np.uint8), None, labels)
    _, found = rendered(World(background, [square()]))
    assert np.unique(found).tolist() == [0, 3, 7, 8]
    assert (found[0, 24:40, 24:40] == 8).all()
    assert (found[0, :16] == 3).all()


def test_the_camera_sees_its_part_of_the_background():
    ramp = np.repeat(np.arange(0, 256, 4, dtype=np.uint8)[None, :, None], 64, 0).repeat(3, 2)
    labels = (np.indices((64, 64))[1] // 16).astype(np.uint8)  # quarters: 0 to 3
    background = ImageSurface(ramp, None, labels)
    wide = World(background, [], Camera(moving(0.5, 0)), np.arange(2.0)[:, None], np.array([-0.5, -0.5]), 2.0)
    images, found = rendered(wide)
    for time, row in enumerate(images[:, 10, :, 0]):
        # A pixel of the background is two pixels of the image, and 4 brighter than the one before.
        expected = 4 * ((np.arange(64) + 0.5) / 2 + 16 * time - 0.5)
        assert np.abs(row[1:] - expected[1:]).max() <= 1
        assert np.array_equal(found[time, 10], (np.arange(64) // 2 + 16 * time) // 16)


def test_stripes_have_another_colour():
    stripes = Stripes(0.0, 4, 8, False, np.array(RED, np.uint8))
    images, _ = rendered(World(replace(GREY, stripes=stripes), []))
    bright = images[0, 10, :, 0] > 180
    assert np.count_nonzero(np.diff(bright.astype(int))) == pytest.approx(8, abs=1)
    assert (images[0] == images[0, :1]).all()


@pytest.mark.parametrize("frames", [1, 3])
def test_worlds_rendered_together_are_the_same_as_alone(sources, frames):
    def draw(seed):
        rng = np.random.default_rng(seed)
        return sample_image_world(sources, rng) if frames == 1 else sample_clip_world(sources, frames, rng)

    worlds = [draw(seed) for seed in range(24)]
    together = render(worlds, SIDE_PX, CPU)
    for place, world in enumerate(worlds):
        alone = render([world], SIDE_PX, CPU)
        steps = (together.images[place].int() - alone.images[0].int()).abs()
        assert (steps > 1).float().mean() < 1e-3
        assert (together.labels[place] != alone.labels[0]).float().mean() < 1e-3
        assert (together.parts[place] != alone.parts[0]).float().mean() < 1e-3


@pytest.mark.parametrize("frames", [1, 3])
def test_everything_is_rendered_on_the_device(sources, frames):
    """Like those of a GPU, tensors on the meta device cannot be mixed with those of the CPU."""
    rngs = [np.random.default_rng(seed) for seed in range(24)]
    worlds = [
        sample_image_world(sources, rng) if frames == 1 else sample_clip_world(sources, frames, rng) for rng in rngs
    ]
    result = render(worlds, SIDE_PX, torch.device("meta"))
    assert {maps.device.type for maps in (result.images, result.labels, result.parts)} == {"meta"}
    assert result.images.shape == (24, frames, 3, SIDE_PX, SIDE_PX)


def test_a_world_looks_the_same_at_another_size(sources):
    worlds = [sample_image_world(sources, np.random.default_rng(seed)) for seed in range(12)]
    worlds = [replace(world, camera=Camera()) for world in worlds]
    small, large = (render(worlds, side, CPU) for side in (64, 128))
    shrunk = torch.nn.functional.avg_pool2d(large.images[:, 0].float(), 2)
    assert (shrunk - small.images[:, 0].float()).abs().mean() < 4
    assert (large.labels[:, 0, ::2, ::2] != small.labels[:, 0]).float().mean() < 0.03
