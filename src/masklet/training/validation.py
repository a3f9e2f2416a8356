"""How well a model does on images and videos that it does not learn from: what a user would get."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from accelerate import Accelerator
from PIL import Image

from masklet.engine import make_engine
from masklet.evaluation.agreement import region_j
from masklet.evaluation.clicks import box_of, inner_pixel
from masklet.evaluation.video import label_map
from masklet.model.sam2 import Sam2Model
from masklet.processing import Sam2ImageProcessor
from masklet.results.visualisation import paint_masks
from masklet.segmenter import Segmenter
from masklet.training.batches import Mask
from masklet.training.config import TrainingConfig
from masklet.training.data.scenes import Frame, Scene
from masklet.training.processes import gathered, stopping_together
from masklet.training.worlds import Pixels

OBJECTS_OF_A_IMAGE = 8
"""At most, or an image of fifty would outweigh all others."""
OBJECTS_OF_A_VIDEO = 3
FRAMES_OF_A_VIDEO = 16
"""At most, from the first that shows an object."""


@dataclass(frozen=True)
class Scores:
    """Means over objects, 0 to 1."""

    step: int
    values: dict[str, float]
    """``click``: IoU from a click in the middle; ``box``: from the box; ``video``: J from the first frame's mask."""
    objects: int

    @property
    def score(self) -> float:
        """What the best model is chosen by: the mean of all."""
        return sum(self.values.values()) / len(self.values)

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {value:.3f}" for name, value in self.values.items())
        return f"{self.score:.3f} ({parts}; {self.objects} objects)"


@dataclass(frozen=True)
class Shown:
    """An image, what is in it, and what the model found."""

    name: str
    image: Pixels
    truth: Mask  # (objects, height, width)
    found: Mask  # (objects, height, width)

    def paint(self) -> Image.Image:
        """The truth at the left, what was found at the right."""
        numbers = np.arange(len(self.truth))
        sides = [paint_masks(self.image, masks, numbers, alpha=0.45) for masks in (self.truth, self.found)]
        both = Image.new("RGB", (2 * sides[0].width, sides[0].height))
        for place, side in enumerate(sides):
            both.paste(side, (place * side.width, 0))
        return both


class Validation:
    """The scenes that are measured on, and how."""

    def __init__(self, scenes: Sequence[Scene], config: TrainingConfig) -> None:
        # As the model is used afterwards: a model trained at one size is best used at it.
        self.side_px = config.stages[-1].side_px
        image_stages = [stage for stage in config.stages if stage.frames == 1]
        self.has_images = bool(image_stages)
        self.has_videos = len(image_stages) < len(config.stages)
        rates = [stage.prompt_rates for stage in image_stages]
        # What is never taught is not asked for.
        self.clicks = any(rate.click for rate in rates) or not any(rate.box for rate in rates)
        self.boxes = any(rate.box for rate in rates)
        # In the order of their names' checksums, or a few would be all of one kind.
        ranked = sorted(scenes, key=lambda scene: (zlib.crc32(scene.name.encode()), scene.name))
        self.scenes = ranked[: config.validation_objects]
        self.max_objects = config.validation_objects

    def measure(
        self, model: Sam2Model, step: int, accelerator: Accelerator, *, samples: int = 4
    ) -> tuple[Scores | None, list[Shown]]:
        """Measure a model; processes share the scenes out. Also what it finds in the first ``samples`` scenes.

        None if no scene shows an object.
        """
        segmenter = Segmenter(make_engine(model), Sam2ImageProcessor(self.side_px))
        shown: list[Shown] = []
        mine: list[tuple[str, float]] = []
        objects = 0
        with stopping_together(accelerator):
            for scene in self.scenes[accelerator.process_index :: accelerator.num_processes]:
                if objects * accelerator.num_processes >= self.max_objects:
                    break
                for values, example in self._measure_scene(segmenter, scene):
                    mine += values
                    objects += len(example.truth)
                    if len(shown) < samples:
                        shown.append(example)
        every = gathered(accelerator, [("objects", float(objects)), *mine])
        means = {
            name: float(np.mean([value for key, value in every if key == name]))
            for name in ("click", "box", "video")
            if any(key == name for key, _ in every)
        }
        total = int(sum(value for key, value in every if key == "objects"))
        return (Scores(step, means, total) if means else None), shown

    def _measure_scene(self, segmenter: Segmenter, scene: Scene) -> Iterator[tuple[list[tuple[str, float]], Shown]]:
        if self.has_images:
            yield from self._measure_image(segmenter, scene)
        if self.has_videos:
            yield from _measure_video(segmenter, scene)

    def _measure_image(self, segmenter: Segmenter, scene: Scene) -> Iterator[tuple[list[tuple[str, float]], Shown]]:
        first = _first_shown(scene, scene.count())
        if first is None:
            return
        frame = scene.frame(first)
        truth = [mask for _, mask in _some_objects(frame, OBJECTS_OF_A_IMAGE)]
        image = segmenter.image(frame.image)
        values, found = [], []
        for mask in truth:
            if self.boxes:
                predicted = image.predict(box=box_of(mask)).masks[0]
                values.append(("box", region_j(predicted, mask)))
            if self.clicks:
                middle = inner_pixel(mask)
                predicted = image.predict(points=[(middle.x, middle.y)]).masks[0]
                values.append(("click", region_j(predicted, mask)))
            found.append(predicted)
        yield values, Shown(scene.name, frame.image, np.stack(truth), np.stack(found))


def _measure_video(segmenter: Segmenter, scene: Scene) -> Iterator[tuple[list[tuple[str, float]], Shown]]:
    first = _first_shown(scene, scene.count() - 1)
    if first is None:
        return
    frames = [scene.frame(i) for i in range(first, min(scene.count(), first + FRAMES_OF_A_VIDEO))]
    shown = dict(_some_objects(frames[0], OBJECTS_OF_A_VIDEO))
    session = segmenter.video([frame.image for frame in frames])
    for number, mask in shown.items():
        session.prompt(0, number, mask=mask)
    js: list[list[float]] = []
    size_hw = frames[0].image.shape[:2]
    for result in session.track():
        frame = frames[result.index]
        truth = [frame.mask(n) if n in frame.masks else np.zeros(size_hw, bool) for n in shown]
        labels = label_map(result.masks.logits, size_hw)
        found = [labels == place for place in range(1, len(shown) + 1)]
        if result.index > 0:
            js.append([region_j(one, real) for one, real in zip(found, truth, strict=True)])
    values = [("video", float(j)) for j in np.mean(js, axis=0)]
    yield values, Shown(scene.name, frame.image, np.stack(truth), np.stack(found))


def _first_shown(scene: Scene, frames: int) -> int | None:
    """The first of so many frames that shows an object."""
    return next((index for index in range(frames) if any(True for _ in _some_objects(scene.frame(index), 1))), None)


def _some_objects(frame: Frame, count: int) -> Iterable[tuple[int, Mask]]:
    """Some that are there, the same ones every time."""
    order = np.random.default_rng(zlib.crc32(frame.name.encode())).permutation(list(frame.masks))
    visible = ((int(number), mask) for number in order if (mask := frame.mask(int(number))).any())
    return [pair for pair, _ in zip(visible, range(count), strict=False)]
