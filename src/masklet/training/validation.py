"""Validation: how well a model does, as a user would use it, on images and videos that it is not trained on."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from accelerate import Accelerator
from PIL import Image

from masklet.datasets.scenes import Frame, Mask, Pixels, Scene
from masklet.engine import make_engine
from masklet.evaluation.agreement import region_j
from masklet.evaluation.clicks import box_of, inner_pixel
from masklet.evaluation.video import label_map
from masklet.model.sam2 import Sam2Model
from masklet.processing import ImageProcessor
from masklet.results.visualisation import paint_masks
from masklet.segmenter import Segmenter
from masklet.training.config import TrainingConfig
from masklet.training.processes import fail_together, gather

MAX_OBJECTS_PER_IMAGE = 8
"""Otherwise an image of fifty objects would outweigh all others."""
MAX_OBJECTS_PER_VIDEO = 3
MAX_FRAMES_PER_VIDEO = 16
"""Counted from the first frame with an object."""


@dataclass(frozen=True)
class Scores:
    """Means over objects, 0 to 1."""

    step: int
    values: dict[str, float]
    """``click``: IoU from a central click; ``box``: IoU from the box; ``video``: J from the first frame's mask."""
    objects: int

    @property
    def score(self) -> float:
        """The mean of all values, by which the best model is chosen."""
        return sum(self.values.values()) / len(self.values)

    def __str__(self) -> str:
        values = ", ".join(f"{name} {value:.3f}" for name, value in self.values.items())
        return f"{self.score:.3f} ({values}; {self.objects} objects)"


@dataclass(frozen=True)
class Sample:
    """An image with true and predicted masks, for inspection."""

    name: str
    image: Pixels
    truth: Mask  # (objects, height, width)
    predicted: Mask  # (objects, height, width)

    def paint(self) -> Image.Image:
        """The truth on the left, the prediction on the right."""
        numbers = np.arange(len(self.truth))
        sides = [paint_masks(self.image, masks, numbers, alpha=0.45) for masks in (self.truth, self.predicted)]
        both = Image.new("RGB", (2 * sides[0].width, sides[0].height))
        for column, side in enumerate(sides):
            both.paste(side, (column * side.width, 0))
        return both


class Validation:
    """Measures models on fixed scenes.

    Args:
        scenes: Scenes to validate on.
        config: Configuration of the run; it decides which prompts and which kinds of data are measured.
    """

    def __init__(self, scenes: Sequence[Scene], config: TrainingConfig) -> None:
        # A model is best used at the size it was last trained at.
        self.input_size = config.stages[-1].input_size
        image_stages = [stage for stage in config.stages if stage.frames == 1 or stage.image_steps]
        self.has_images = bool(image_stages)
        self.has_videos = any(stage.frames > 1 for stage in config.stages)
        rates = [stage.on_images.prompt_rates for stage in image_stages]
        # Prompts that are never trained are not measured.
        self.clicks = any(rate.click for rate in rates) or not any(rate.box for rate in rates)
        self.boxes = any(rate.box for rate in rates)
        # In the order of checksums of names, so that a few scenes are not all of one kind.
        ranked = sorted(scenes, key=lambda scene: (zlib.crc32(scene.name.encode()), scene.name))
        self.scenes = ranked[: config.validation_objects]
        self.max_objects = config.validation_objects

    def measure(
        self, model: Sam2Model, step: int, accelerator: Accelerator, *, num_samples: int = 4
    ) -> tuple[Scores | None, list[Sample]]:
        """Measures a model; processes share the scenes.

        Returns:
            The scores, None if no scene has an object; and samples of the first ``num_samples`` scenes.
        """
        segmenter = Segmenter(make_engine(model), ImageProcessor(self.input_size))
        samples: list[Sample] = []
        own: list[tuple[str, float]] = []
        objects = 0
        with fail_together(accelerator):
            for scene in self.scenes[accelerator.process_index :: accelerator.num_processes]:
                if objects * accelerator.num_processes >= self.max_objects:
                    break
                for values, sample in self._measure_scene(segmenter, scene):
                    own += values
                    objects += len(sample.truth)
                    if len(samples) < num_samples:
                        samples.append(sample)
        every = gather(accelerator, [("objects", float(objects)), *own])
        means = {
            name: float(np.mean([value for key, value in every if key == name]))
            for name in ("click", "box", "video")
            if any(key == name for key, _ in every)
        }
        total = int(sum(value for key, value in every if key == "objects"))
        return (Scores(step, means, total) if means else None), samples

    def _measure_scene(self, segmenter: Segmenter, scene: Scene) -> Iterator[tuple[list[tuple[str, float]], Sample]]:
        if self.has_images:
            yield from self._measure_image(segmenter, scene)
        if self.has_videos:
            yield from _measure_video(segmenter, scene)

    def _measure_image(self, segmenter: Segmenter, scene: Scene) -> Iterator[tuple[list[tuple[str, float]], Sample]]:
        first = _first_with_objects(scene, scene.count())
        if first is None:
            return
        frame = scene.frame(first)
        truth = [mask for _, mask in _visible_objects(frame, MAX_OBJECTS_PER_IMAGE, scene.name)]
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
        yield values, Sample(scene.name, frame.image, np.stack(truth), np.stack(found))


def _measure_video(segmenter: Segmenter, scene: Scene) -> Iterator[tuple[list[tuple[str, float]], Sample]]:
    first = _first_with_objects(scene, scene.count() - 1)
    if first is None:
        return
    frames = list(scene.frames(range(first, min(scene.count(), first + MAX_FRAMES_PER_VIDEO))))
    prompted = dict(_visible_objects(frames[0], MAX_OBJECTS_PER_VIDEO, scene.name))
    session = segmenter.video([frame.image for frame in frames])
    for number, mask in prompted.items():
        session.prompt(0, number, mask=mask)
    js: list[list[float]] = []
    size_hw = frames[0].image.shape[:2]
    for result in session.track():
        frame = frames[result.index]
        truth = [frame.mask(n) if n in frame.masks else np.zeros(size_hw, bool) for n in prompted]
        labels = label_map(result.masks.logits, size_hw)
        predicted = [labels == number for number in range(1, len(prompted) + 1)]
        if result.index > 0:
            js.append([region_j(one, real) for one, real in zip(predicted, truth, strict=True)])
    values = [("video", float(j)) for j in np.mean(js, axis=0)]
    yield values, Sample(scene.name, frame.image, np.stack(truth), np.stack(predicted))


def _first_with_objects(scene: Scene, count: int) -> int | None:
    """The index of the first frame with a visible object, among the first ``count`` frames."""
    return next((index for index in range(count) if _visible_objects(scene.frame(index), 1, scene.name)), None)


def _visible_objects(frame: Frame, count: int, name: str) -> list[tuple[int, Mask]]:
    """Up to ``count`` visible objects: a random choice that is always the same for a scene's name.

    Not for the frame's name, which holds the folder: data that have moved are measured alike.
    """
    order = np.random.default_rng(zlib.crc32(name.encode())).permutation(list(frame.masks))
    visible = ((int(number), mask) for number in order if (mask := frame.mask(int(number))).any())
    return [pair for pair, _ in zip(visible, range(count), strict=False)]
