"""How worlds are drawn."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from masklet.training.clips import draw_clip
from masklet.training.rendering import render
from masklet.training.synthetic import draw_image
from masklet.training.worlds import Bend, Camera, EncodedImage, Look, Path, Stripes, Texture, Thing, World

CPU = torch.device("cpu")
SIDE_PX = 64
RED, BLUE = (255, 0, 0), (0, 0, 255)


def moving(dx, dy):
    return Path(velocity=np.array([dx, dy, 0, 0, 0]))


def plain(colour, alpha=255, size_px=16):
    return np.full((size_px, size_px, 4), (*colour, alpha), np.uint8)


def square(colour=RED, middle=(0.0, 0.0), **more):
    return Thing(plain(colour), np.full(2, 0.25), 0.0, np.array(middle), **more)


GREY = Texture(np.full((2, 2, 3), 128, np.uint8), True, np.full(3, 128, np.uint8), 0.5, None)


def drawn(world, side_px=SIDE_PX):
    """(frames, height, width, 3) and (frames, height, width)."""
    made = render([world], side_px, CPU)
    return made.images[0].movedim(1, -1).numpy(), made.labels[0].numpy()


@pytest.fixture
def crossing():
    """A red square stands still in the middle of a grey world; a blue one passes over it from the left."""
    things = [square(), square(BLUE, (-0.25, 0), path=moving(0.25, 0))]
    return World(GREY, things, moments=np.arange(5.0)[:, None])


def test_a_label_stays_with_its_object(crossing):
    images, labels = drawn(crossing)
    for label, colour in ((1, RED), (2, BLUE)):
        assert np.array_equal(labels == label, (images == colour).all(-1))
    assert (images[labels == 0] == 128).all()
    covered = [(frame == 1).sum() for frame in labels]
    assert covered[0] == covered[2] == 256
    assert covered[1] == 0


def test_objects_and_the_camera_move_as_their_paths_say(crossing):
    def middle(world, frame, label=2):
        return np.argwhere(drawn(world)[1][frame] == label).mean(0)[::-1] + 0.5

    assert middle(crossing, 0) == pytest.approx([16, 32])
    assert middle(crossing, 2) == pytest.approx([48, 32])
    # A camera that goes down sees all go up.
    assert middle(replace(crossing, camera=Camera(moving(0, 0.25))), 1) == pytest.approx([32, 16])
    assert not (drawn(crossing)[1][4] == 2).any()


def test_an_open_shutter_smears_what_moves_and_labels_the_middle():
    world = World(GREY, [square(), square(BLUE, (-0.375, 0), path=moving(0.25, 0))])
    _, labels = drawn(world)
    smeared, named = drawn(replace(world, moments=np.array([[-0.25, 0, 0.25]])))
    assert np.array_equal(labels, named)
    assert (smeared[0][labels[0] == 1] == RED).all()
    # Blue covered a column of the first 20 in none, some or all of three exposures.
    assert np.unique(smeared[0, 32, :23, 0]).tolist() == [0, 43, 85, 128]


def test_a_thing_is_scaled_turned_and_cut_by_the_border():
    turned = replace(square(), angle=np.pi / 4, size=np.array([0.5, 0.25]))
    _, labels = drawn(World(GREY, [turned]))
    places = np.argwhere(labels[0])[:, ::-1] + 0.5 - 32  # x, y from the middle
    assert len(places) == pytest.approx(32 * 16, rel=0.03)
    along, across = places @ np.array([1, 1]) * 0.5**0.5, places @ np.array([1, -1]) * 0.5**0.5
    assert np.abs(along).max() == pytest.approx(16, abs=0.8)
    assert np.abs(across).max() == pytest.approx(8, abs=0.8)
    _, labels = drawn(World(GREY, [square(middle=(0.5, 0.5))]))
    assert labels[0, 56:, 56:].all()
    assert labels.sum() == 64
    assert not drawn(World(GREY, [square(middle=(3, 0))]))[1].any()


def test_half_opaque_things_let_through_and_have_no_label():
    faint = replace(square(), pixels=plain(RED, alpha=102))
    images, labels = drawn(World(GREY, [faint]))
    assert images[0, 32, 32].tolist() == [179, 77, 77]  # 0.4 of red, 0.6 of grey
    assert not labels.any()


def test_a_shadow_falls_where_it_is_thrown_and_belongs_to_nobody():
    images, labels = drawn(World(GREY, [square(shadow=np.array([0.125, 0.0]))]))
    brightness = images[0, 32, :, 0]
    assert (brightness[24:40] == 255).all()  # red, not shaded by itself
    assert brightness[42] == pytest.approx(64, abs=2)
    assert brightness[20] == brightness[55] == 128
    assert labels.sum() == 256


def test_light_and_looks_change_colours_and_nothing_else():
    inverted = Look(np.ones(3), np.ones(3), 0.0, True)
    plain_labels = drawn(World(GREY, [square()]))[1]
    for thing, shown in (
        (square(look=inverted), lambda piece: (piece == (0, 255, 255)).all()),
        (square(light=np.array([1.0, 0.0])), lambda piece: (np.diff(piece[8, :, 0].astype(int)) > 0).any()),
    ):
        images, labels = drawn(World(GREY, [thing]))
        assert np.array_equal(labels, plain_labels)
        assert shown(images[0, 24:40, 24:40])
        assert (images[0][labels[0] == 0] == 128).all()


def test_foreign_material_fills_the_outline():
    green = replace(GREY, noise=np.full((1, 1, 3), (0, 255, 0), np.uint8), noise_share=1.0)
    images, labels = drawn(World(GREY, [square(material=green)]))
    assert (images[0][labels[0] == 1] == (0, 255, 0)).all()
    assert (labels > 0).sum() == 256


def middles(mask):
    """The mean x of each row of a mask."""
    return (mask * np.arange(mask.shape[1])).sum(1) / mask.sum(1)


def test_a_bend_moves_rows_keeps_their_length_and_travels():
    bend = Bend(amount=0.25, waves=1.0, phase=0.0, cycles=0.25)
    _, labels = drawn(World(GREY, [square(bend=bend)], moments=np.arange(2.0)[:, None]))
    assert np.abs(labels[:, 24:40].sum(2) - 16).max() <= 1
    # Looked up further along x where the wave is high, and so seen the other way.
    y = (np.arange(16) + 0.5) / 8 - 1
    for time, rows in enumerate(labels[:, 24:40]):
        assert np.abs(middles(rows) - 31.5 + 8 * 0.25 * np.sin(np.pi * y + np.pi / 2 * time)).max() <= 0.6


def test_the_shadow_of_a_bent_thing_is_bent_as_it_is():
    bend = Bend(amount=0.3, waves=1.0, phase=0.0, cycles=0.0)
    thing = square(bend=bend, shadow=np.array([0.3125, 0.125]))  # 80 and 32 pixels: beside it, half its height down
    images, labels = drawn(World(GREY, [thing]), 256)
    own = middles(labels[0, 104:152] == 1)
    shadow = middles((images[0, 136:184, :, 0] < 96) & (labels[0, 136:184] == 0))
    assert np.ptp(own) > 10
    assert np.abs(shadow - own - 80).max() <= 2.5


def test_a_shadow_goes_on_beyond_the_border():
    images, _ = drawn(World(GREY, [square(middle=(0.5, 0), shadow=np.array([-0.25, 0.125]))]))
    cut, _ = drawn(World(GREY, [square(middle=(0.2, 0), shadow=np.array([0.3, 0.3]))]))
    assert (images[0, 36:38, 42:46, 0] == 64).all()
    assert (cut[0, 50, 58:, 0] == 64).all()


def test_soft_edges_are_half_as_opaque_at_the_border():
    wide = replace(square(BLUE, softness=2 / SIDE_PX), size=np.full(2, 0.5))
    images, labels = drawn(World(GREY, [wide]))
    assert np.abs(labels.sum() - 1024) < 70
    row = images[0, 32, 10:24, 0].astype(int)
    assert (np.diff(row) <= 0).all()
    assert (row[5] + row[6]) / 2 == pytest.approx(64, abs=4)  # half of grey has no red


def test_material_is_of_the_same_grain_on_small_things():
    """Stripes finer than the thing's pixels are a mean, and not some of them."""
    stripes = Stripes(0.0, 30, 8, False, np.array((255, 255, 255), np.uint8))
    black = replace(GREY, plain=np.zeros(3, np.uint8), noise_share=0.0, stripes=stripes)
    images, labels = drawn(World(GREY, [square(material=black)]))
    assert np.abs(images[0][labels[0] == 1].astype(int) - 128).max() < 30


def test_a_thing_that_grows_is_not_sampled_from_too_fine_pixels():
    """Where it is small, stripes finer than its pixels are a mean, and not some of them."""
    striped = np.full((256, 256, 4), 255, np.uint8)
    striped[:, np.arange(256) % 8 < 4, :3] = 0
    growing = Path(velocity=np.array([0, 0, np.log(8), 0, 0]))
    thing = Thing(striped, np.full(2, 0.26), 0.0, np.zeros(2), growing)
    images, labels = drawn(World(GREY, [thing], moments=np.arange(2.0)[:, None]))
    small = images[0][labels[0] == 1].astype(int)
    assert 200 < len(small) < 400
    assert np.abs(small - 128).max() < 20


def test_parts_lie_in_their_things_and_have_names_of_their_own():
    halves = np.repeat(np.array([[1, 2]], np.uint8), 16, 0).repeat(8, 1)
    world = World(GREY, [square(parts=halves), square(BLUE, (0.125, 0), parts=halves)])
    made = render([world], SIDE_PX, CPU)
    parts, labels = made.parts[0, 0], made.labels[0, 0]
    assert torch.equal(parts > 0, labels > 0)
    numbers, areas = torch.unique(parts[parts > 0], return_counts=True)
    assert len(numbers) == 3  # of the first thing one half is hidden
    assert areas.tolist() == [128] * 3


def test_instances_of_the_ground_come_first():
    labels = np.zeros((8, 8), np.uint8)
    labels[:2], labels[4:6] = 3, 7
    encoded = EncodedImage(np.full((8, 8, 3), 90, np.uint8), None, labels)
    _, seen = drawn(World(encoded, [square()]))
    assert np.unique(seen).tolist() == [0, 3, 7, 8]
    assert (seen[0, 24:40, 24:40] == 8).all()
    assert (seen[0, :16] == 3).all()


def test_the_camera_sees_the_piece_of_the_ground_that_lies_there():
    ramp = np.repeat(np.arange(0, 256, 4, dtype=np.uint8)[None, :, None], 64, 0).repeat(3, 2)
    labels = (np.indices((64, 64))[1] // 16).astype(np.uint8)  # quarters: 0 to 3
    ground = EncodedImage(ramp, None, labels)
    wide = World(ground, [], Camera(moving(0.5, 0)), np.arange(2.0)[:, None], np.array([-0.5, -0.5]), 2.0)
    images, seen = drawn(wide)
    for time, row in enumerate(images[:, 10, :, 0]):
        # A pixel of the ground is two of the image, and 4 brighter than the one before.
        expected = 4 * ((np.arange(64) + 0.5) / 2 + 16 * time - 0.5)
        assert np.abs(row[1:] - expected[1:]).max() <= 1
        assert np.array_equal(seen[time, 10], (np.arange(64) // 2 + 16 * time) // 16)


def test_stripes_are_of_another_colour():
    stripes = Stripes(0.0, 4, 8, False, np.array(RED, np.uint8))
    images, _ = drawn(World(replace(GREY, stripes=stripes), []))
    bright = images[0, 10, :, 0] > 180
    assert np.count_nonzero(np.diff(bright.astype(int))) == pytest.approx(8, abs=1)
    assert (images[0] == images[0, :1]).all()


@pytest.mark.parametrize("frames", [1, 3])
def test_worlds_drawn_together_are_the_same_as_alone(made_up_sources, frames):
    def draw(seed):
        rng = np.random.default_rng(seed)
        return draw_image(made_up_sources, rng) if frames == 1 else draw_clip(made_up_sources, frames, rng)

    worlds = [draw(seed) for seed in range(24)]
    together = render(worlds, SIDE_PX, CPU)
    for place, world in enumerate(worlds):
        alone = render([world], SIDE_PX, CPU)
        steps = (together.images[place].int() - alone.images[0].int()).abs()
        assert (steps > 1).float().mean() < 1e-3
        assert (together.labels[place] != alone.labels[0]).float().mean() < 1e-3
        assert (together.parts[place] != alone.parts[0]).float().mean() < 1e-3


@pytest.mark.parametrize("frames", [1, 3])
def test_all_is_drawn_on_the_device(made_up_sources, frames):
    """Tensors without content refuse to meet those of a CPU, as those of a GPU do."""
    rngs = [np.random.default_rng(seed) for seed in range(24)]
    worlds = [
        draw_image(made_up_sources, rng) if frames == 1 else draw_clip(made_up_sources, frames, rng) for rng in rngs
    ]
    made = render(worlds, SIDE_PX, torch.device("meta"))
    assert {maps.device.type for maps in (made.images, made.labels, made.parts)} == {"meta"}
    assert made.images.shape == (24, frames, 3, SIDE_PX, SIDE_PX)


def test_a_world_looks_the_same_at_another_size(made_up_sources):
    worlds = [draw_image(made_up_sources, np.random.default_rng(seed)) for seed in range(12)]
    worlds = [replace(world, camera=Camera()) for world in worlds]
    small, large = (render(worlds, side, CPU) for side in (64, 128))
    shrunk = torch.nn.functional.avg_pool2d(large.images[:, 0].float(), 2)
    assert (shrunk - small.images[:, 0].float()).abs().mean() < 4
    assert (large.labels[:, 0, ::2, ::2] != small.labels[:, 0]).float().mean() < 0.03
