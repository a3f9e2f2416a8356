"""Training examples and validation scenes made from random worlds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from masklet.datasets.scenes import Frame, Pixels, Scene, masks_of_labels
from masklet.errors import DataError
from masklet.training.batches import Batch, sample_objects
from masklet.training.config import Stage, TrainingConfig
from masklet.training.prompts import MASK_STRIDE
from recipes.nano.clip_worlds import sample_clip_world
from recipes.nano.image_worlds import sample_image_world
from recipes.nano.rendering import Rendered, render
from recipes.nano.sources import Sources
from recipes.nano.world import World

MIN_AREA = 0.01
"""Smallest visible area of an object, as a share of the image."""
WITH_PARTS = 0.5
"""Share of images in which the parts of cut-outs are found."""
PART_SHARE = 0.5
"""Share of parts among the objects of an image that has parts."""
HELD_OUT_SIDE_PX = 512
HELD_OUT_SEED = 2025
"""Seed of validation scenes, which are drawn from (seed, index); training draws from (seed, step, index)."""
OBJECTS_PER_SCENE = 3
"""Roughly the mean number of objects of a validation scene."""
VIDEO_FRAMES = 8
MAX_ATTEMPTS = 100
"""Worlds without visible objects that are drawn for one example before it is an error."""


@dataclass(frozen=True)
class Composition:
    """A rendered image or clip with labels of the objects that are well visible in the first frame.

    Later they may be occluded or out of view. There may be no objects.
    """

    images: Pixels  # (frames, side, side, 3) RGB
    labels: Pixels  # (frames, side, side): 0 for none, 1..k for the visible pixels of each object


def compose(world: World, side_px: int) -> Composition:
    """Renders one world on the CPU."""
    rendered = render([world], side_px, torch.device("cpu"))
    labels = rendered.labels[0].numpy()
    is_kept = np.bincount(labels[0].ravel(), minlength=labels.max() + 1) >= MIN_AREA * labels[0].size
    is_kept[0] = False
    numbers = np.where(is_kept, np.cumsum(is_kept), 0).astype(np.uint8)
    return Composition(rendered.images[0].movedim(1, -1).numpy(), numbers[labels])


@dataclass(frozen=True)
class Draft:
    """A world, and the seeds of the choices that follow."""

    name: str
    world: World
    seeds: tuple[int, int, int]


@dataclass(frozen=True)
class ComposedExamples:
    """Examples rendered from random worlds, each of them new; see ``masklet.training.Examples``.

    Args:
        sources: Material.
        seed: Seed of all examples.
        device: Device of the run. Worlds are rendered on it if it is a CUDA GPU, otherwise on the CPU.
        micro_batches: Number of parts that a GPU renders a batch in. What is rendered together may change the last bit
            of a pixel; this number does not depend on the number of processes.
    """

    sources: Sources
    seed: int
    device: torch.device = torch.device("cpu")
    micro_batches: int = 1

    def example(self, stage: Stage, step: int, index: int) -> Draft:
        """A random world."""
        seeds = (self.seed, step, index)
        return Draft(
            f"composition {index} of step {step}", self._sample_world(stage, np.random.default_rng(seeds)), seeds
        )

    def _sample_world(self, stage: Stage, rng: np.random.Generator) -> World:
        if stage.frames > 1:
            return sample_clip_world(self.sources, stage.frames, rng)
        return sample_image_world(self.sources, rng, with_parts=rng.random() < WITH_PARTS)

    def batch(self, stage: Stage, examples: Sequence[Draft]) -> Batch:
        """Renders worlds; those without visible objects are replaced.

        Raises:
            DataError: No world made of these sources has a visible object.
        """
        if self._render_device.type == "cpu":
            # One world at a time is faster: several do not fit in the caches.
            return self._render(1, stage, examples)
        # On a stream of its own, otherwise every small copy would wait for the training step.
        stream = torch.cuda.Stream(self.device)
        with torch.cuda.stream(stream):
            batch = self._render(max(1, stage.batch_size // self.micro_batches), stage, examples)
        stream.synchronize()
        for tensor in (batch.pixels, batch.targets):
            tensor.record_stream(torch.cuda.default_stream(self.device))
        return batch

    @property
    def _render_device(self) -> torch.device:
        return self.device if self.device.type == "cuda" else torch.device("cpu")

    def _render(self, chunk_size: int, stage: Stage, drafts: Sequence[Draft]) -> Batch:
        chunks = [self._render_chunk(stage, drafts[n : n + chunk_size]) for n in range(0, len(drafts), chunk_size)]
        pixels, targets = (torch.stack(list(chain.from_iterable(tensors))) for tensors in zip(*chunks, strict=True))
        if stage.frames == 1:
            pixels, targets = pixels[:, 0], targets[:, 0]
        return Batch(pixels, targets, tuple(draft.name for draft in drafts))

    def _render_chunk(
        self, stage: Stage, drafts: Sequence[Draft], attempt: int = 1
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The frames of each draft, and the masks of its objects."""
        if attempt > MAX_ATTEMPTS:
            raise DataError(
                f"{MAX_ATTEMPTS} compositions were rendered, and none has a visible object at "
                f"{stage.input_size}×{stage.input_size}: are cut-outs transparent?"
            )
        rendered = render([draft.world for draft in drafts], stage.input_size, self._render_device)
        numbers = [visible_labels(maps[:, 0]) for maps in (rendered.labels, rendered.parts)]
        pixels, targets = list(rendered.images), []
        for place, (draft, objects, parts) in enumerate(zip(drafts, *numbers, strict=True)):
            rng = np.random.default_rng((*draft.seeds, attempt))
            if len(objects):
                targets.append(_sample_masks(rendered, place, objects, parts, stage, rng))
            else:
                replacement = replace(draft, world=self._sample_world(stage, rng))
                (pixels[place],), (target,) = self._render_chunk(stage, [replacement], attempt + 1)
                targets.append(target)
        return pixels, targets


def visible_labels(labels: Tensor) -> list[NDArray[np.int64]]:
    """The labels of each of (maps, side, side), without 0, that are large enough and fill half of a cell of masks."""
    names = int(labels.max()) + 1
    area, enough = MASK_STRIDE**2, MASK_STRIDE**2 // 2
    cells = labels.unflatten(2, (-1, MASK_STRIDE)).unflatten(1, (-1, MASK_STRIDE)).transpose(2, 3).flatten(3)
    sorted_ = cells.sort(-1).values
    # If two pixels that are this far apart in sorted order are equal, so are all between them.
    fills = sorted_[..., : area - enough + 1] == sorted_[..., enough - 1 :]
    offsets = names * torch.arange(len(labels), device=labels.device).view(-1, 1, 1, 1)

    def counted(numbers: Tensor) -> NDArray[np.int64]:
        counts = torch.bincount(numbers, minlength=len(labels) * names)
        return counts.view(len(labels), names).cpu().numpy()

    areas = counted((cells + offsets).flatten())
    filled = counted((sorted_[..., : area - enough + 1] + offsets)[fills])
    return [np.flatnonzero(row[1:]) + 1 for row in (areas >= MIN_AREA * labels[0].numel()) & (filled > 0)]


def _sample_masks(
    rendered: Rendered,
    place: int,
    objects: NDArray[np.int64],
    parts: NDArray[np.int64],
    stage: Stage,
    rng: np.random.Generator,
) -> Tensor:
    """(frames, objects, side, side) bool: masks of a random choice of objects and of parts."""
    chosen = objects[sample_objects(len(objects), stage.objects, rng)]
    is_part = rng.random(stage.objects) < (PART_SHARE if len(parts) else 0)
    if is_part.any():
        chosen[is_part] = rng.choice(parts, int(is_part.sum()))
    numbers, wants_part = (
        torch.from_numpy(values).to(rendered.labels.device).view(-1, 1, 1) for values in (chosen, is_part)
    )
    return torch.where(wants_part, rendered.parts[place][:, None], rendered.labels[place][:, None]) == numbers


def held_out_scenes(sources: Sources, config: TrainingConfig) -> list[Scene]:
    """Scenes to validate on: images, or videos if the run trains on clips.

    Args:
        sources: Held-out sources.
        config: Configuration of the run; it decides how many scenes there are.
    """
    is_video = any(stage.frames > 1 for stage in config.stages)
    frames = VIDEO_FRAMES if is_video else 1
    sample: Callable[[np.random.Generator], World] = (
        partial(sample_clip_world, sources, VIDEO_FRAMES)
        if is_video
        else partial(sample_image_world, sources, with_parts=False)
    )

    @lru_cache(maxsize=2)  # videos are read frame by frame
    def composition(index: int) -> Composition:
        return compose(sample(np.random.default_rng((HELD_OUT_SEED, index))), HELD_OUT_SIDE_PX)

    def read(index: int, frame: int) -> Frame:
        made = composition(index)
        return Frame(f"composition {index}, frame {frame}", made.images[frame], masks_of_labels(made.labels[frame]))

    count = max(1, config.validation_objects // OBJECTS_PER_SCENE)
    return [Scene(f"composition {index}", partial(read, index), lambda: frames) for index in range(count)]
