"""Examples sampled from annotated images and videos, and the check of the data."""

import warnings
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from masklet.datasets.scenes import Frame, Scene
from masklet.errors import DataError
from masklet.training.augmentation import Change, draw_change
from masklet.training.config import Stage, TrainingConfig
from masklet.training.data_config import Augmentations, DataConfig
from masklet.training.sampling import (
    DataSet,
    DataWarning,
    SceneExamples,
    check_scenes,
    sample_clip,
    sample_image,
)

AS_IT_IS = Change()
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
    source = SceneExamples([DataSet(scenes, augment=Augmentations(flip=0))], CONFIG)
    names = [source.example(STAGE, step, index).name for step in range(7) for index in range(2)]
    assert set(Counter(names).values()) == {2}
    assert len(set(names[:7])) == 7
    assert names[:7] != names[7:]


def test_an_example_is_a_function_of_step_and_index():
    scenes = [still(f"p{index}", box(0, 0), box(40, 40)) for index in range(5)]
    one, other = (SceneExamples([DataSet(scenes, augment=Augmentations(flip=0.5))], CONFIG) for _ in range(2))
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
    example = sample_image(crowd, STAGE, np.random.default_rng(0), AS_IT_IS)
    assert example.masks.shape == (3, 64, 64)
    assert len(decoded) == 3
    sample_image(crowd, STAGE, np.random.default_rng(1), AS_IT_IS)
    assert len(set(decoded)) > 3


def test_of_few_objects_some_are_repeated_and_empty_ones_are_left_out():
    example = sample_image(still("p", box(0, 0), box(0, 0, side=0)), STAGE, np.random.default_rng(0), AS_IT_IS)
    assert example.masks.shape == (3, 64, 64)
    assert (example.masks == example.masks[0]).all()
    assert example.masks[0].sum() == 16**2  # 20 of 80 pixels are 16 of 64


def test_images_without_objects_are_skipped():
    scenes = [still(f"empty {index}", box(0, 0, side=0)) for index in range(5)] + [
        still("full", box(0, 0)),
        still("none"),
    ]
    source = SceneExamples([DataSet(scenes, augment=Augmentations(flip=0))], CONFIG)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert {source.example(STAGE, step, 0).name for step in range(8)} == {"full 0"}


def test_data_without_any_object_are_an_error():
    source = SceneExamples([DataSet([still("p", box(0, 0, side=1))], augment=Augmentations(flip=0))], CONFIG)
    with pytest.raises(DataError, match="has an object that fills a cell of 4 pixels at 64×64"):
        source.example(STAGE, 0, 0)
    with pytest.raises(DataError, match="nothing to train on"):
        SceneExamples([DataSet([], augment=Augmentations(flip=0))], CONFIG)


CLIP = replace(STAGE, frames=3, objects=2)
MOVING = [{1: box(4 * t, 0), 2: box(0, 60)} for t in range(8)]


def test_clips_are_consecutive_and_half_of_them_are_reversed():
    directions = Counter()
    for seed in range(60):
        example = sample_clip(scene("video", *MOVING), CLIP, np.random.default_rng(seed), AS_IT_IS)
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
        examples = [
            sample_clip(scene("video", *frames), CLIP, np.random.default_rng(seed), AS_IT_IS) for seed in range(20)
        ]
    for example in examples:
        assert example.masks[0].any((1, 2)).all()
        assert not example.masks.any((2, 3)).all()


def test_a_short_video_is_played_back_and_forth_and_one_without_objects_is_skipped():
    example = sample_clip(scene("video", *MOVING[:2]), replace(CLIP, frames=5), np.random.default_rng(0), AS_IT_IS)
    numbers = example.pixels[:, 0, 0, 0].tolist()
    assert numbers in ([0, 1, 0, 1, 0], [1, 0, 1, 0, 1])
    assert sample_clip(scene("video", {}, {}, {}), CLIP, np.random.default_rng(0), AS_IT_IS) is None


def test_mirroring_exchanges_left_and_right():
    example = sample_image(still("p", box(0, 0)), STAGE, np.random.default_rng(0), Change(flips=(True, False)))
    assert example.masks[0, 0, -1]
    assert not example.masks[0, 0, 0]


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
    config = replace(CONFIG, stages=(replace(STAGE, steps=200),))
    source = SceneExamples([DataSet(sparse, augment=Augmentations(flip=0))], config)
    assert all(source.example(STAGE, step, 0).masks.any() for step in range(200))


def test_data_sets_take_turns_by_their_weights_and_each_goes_through_its_epochs():
    sets = [
        DataSet([still(f"{name}{index}", box(0, 0)) for index in range(count)], weight)
        for name, count, weight in (("a", 7, 3.0), ("b", 5, 1.0), ("c", 3, 0.5))
    ]
    config = replace(CONFIG, stages=(replace(STAGE, steps=450),))
    source = SceneExamples(sets, config)
    names = [source.example(STAGE, step, index).name.split()[0] for step in range(450) for index in range(2)]
    counts = Counter(name[0] for name in names)
    for name, weight in (("a", 3.0), ("b", 1.0), ("c", 0.5)):
        assert counts[name] / len(names) == pytest.approx(weight / 4.5, abs=0.005)
    start = Counter(name[0] for name in names[:45])
    assert start["a"] == pytest.approx(30, abs=1)  # shares hold from the start
    own = [name for name in names if name[0] == "b"]
    assert all(len(set(own[n : n + 5])) == 5 for n in range(0, len(own) - 5, 5))


def test_images_and_videos_in_one_run_are_each_used_for_their_steps():
    stage = replace(CLIP, steps=8, image_steps=0.5, image_batch_size=4)
    config = replace(CONFIG, stages=(stage,))
    sets = [DataSet([still("image", box(0, 0))]), DataSet([scene("video", *MOVING)], is_video=True)]
    source = SceneExamples(sets, config)
    stages = [config.stage_at(step) for step in range(8)]
    assert [one.frames for one in stages] == [3, 1] * 4
    assert [one.batch_size for one in stages] == [stage.batch_size, 4] * 4
    for step, one in enumerate(stages):
        example = source.example(one, step, 0)
        assert example.name.split()[0].rstrip(",") == ("image" if one.frames == 1 else "video")
        assert example.pixels.ndim == (3 if one.frames == 1 else 4)


def coloured(seed):
    """An image in which each object has a colour of its own, so that the truth can be read from it."""
    masks = [box(4, 10, side=30), box(45, 40, side=26)]
    image = np.full((80, 80, 3), 128, np.uint8)
    image[masks[0]], image[masks[1]] = (255, 0, 0), (0, 0, 255)
    return Scene("p", lambda _: Frame("p", image, {n: (lambda m=m: m) for n, m in enumerate(masks, start=1)}))


@pytest.mark.parametrize("name", ["flip", "flip_vertical", "crop", "colour", "grey", "blur", "jpeg"])
def test_each_augmentation_changes_images_and_keeps_masks_on_their_objects(name):
    augment = Augmentations(**({"flip": 0} | {name: 1}))
    plain = sample_image(coloured(0), STAGE, np.random.default_rng(0), AS_IT_IS)
    changed = 0
    for seed in range(8):
        change = draw_change(augment, np.random.default_rng(seed))
        example = sample_image(coloured(0), STAGE, np.random.default_rng(0), change)
        if example is None:  # a window without an object
            continue
        changed += not np.array_equal(example.pixels, plain.pixels)
        for mask in example.masks:
            inside = example.pixels[mask].astype(int)
            if name == "grey":
                assert np.array_equal(example.pixels[..., 0], example.pixels[..., 1])
                continue
            red, blue = (inside[:, 0] - inside[:, 2] > 60).mean(), (inside[:, 2] - inside[:, 0] > 60).mean()
            assert max(red, blue) > 0.85
        if name in ("colour", "grey", "blur", "jpeg"):
            assert np.array_equal(example.masks, plain.masks)
    assert changed >= 5


def test_an_augmentation_is_used_as_often_as_its_probability_says():
    rng = np.random.default_rng(0)
    drawn = [draw_change(Augmentations(flip=0.5, crop=0.25, grey=0.1), rng) for _ in range(1000)]
    assert np.mean([one.flips[0] for one in drawn]) == pytest.approx(0.5, abs=0.06)
    assert np.mean([one.window is not None for one in drawn]) == pytest.approx(0.25, abs=0.05)
    assert np.mean([one.is_grey for one in drawn]) == pytest.approx(0.1, abs=0.04)
    assert not any(one.flips[1] or one.tone or one.blur or one.jpeg_quality for one in drawn)


def test_all_frames_of_a_clip_are_changed_alike():
    change = draw_change(Augmentations(crop=1, flip=1, colour=1), np.random.default_rng(3))
    image = np.random.default_rng(0).integers(0, 256, (80, 80, 3), np.uint8)
    still_video = Scene("v", lambda i: Frame(f"v {i}", image, {1: lambda: box(0, 0, side=80)}), lambda: 5)
    clip = sample_clip(still_video, CLIP, np.random.default_rng(0), change)
    assert all(np.array_equal(frame, clip.pixels[0]) for frame in clip.pixels)
