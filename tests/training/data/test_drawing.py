"""Examples drawn from annotated images and videos."""

import warnings
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from masklet.errors import DataError
from masklet.training.config import DataConfig, Stage, TrainingConfig
from masklet.training.data.drawing import DataWarning, Drawn, draw_clip, draw_image, look_at, mirrored
from masklet.training.data.scenes import Frame, Scene

STAGE = Stage(image_size=64, steps=10, images=2, objects=3)
CONFIG = TrainingConfig(data=DataConfig(layout="folder", path="a"), stages=(STAGE,), seed=3)


def box(x, y, side=20, size=80):
    mask = np.zeros((size, size), bool)
    mask[y : y + side, x : x + side] = True
    return mask


def scene(name, *frames):
    """A scene whose frames are lists of masks by object; the image shows the frame's number."""

    def read(index):
        masks = {number: (lambda mask=mask: mask) for number, mask in frames[index].items()}
        return Frame(f"{name} {index}", np.full((80, 80, 3), index, np.uint8), masks)

    return Scene(name, read, lambda: len(frames))


def still(name, *masks):
    return scene(name, dict(enumerate(masks, start=1)))


def test_every_image_is_drawn_once_before_any_returns():
    scenes = [still(f"p{index}", box(0, 0)) for index in range(7)]
    source = Drawn(scenes, CONFIG, flip=False)
    names = [source.example(STAGE, step, place).name for step in range(7) for place in range(2)]
    assert set(Counter(names).values()) == {2}
    assert len(set(names[:7])) == 7
    assert names[:7] != names[7:]


def test_an_example_is_a_function_of_step_and_place():
    scenes = [still(f"p{index}", box(0, 0), box(40, 40)) for index in range(5)]
    one, other = (Drawn(scenes, CONFIG, flip=True) for _ in range(2))
    for step, place in ((4, 1), (0, 0), (2, 1)):
        first, second = one.example(STAGE, step, place), other.example(STAGE, step, place)
        assert first.name == second.name
        assert np.array_equal(first.masks, second.masks)


def test_of_fifty_objects_some_are_drawn_and_no_more_are_decoded():
    decoded = []

    def mask_of(number):
        return lambda: decoded.append(number) or box(number, number)

    crowd = Scene(
        "crowd", lambda _: Frame("crowd", np.zeros((80, 80, 3), np.uint8), {n: mask_of(n) for n in range(50)})
    )
    example = draw_image(crowd, STAGE, np.random.default_rng(0))
    assert example.masks.shape == (3, 64, 64)
    assert len(decoded) == 3
    draw_image(crowd, STAGE, np.random.default_rng(1))
    assert len(set(decoded)) > 3


def test_of_few_objects_some_are_drawn_twice_and_empty_ones_never():
    example = draw_image(still("p", box(0, 0), box(0, 0, side=0)), STAGE, np.random.default_rng(0))
    assert example.masks.shape == (3, 64, 64)
    assert (example.masks == example.masks[0]).all()
    assert example.masks[0].sum() == 16**2  # 20 of 80 pixels are 16 of 64


def test_images_without_objects_are_passed_over():
    scenes = [still(f"empty {index}", box(0, 0, side=0)) for index in range(5)] + [
        still("full", box(0, 0)),
        still("none"),
    ]
    source = Drawn(scenes, CONFIG, flip=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert {source.example(STAGE, step, 0).name for step in range(8)} == {"full 0"}


def test_data_without_any_object_are_an_error():
    source = Drawn([still("p", box(0, 0, side=1))], CONFIG, flip=False)
    with pytest.raises(DataError, match="none shows an object that fills a cell of 4 pixels at 64×64"):
        source.example(STAGE, 0, 0)
    with pytest.raises(DataError, match="nothing to learn from"):
        Drawn([], CONFIG, flip=False)


CLIP = replace(STAGE, frames=3, objects=2)
MOVING = [{1: box(4 * t, 0), 2: box(0, 60)} for t in range(8)]


def test_clips_follow_each_other_and_half_of_them_run_backward():
    ways = Counter()
    for seed in range(60):
        example = draw_clip(scene("video", *MOVING), CLIP, np.random.default_rng(seed))
        assert example.pixels.shape == (3, 64, 64, 3)
        assert example.masks.shape == (3, 2, 64, 64)
        numbers = example.pixels[:, 0, 0, 0].tolist()
        ways[tuple(np.diff([int(n) for n in numbers]))] += 1
    assert set(ways) == {(1, 1), (-1, -1)}
    assert 15 < ways[1, 1] < 45


def test_an_object_that_is_absent_from_the_first_frame_is_not_asked_for_and_may_leave():
    frames = [{1: box(0, 0), 2: box(60, 60)}, {1: box(0, 0)}, {2: box(60, 60), 3: box(30, 30)}]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        examples = [draw_clip(scene("video", *frames), CLIP, np.random.default_rng(seed)) for seed in range(20)]
    for example in examples:
        assert example.masks[0].any((1, 2)).all()
        assert not example.masks.any((2, 3)).all()


def test_a_short_video_goes_to_and_fro_and_one_without_objects_is_passed_over():
    example = draw_clip(scene("video", *MOVING[:2]), replace(CLIP, frames=5), np.random.default_rng(0))
    numbers = example.pixels[:, 0, 0, 0].tolist()
    assert numbers in ([0, 1, 0, 1, 0], [1, 0, 1, 0, 1])
    assert draw_clip(scene("video", {}, {}, {}), CLIP, np.random.default_rng(0)) is None


def test_left_becomes_right_in_image_and_masks():
    example = draw_image(still("p", box(0, 0)), STAGE, np.random.default_rng(0))
    assert mirrored(example).masks[0, 0, -1]
    assert not mirrored(example).masks[0, 0, 0]


def test_masks_of_classes_are_recognised_and_the_way_out_is_said():
    two_dogs = box(0, 0) | box(50, 50)
    with pytest.warns(DataWarning, match="100% of 4 masks .* as masks of classes are.*split_masks: true"):
        look_at([still(f"p{index}", two_dogs) for index in range(4)])


def test_objects_with_small_loose_parts_are_no_classes():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        look_at([still(f"p{index}", box(0, 0) | box(50, 50, side=4)) for index in range(4)])


def test_data_of_empty_masks_are_an_error():
    with pytest.raises(DataError, match="no object in any of the images that were looked at, a for one"):
        look_at([still("a", box(0, 0, side=0)), still("b"), scene("c", {}, {})])


def test_objects_that_come_later_or_in_few_images_are_found():
    look_at([scene("video", {}, {1: box(0, 0, side=0)}, {}, {1: box(0, 0)}, {})])
    sparse = [still(f"p{index}", *[box(0, 0)] * (index % 20 == 7)) for index in range(200)]
    look_at(sparse)
    source = Drawn(sparse, CONFIG, flip=False)
    assert all(source.example(STAGE, step, 0).masks.any() for step in range(200))
