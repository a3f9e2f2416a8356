"""Examples drawn from annotated images and videos."""

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
from masklet.training.batches import Batch, Example, Mask, drawn, fills_a_cell
from masklet.training.config import Stage, TrainingConfig
from masklet.training.data.scenes import Frame, Scene
from masklet.training.prompts import MASK_STRIDE
from masklet.training.worlds import Pixels

ATTEMPTS = 1000
"""Images without objects that are passed over for one example, before the data are called empty."""
LOOKED_AT = 40
"""Images whose masks are looked at before a run."""
LOOKED_FURTHER = 1000
"""Images that are searched for a first object, before the data are called empty."""
SEVERAL_PARTS = 0.3
"""Share of masks in several large parts above which they are taken for classes."""
LARGE_PART = 0.3
"""Of the largest part's area."""


class DataWarning(UserWarning):
    """Data that can be learned from, but are probably not what they are taken for."""


class Drawn:
    """Examples of scenes: each scene once before any returns, in another order every time."""

    def __init__(self, scenes: Sequence[Scene], config: TrainingConfig, *, flip: bool) -> None:
        if not scenes:
            raise DataError("there is nothing to learn from: all images or videos are kept for validation")
        self.scenes = scenes
        self.config = config
        self.flip = flip
        self._order = lru_cache(maxsize=4)(self._shuffled)

    def _shuffled(self, epoch: int) -> NDArray[np.int64]:
        return np.random.default_rng((self.config.seed, epoch)).permutation(len(self.scenes))

    def example(self, stage: Stage, step: int, place: int) -> Example:
        """See ``Examples``. An image, or a clip's first frame, that shows nothing is replaced by another."""
        epoch, turn = divmod(self.config.drawn_before(step) + place, len(self.scenes))
        rng = np.random.default_rng((self.config.seed, step, place))
        scene = self.scenes[int(self._order(epoch)[turn])]
        for _ in range(ATTEMPTS):
            example = draw_clip(scene, stage, rng) if stage.frames > 1 else draw_image(scene, stage, rng)
            if example is not None:
                return mirrored(example) if self.flip and rng.random() < 0.5 else example
            scene = self.scenes[int(rng.integers(len(self.scenes)))]
        raise DataError(
            f"{ATTEMPTS} of the {len(self.scenes)} images or videos were drawn, and none shows an object that fills "
            f"a cell of {MASK_STRIDE} pixels at {stage.side_px}×{stage.side_px}: are masks empty, or objects tiny?"
        )

    def batch(self, stage: Stage, examples: Sequence[Example]) -> Batch:
        """See ``Examples``."""
        return Batch.of(examples)


def draw_image(scene: Scene, stage: Stage, rng: np.random.Generator) -> Example | None:
    """One frame of a scene and some of its objects; None if there are none."""
    frame = scene.frame(int(rng.integers(scene.count())))
    masks: list[Mask] = []
    for number in rng.permutation(list(frame.masks)):  # no more are decoded than are asked for
        if fills_a_cell(mask := resized_mask(frame.mask(int(number)), stage.side_px)):
            masks.append(mask)
        if len(masks) == stage.objects:
            break
    if not masks:
        return None
    chosen = np.stack(masks)[drawn(len(masks), stage.objects, rng)]
    return Example(frame.name, resized(frame.image, stage.side_px), chosen)


def draw_clip(scene: Scene, stage: Stage, rng: np.random.Generator) -> Example | None:
    """Some frames of a video that follow each other, half of the time backward, and objects of the first of them.

    A video shorter than that is gone through to and fro.
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
        if fills_a_cell(resized_mask(first.mask(int(number)), stage.side_px)):
            numbers.append(int(number))
        if len(numbers) == stage.objects:
            break
    if not numbers:
        return None
    chosen = [numbers[index] for index in drawn(len(numbers), stage.objects, rng)]
    images = {index: resized(frame.image, stage.side_px) for index, frame in frames.items()}
    masks = {index: _masks(frame, chosen, stage.side_px) for index, frame in frames.items()}
    name = f"{scene.name}, frames {indices[0]} to {indices[-1]}"
    return Example(name, np.stack([images[i] for i in indices]), np.stack([masks[i] for i in indices]))


def _masks(frame: Frame, numbers: Sequence[int], side_px: int) -> Mask:
    """(objects, height, width); objects that are absent have an empty mask."""
    absent = np.zeros((side_px, side_px), bool)
    return np.stack([resized_mask(frame.mask(n), side_px) if n in frame.masks else absent for n in numbers])


def mirrored(example: Example) -> Example:
    """Left is right."""
    pixels, masks = example.pixels[..., ::-1, :], example.masks[..., ::-1]
    return Example(example.name, np.ascontiguousarray(pixels), np.ascontiguousarray(masks))


def resized(image: Pixels, side_px: int) -> Pixels:
    """Stretched to a square, as the network sees it."""
    return np.asarray(Image.fromarray(image).resize((side_px, side_px), Image.Resampling.BILINEAR))


def resized_mask(mask: Mask, side_px: int) -> Mask:
    """A mask of such an image: the pixels that it fills by half or more."""
    grey = Image.fromarray(mask.astype(np.uint8) * 255).resize((side_px, side_px), Image.Resampling.BOX)
    return np.asarray(grey) > 127


def look_at(scenes: Sequence[Scene]) -> None:
    """Read a few images whole, so that what is wrong with all of them is said before the run.

    Raises:
        DataError: Masks do not fit their images, or none shows anything.
        ImageError: An image cannot be read.

    Warns:
        DataWarning: Masks look like classes.
    """
    some = [scenes[index] for index in np.linspace(0, len(scenes) - 1, min(LOOKED_AT, len(scenes))).astype(int)]
    parts = [count for scene in some for count in _parts_in(scene.frame(0))]
    if not parts:
        further = islice(_all_over(scenes), LOOKED_FURTHER)
        parts = next((found for frame in further if (found := _parts_in(frame))), [])
    if not parts:
        raise DataError(
            f"no object in any of the images that were looked at, {some[0].name} for one: are all masks empty?"
        )
    several = np.mean([count > 1 for count in parts])
    if len(parts) > 1 and several > SEVERAL_PARTS:
        warnings.warn(
            f"{several:.0%} of {len(parts)} masks that were looked at are in several large parts, as masks of classes "
            "are, and not of single objects. A click would be taught to mean all of them. If every part is an object, "
            "set split_masks: true under data",
            DataWarning,
            stacklevel=2,
        )


def _parts_in(frame: Frame) -> list[int]:
    """The large parts of each of some objects that are there."""
    return [large_parts(mask) for number in list(frame.masks)[:10] if (mask := frame.mask(number)).any()]


def _all_over(scenes: Sequence[Scene]) -> Iterator[Frame]:
    """Frames here and there: of each scene one, then another; a scene is opened when it is its turn."""
    rng = np.random.default_rng(0)
    coming = deque(_shuffled_frames(scenes[index], rng) for index in rng.permutation(len(scenes))[:LOOKED_FURTHER])
    while coming:
        frames = coming.popleft()
        if (frame := next(frames, None)) is not None:
            yield frame
            coming.append(frames)


def _shuffled_frames(scene: Scene, rng: np.random.Generator) -> Iterator[Frame]:
    yield from (scene.frame(int(index)) for index in rng.permutation(scene.count()))


def large_parts(mask: Mask) -> int:
    """Connected parts of a mask that are not small beside the largest."""
    labels = cc3d.connected_components(mask, connectivity=8)
    areas = np.bincount(labels.ravel())[1:]
    return int((areas >= LARGE_PART * areas.max()).sum())
