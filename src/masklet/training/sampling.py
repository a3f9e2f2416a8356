"""Training examples sampled from annotated images and videos, and a check of the data before training."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import islice

import cc3d
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from masklet.datasets.scenes import Frame, Mask, Pixels, Scene
from masklet.errors import DataError
from masklet.training.augmentation import Change, draw_change
from masklet.training.batches import Batch, Example, fills_a_cell, sample_objects
from masklet.training.config import Stage, TrainingConfig
from masklet.training.data_config import Augmentations
from masklet.training.prompts import MASK_STRIDE

MAX_ATTEMPTS = 1000
"""Scenes without objects that are skipped for one example before the data count as empty."""
CHECKED_SCENES = 40
"""Scenes whose first frame is read before training."""
SEARCHED_FRAMES = 1000
"""Further frames that are searched for an object before the data count as empty."""
MULTIPART_SHARE = 0.3
"""Share of masks with several large components above which masks are suspected to be of classes."""
GOLDEN_RATIO = 0.6180339887498949
LARGE_COMPONENT = 0.3
"""Smallest area of a large component, as a share of the mask's largest component."""


class DataWarning(UserWarning):
    """The data can be used for training, but are probably not what they are taken for."""


@dataclass(frozen=True)
class DataSet:
    """Scenes to train on, as one of several data sets."""

    scenes: Sequence[Scene]
    weight: float = 1.0
    """Its share of the examples, as a part of the sum of all weights."""
    augment: Augmentations = field(default_factory=Augmentations)
    is_video: bool = False


class SceneExamples:
    """Examples from scenes, see ``Examples``. Each scene is used once per epoch, in an order that changes every epoch.

    Images are taken from data sets of images, and clips from those of videos, as far as there are any of the kind.

    Args:
        data_sets: Scenes to train on.
        config: Configuration of the run.

    Raises:
        DataError: There are no scenes.
    """

    def __init__(self, data_sets: Sequence[DataSet], config: TrainingConfig) -> None:
        if not data_sets or any(not one.scenes for one in data_sets):
            raise DataError("there is nothing to train on: all images or videos are kept for validation")
        self.config = config
        self.needs_processes = True
        self.of_images = _Mixture([one for one in data_sets if not one.is_video] or data_sets, config, on_images=True)
        self.of_clips = _Mixture([one for one in data_sets if one.is_video] or data_sets, config, on_images=False)

    def example(self, stage: Stage, step: int, index: int) -> Example:
        """See ``Examples``. An image, or a clip whose first frame has no objects, is replaced by another one."""
        on_images = stage.frames == 1
        mixture = self.of_images if on_images else self.of_clips
        data, scene = mixture.scene(self.config.examples_before(step, on_images=on_images) + index)
        rng = np.random.default_rng((self.config.seed, step, index))
        change = draw_change(data.augment, np.random.default_rng((self.config.seed, step, index, 1)))
        for _ in range(MAX_ATTEMPTS):
            sample = sample_image if on_images else sample_clip
            example = sample(scene, stage, rng, change)
            if example is None and change.window is not None:  # the window holds no object
                change = replace(change, window=None)
                continue
            if example is not None:
                return example
            scene = data.scenes[int(rng.integers(len(data.scenes)))]
        raise DataError(
            f"none of {MAX_ATTEMPTS} samples from {len(data.scenes)} images or videos has an object that fills a cell "
            f"of {MASK_STRIDE} pixels at {stage.input_size}×{stage.input_size}: are masks empty, or objects tiny?"
        )

    def batch(self, stage: Stage, examples: Sequence[Example]) -> Batch:
        """See ``Examples``."""
        batch = Batch.from_examples(examples)
        return batch if self.config.cache is None else batch.with_checksums()


class _Mixture:
    """The scene of each example of a run: data sets take turns by their weights."""

    def __init__(self, data_sets: Sequence[DataSet], config: TrainingConfig, *, on_images: bool) -> None:
        self.data_sets = data_sets
        self.seed = config.seed
        weights = np.array([one.weight for one in data_sets])
        # Multiples of the golden ratio fill [0, 1) evenly however many there are, so shares hold at every length.
        turns = np.arange(config.examples_before(config.steps, on_images=on_images)) * GOLDEN_RATIO % 1
        self.chosen = np.searchsorted(weights.cumsum()[:-1] / weights.sum(), turns, side="right")
        self.position = np.zeros(len(turns), np.int64)  # of each example among those of its data set
        for number in range(len(data_sets)):
            is_of_it = self.chosen == number
            self.position[is_of_it] = np.arange(is_of_it.sum())

    def scene(self, number: int) -> tuple[DataSet, Scene]:
        """The data set and the scene of the run's example ``number``."""
        chosen = int(self.chosen[number])
        scenes = self.data_sets[chosen].scenes
        epoch, position = divmod(int(self.position[number]), len(scenes))
        return self.data_sets[chosen], scenes[int(_shuffled((self.seed, epoch, chosen), len(scenes))[position])]


@lru_cache(maxsize=16)
def _shuffled(seed: tuple[int, ...], count: int) -> NDArray[np.int64]:
    return np.random.default_rng(seed).permutation(count)


def sample_image(scene: Scene, stage: Stage, rng: np.random.Generator, change: Change) -> Example | None:
    """A random frame of a scene with random objects; None if it has no objects."""
    frame = scene.frame(int(rng.integers(scene.count())))
    masks: list[Mask] = []
    for number in rng.permutation(list(frame.masks)):  # decodes no more masks than needed
        if fills_a_cell(mask := _changed_mask(frame.mask(int(number)), stage.input_size, change)):
            masks.append(mask)
        if len(masks) == stage.objects:
            break
    if not masks:
        return None
    chosen = np.stack(masks)[sample_objects(len(masks), stage.objects, rng)]
    return Example(frame.name, _changed_image(frame.image, stage.input_size, change), chosen)


def sample_clip(scene: Scene, stage: Stage, rng: np.random.Generator, change: Change) -> Example | None:
    """Consecutive frames of a video, reversed in half of the cases, with random objects of the first one.

    A video that is shorter than the clip is played back and forth. Returns None if the first frame has no objects.
    """
    length = scene.count()
    start = int(rng.integers(max(1, length - stage.frames + 1)))
    there_and_back = [*range(length), *range(length - 2, 0, -1)]
    indices = [there_and_back[(start + offset) % len(there_and_back)] for offset in range(stage.frames)]
    if rng.random() < 0.5:
        indices.reverse()
    wanted = range(min(indices), max(indices) + 1)
    frames = dict(zip(wanted, scene.frames(wanted), strict=True))
    first = frames[indices[0]]
    numbers: list[int] = []
    for number in rng.permutation(list(first.masks)):
        if fills_a_cell(_changed_mask(first.mask(int(number)), stage.input_size, change)):
            numbers.append(int(number))
        if len(numbers) == stage.objects:
            break
    if not numbers:
        return None
    chosen = [numbers[index] for index in sample_objects(len(numbers), stage.objects, rng)]
    images = {index: _changed_image(frame.image, stage.input_size, change) for index, frame in frames.items()}
    masks = {index: _masks(frame, chosen, stage.input_size, change) for index, frame in frames.items()}
    name = f"{scene.name}, frames {indices[0]} to {indices[-1]}"
    return Example(name, np.stack([images[i] for i in indices]), np.stack([masks[i] for i in indices]))


def _masks(frame: Frame, numbers: Sequence[int], size_px: int, change: Change) -> Mask:
    """(objects, height, width); the masks of absent objects are empty."""
    absent = np.zeros((size_px, size_px), bool)
    found = {n: _changed_mask(frame.mask(n), size_px, change) for n in set(numbers) if n in frame.masks}
    return np.stack([found.get(n, absent) for n in numbers])


def _changed_image(image: Pixels, size_px: int, change: Change) -> Pixels:
    return change.recolour(change.flip(resized(change.cut(image), size_px)))


def _changed_mask(mask: Mask, size_px: int, change: Change) -> Mask:
    return change.flip(resized_mask(change.cut(mask), size_px))


def resized(image: Pixels, size_px: int) -> Pixels:
    """The image stretched to a square, as the network receives it."""
    return np.asarray(Image.fromarray(image).resize((size_px, size_px), Image.Resampling.BILINEAR))


def resized_mask(mask: Mask, size_px: int) -> Mask:
    """The mask stretched to a square: the pixels that it covers by half or more."""
    grey = Image.fromarray(mask.astype(np.uint8) * 255).resize((size_px, size_px), Image.Resampling.BOX)
    return np.asarray(grey) > 127


def check_scenes(scenes: Sequence[Scene]) -> None:
    """Reads some images and all of their masks, so that systematic errors show before training.

    Raises:
        DataError: A mask does not fit its image, or no image has an object.
        ImageError: An image cannot be read.

    Warns:
        DataWarning: Masks seem to be of classes, not of objects.
    """
    checked = [scenes[index] for index in np.linspace(0, len(scenes) - 1, min(CHECKED_SCENES, len(scenes))).astype(int)]
    counts = [count for scene in checked for count in _component_counts(scene.frame(0))]
    if not counts:
        further = islice(_frames_at_random(scenes), SEARCHED_FRAMES)
        counts = next((found for frame in further if (found := _component_counts(frame))), [])
    if not counts:
        raise DataError(
            f"none of the images checked has an object, for example {checked[0].name}: are all masks empty?"
        )
    multipart = np.mean([count > 1 for count in counts])
    if len(counts) > 1 and multipart > MULTIPART_SHARE:
        warnings.warn(
            f"{multipart:.0%} of {len(counts)} masks checked have several large parts. That is typical of masks of "
            "classes, not of single objects; training would teach that one click means all parts. If every part is an "
            "object, set split_masks: true under data",
            DataWarning,
            stacklevel=2,
        )


def _component_counts(frame: Frame) -> list[int]:
    """The number of large components of each visible object among the first ten."""
    return [large_components(mask) for number in list(frame.masks)[:10] if (mask := frame.mask(number)).any()]


def _frames_at_random(scenes: Sequence[Scene]) -> Iterator[Frame]:
    """Random frames, one of each scene in turn; a scene is opened only when its turn comes."""
    rng = np.random.default_rng(0)
    pending = deque(_shuffled_frames(scenes[index], rng) for index in rng.permutation(len(scenes))[:SEARCHED_FRAMES])
    while pending:
        frames = pending.popleft()
        if (frame := next(frames, None)) is not None:
            yield frame
            pending.append(frames)


def _shuffled_frames(scene: Scene, rng: np.random.Generator) -> Iterator[Frame]:
    yield from (scene.frame(int(index)) for index in rng.permutation(scene.count()))


def large_components(mask: Mask) -> int:
    """The number of connected components that are not small beside the largest one."""
    labels = cc3d.connected_components(mask, connectivity=8)
    areas = np.bincount(labels.ravel())[1:]
    return int((areas >= LARGE_COMPONENT * areas.max()).sum())
