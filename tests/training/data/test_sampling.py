"""Examples sampled from annotated images and videos, and the check of the data."""

import warnings
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from masklet.errors import DataError
from masklet.training.config import DataConfig, Stage, TrainingConfig
from masklet.training.data.sampling import (
    DataWarning,
    SceneExamples,
    check_scenes,
    mirrored,
    sample_clip,
    sample_image,
)
from masklet.training.data.scenes import Frame, Scene

STAGE = Stage(input_size=64, steps=10, batch_size=2, objects=3)
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


def test_every_image_is_used_once_per_epoch():
    scenes = [still(f"p{index}", box(0, 0)) for index in range(7)]
    source = SceneExamples(scenes, CONFIG, flip=False)
    names = [source.example(STAGE, step, index).name for step in range(7) for index in range(2)]
    assert set(Counter(names).values()) == {2}
    assert len(set(names[:7])) == 7
    assert names[:7] != names[7:]


def test_an_example_is_a_function_of_step_and_index():
    scenes = [still(f"p{index}", box(0, 0), box(40, 40)) for index in range(5)]
    one, other = (SceneExamples(scenes, CONFIG, flip=True) for _ in range(2))
    for step, index in ((4, 1), (0, 0), (2, 1)):
        first, second = one.example(STAGE, step, index), other.example(STAGE, step, index)
        assert first.name == second.name
        assert np.array_equal(first.masks, second.masks)


def test_of_fifty_objects_a_few_are_sampled_and_no_more_are_decoded():
    decoded = []

    def mask_of(number):
        return lambda: decoded.append(number) or box(number, number)

    crowd = Scene(
        "crowd", lambda _: Frame("crowd", np.zeros((80, 80, 3), np.uint8), {n: mask_of(n) for n in range(50)})
    )
    example = sample_image(crowd, STAGE, np.random.default_rng(0))
    assert example.masks.shape == (3, 64, 64)
    assert len(decoded) == 3
    sample_image(crowd, STAGE, np.random.default_rng(1))
    assert len(set(decoded)) > 3


def test_of_few_objects_some_are_repeated_and_empty_ones_are_left_out():
    example = sample_image(still("p", box(0, 0), box(0, 0, side=0)), STAGE, np.random.default_rng(0))
    assert example.masks.shape == (3, 64, 64)
    assert (example.masks == example.masks[0]).all()
    assert example.masks[0].sum() == 16**2  # 20 of 80 pixels are 16 of 64


def test_images_without_objects_are_skipped():
    scenes = [still(f"empty {index}", box(0, 0, side=0)) for index in range(5)] + [
        still("full", box(0, 0)),
        still("none"),
    ]
    source = SceneExamples(scenes, CONFIG, flip=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert {source.example(STAGE, step, 0).name for step in range(8)} == {"full 0"}


def test_data_without_any_object_are_an_error():
    source = SceneExamples([still("p", box(0, 0, side=1))], CONFIG, flip=False)
    with pytest.raises(DataError, match="has an object that fills a cell of 4 pixels at 64×64"):
        source.example(STAGE, 0, 0)
    with pytest.raises(DataError, match="nothing to train on"):
        SceneExamples([], CONFIG, flip=False)


CLIP = replace(STAGE, frames=3, objects=2)
MOVING = [{1: box(4 * t, 0), 2: box(0, 60)} for t in range(8)]


def test_clips_are_consecutive_and_half_of_them_are_reversed():
    directions = Counter()
    for seed in range(60):
        example = sample_clip(scene("video", *MOVING), CLIP, np.random.default_rng(seed))
        assert example.pixels.shape == (3, 64, 64, 3)
        assert example.masks.shape == (3, 2, 64, 64)
        numbers = example.pixels[:, 0, 0, 0].tolist()
        directions[tuple(np.diff([int(n) for n in numbers]))] += 1
    assert set(directions) == {(1, 1), (-1, -1)}
    assert 15 < directions[1, 1] < 45


def test_objects_are_those_of_the_first_frame_and_may_leave():
    frames = [{1: box(0, 0), 2: box(60, 60)}, {1: box(0, 0)}, {2: box(60, 60), 3: box(30, 30)}]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        examples = [sample_clip(scene("video", *frames), CLIP, np.random.default_rng(seed)) for seed in range(20)]
    for example in examples:
        assert example.masks[0].any((1, 2)).all()
        assert not example.masks.any((2, 3)).all()


def test_a_short_video_is_played_back_and_forth_and_one_without_objects_is_skipped():
    example = sample_clip(scene("video", *MOVING[:2]), replace(CLIP, frames=5), np.random.default_rng(0))
    numbers = example.pixels[:, 0, 0, 0].tolist()
    assert numbers in ([0, 1, 0, 1, 0], [1, 0, 1, 0, 1])
    assert sample_clip(scene("video", {}, {}, {}), CLIP, np.random.default_rng(0)) is None


def test_mirroring_exchanges_left_and_right():
    example = sample_image(still("p", box(0, 0)), STAGE, np.random.default_rng(0))
    assert mirrored(example).masks[0, 0, -1]
    assert not mirrored(example).masks[0, 0, 0]


def test_masks_of_classes_are_recognised_with_a_remedy():
    two_dogs = box(0, 0) | box(50, 50)
    with pytest.warns(DataWarning, match="100% of 4 masks .* typical of masks of classes.*split_masks: true"):
        check_scenes([still(f"p{index}", two_dogs) for index in range(4)])


def test_objects_with_small_loose_parts_are_not_classes():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_scenes([still(f"p{index}", box(0, 0) | box(50, 50, side=4)) for index in range(4)])


def test_data_of_empty_masks_are_an_error():
    with pytest.raises(DataError, match="none of the images checked has an object, for example a"):
        check_scenes([still("a", box(0, 0, side=0)), still("b"), scene("c", {}, {})])


def test_objects_in_later_frames_or_few_images_are_found():
    check_scenes([scene("video", {}, {1: box(0, 0, side=0)}, {}, {1: box(0, 0)}, {})])
    sparse = [still(f"p{index}", *[box(0, 0)] * (index % 20 == 7)) for index in range(200)]
    check_scenes(sparse)
    source = SceneExamples(sparse, CONFIG, flip=False)
    assert all(source.example(STAGE, step, 0).masks.any() for step in range(200))
