"""Training examples sampled from annotated images and videos, and a check of the data before training."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import islice

import cc3d
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from masklet.errors import DataError
from masklet.training.batches import Batch, Example, Mask, Pixels, fills_a_cell, sample_objects
from masklet.training.config import Stage, TrainingConfig
from masklet.training.data.scenes import Frame, Scene
from masklet.training.prompts import MASK_STRIDE

MAX_ATTEMPTS = 1000
"""Scenes without objects that are skipped for one example before the data count as empty."""
CHECKED_SCENES = 40
"""Scenes whose first frame is read before training."""
SEARCHED_FRAMES = 1000
"""Further frames that are searched for an object before the data count as empty."""
MULTIPART_SHARE = 0.3
"""Share of masks with several large components above which masks are suspected to be of classes."""
LARGE_COMPONENT = 0.3
"""Smallest area of a large component, as a share of the mask's largest component."""


class DataWarning(UserWarning):
    """The data can be used for training, but are probably not what they are taken for."""


class SceneExamples:
    """Examples from scenes, see ``Examples``. Each scene is used once per epoch, in an order that changes every epoch.

    Args:
        scenes: Scenes to train on.
        config: Configuration of the run.
        flip: Mirror half of the images and clips.

    Raises:
        DataError: There are no scenes.
    """

    def __init__(self, scenes: Sequence[Scene], config: TrainingConfig, *, flip: bool) -> None:
        if not scenes:
            raise DataError("there is nothing to train on: all images or videos are kept for validation")
        self.scenes = scenes
        self.config = config
        self.flip = flip
        self._order = lru_cache(maxsize=4)(self._shuffled)

    def _shuffled(self, epoch: int) -> NDArray[np.int64]:
        return np.random.default_rng((self.config.seed, epoch)).permutation(len(self.scenes))

    def example(self, stage: Stage, step: int, index: int) -> Example:
        """See ``Examples``. An image, or a clip whose first frame has no objects, is replaced by another one."""
        epoch, position = divmod(self.config.examples_before(step) + index, len(self.scenes))
        rng = np.random.default_rng((self.config.seed, step, index))
        scene = self.scenes[int(self._order(epoch)[position])]
        for _ in range(MAX_ATTEMPTS):
            example = sample_clip(scene, stage, rng) if stage.frames > 1 else sample_image(scene, stage, rng)
            if example is not None:
                return mirrored(example) if self.flip and rng.random() < 0.5 else example
            scene = self.scenes[int(rng.integers(len(self.scenes)))]
        raise DataError(
            f"none of {MAX_ATTEMPTS} samples from {len(self.scenes)} images or videos has an object that fills a cell "
            f"of {MASK_STRIDE} pixels at {stage.input_size}×{stage.input_size}: are masks empty, or objects tiny?"
        )

    def batch(self, stage: Stage, examples: Sequence[Example]) -> Batch:
        """See ``Examples``."""
        return Batch.from_examples(examples)


def sample_image(scene: Scene, stage: Stage, rng: np.random.Generator) -> Example | None:
    """A random frame of a scene with random objects; None if it has no objects."""
    frame = scene.frame(int(rng.integers(scene.count())))
    masks: list[Mask] = []
    for number in rng.permutation(list(frame.masks)):  # decodes no more masks than needed
        if fills_a_cell(mask := resized_mask(frame.mask(int(number)), stage.input_size)):
            masks.append(mask)
        if len(masks) == stage.objects:
            break
    if not masks:
        return None
    chosen = np.stack(masks)[sample_objects(len(masks), stage.objects, rng)]
    return Example(frame.name, resized(frame.image, stage.input_size), chosen)


def sample_clip(scene: Scene, stage: Stage, rng: np.random.Generator) -> Example | None:
    """Consecutive frames of a video, reversed in half of the cases, with random objects of the first one.

    A video that is shorter than the clip is played back and forth. Returns None if the first frame has no objects.
    """
    length = scene.count()
    start = int(rng.integers(max(1, length - stage.frames + 1)))
    there_and_back = [*range(length), *range(length - 2, 0, -1)]
    indices = [there_and_back[(start + offset) % len(there_and_back)] for offset in range(stage.frames)]
    if rng.random() < 0.5:
        indices.reverse()
    frames = {index: scene.frame(index) for index in dict.fromkeys(indices)}
    first = frames[indices[0]]
    numbers: list[int] = []
    for number in rng.permutation(list(first.masks)):
        if fills_a_cell(resized_mask(first.mask(int(number)), stage.input_size)):
            numbers.append(int(number))
        if len(numbers) == stage.objects:
            break
    if not numbers:
        return None
    chosen = [numbers[index] for index in sample_objects(len(numbers), stage.objects, rng)]
    images = {index: resized(frame.image, stage.input_size) for index, frame in frames.items()}
    masks = {index: _masks(frame, chosen, stage.input_size) for index, frame in frames.items()}
    name = f"{scene.name}, frames {indices[0]} to {indices[-1]}"
    return Example(name, np.stack([images[i] for i in indices]), np.stack([masks[i] for i in indices]))


def _masks(frame: Frame, numbers: Sequence[int], size_px: int) -> Mask:
    """(objects, height, width); the masks of absent objects are empty."""
    absent = np.zeros((size_px, size_px), bool)
    return np.stack([resized_mask(frame.mask(n), size_px) if n in frame.masks else absent for n in numbers])


def mirrored(example: Example) -> Example:
    """The example with left and right exchanged."""
    pixels, masks = example.pixels[..., ::-1, :], example.masks[..., ::-1]
    return Example(example.name, np.ascontiguousarray(pixels), np.ascontiguousarray(masks))


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
