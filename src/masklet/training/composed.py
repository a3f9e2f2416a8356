"""Examples and scenes of the synthetic world."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from masklet.errors import DataError
from masklet.training.batches import Batch, drawn
from masklet.training.clips import draw_clip
from masklet.training.config import Stage, TrainingConfig
from masklet.training.data.scenes import Frame, Scene, masks_of_labels
from masklet.training.prompts import MASK_STRIDE
from masklet.training.rendering import Rendered, render
from masklet.training.sources import Sources
from masklet.training.synthetic import draw_image
from masklet.training.worlds import Pixels, World

MIN_AREA = 0.01
"""Visible fragments below this share of the image are not asked for."""
WITH_PARTS = 0.5
"""Images in which parts of cut-outs are looked for."""
PART_SHARE = 0.5
"""Objects that are asked for in an image where some have parts, and are such a part."""
HELD_OUT_SIDE_PX = 512
HELD_OUT_SEED = 2025
"""Of the compositions that are measured on; training draws from (seed, step, place), never from (seed, index)."""
OBJECTS_OF_A_COMPOSITION = 3
"""Roughly, on average."""
VIDEO_FRAMES = 8
ATTEMPTS = 100
"""Worlds without objects that are made for one example, before the sources are called empty."""


@dataclass(frozen=True)
class Composition:
    """An image or a clip, and what is in it.

    Labels are 0 where there is nothing, and then 1..k: what is well visible in the first frame. Later it may be hidden
    or gone. There may be nothing.
    """

    images: Pixels  # (frames, side, side, 3) RGB
    labels: Pixels  # (frames, side, side), the visible pixels of each object


def compose(world: World, side_px: int) -> Composition:
    """Draw one world on the CPU."""
    made = render([world], side_px, torch.device("cpu"))
    labels = made.labels[0].numpy()
    is_kept = np.bincount(labels[0].ravel(), minlength=labels.max() + 1) >= MIN_AREA * labels[0].size
    is_kept[0] = False
    numbers = np.where(is_kept, np.cumsum(is_kept), 0).astype(np.uint8)
    return Composition(made.images[0].movedim(1, -1).numpy(), numbers[labels])


@dataclass(frozen=True)
class Draft:
    """A world, and what decides about all that follows from it."""

    name: str
    world: World
    seeds: tuple[int, int, int]


@dataclass(frozen=True)
class Composed:
    """Examples that are made up on the fly, each another, and drawn on the GPU that learns from them, if there is one.

    Args:
        sources: What to make them of.
        seed: Decides about them, with step and place.
        device: Of the run. What is no GPU of CUDA is spared: a CPU draws for it.
        parts: A batch is learned from in so many parts, and drawn in these on a GPU. What is drawn together may make
            the last bit of a pixel another, and this number is the same on any number of machines.
    """

    sources: Sources
    seed: int
    device: torch.device = torch.device("cpu")
    parts: int = 1

    def example(self, stage: Stage, step: int, place: int) -> Draft:
        """See ``Examples``."""
        seeds = (self.seed, step, place)
        return Draft(f"composition {place} of step {step}", self._world(stage, np.random.default_rng(seeds)), seeds)

    def _world(self, stage: Stage, rng: np.random.Generator) -> World:
        if stage.frames > 1:
            return draw_clip(self.sources, stage.frames, rng)
        return draw_image(self.sources, rng, with_parts=rng.random() < WITH_PARTS)

    def batch(self, stage: Stage, examples: Sequence[Draft]) -> Batch:
        """See ``Examples``; worlds without objects are made anew.

        Raises:
            DataError: Nothing that is made of these sources shows an object.
        """
        if self._drawn_on.type == "cpu":
            # One by one: together they fall out of the caches.
            return self._drawn_in(1, stage, examples)
        # On a stream of its own, or every small copy would wait for what is being learned from.
        stream = torch.cuda.Stream(self.device)
        with torch.cuda.stream(stream):
            batch = self._drawn_in(max(1, stage.images // self.parts), stage, examples)
        stream.synchronize()
        for tensor in (batch.pixel_values, batch.targets):
            tensor.record_stream(torch.cuda.default_stream(self.device))
        return batch

    @property
    def _drawn_on(self) -> torch.device:
        return self.device if self.device.type == "cuda" else torch.device("cpu")

    def _drawn_in(self, at_once: int, stage: Stage, drafts: Sequence[Draft]) -> Batch:
        parts = [self._draw(stage, drafts[n : n + at_once]) for n in range(0, len(drafts), at_once)]
        pixels, targets = (torch.stack(list(chain.from_iterable(some))) for some in zip(*parts, strict=True))
        if stage.frames == 1:
            pixels, targets = pixels[:, 0], targets[:, 0]
        return Batch.of_pixels(pixels, targets, tuple(draft.name for draft in drafts))

    def _draw(self, stage: Stage, drafts: Sequence[Draft], attempt: int = 1) -> tuple[list[Tensor], list[Tensor]]:
        """Of each draft its frames, and the masks that are asked for in them."""
        if attempt > ATTEMPTS:
            raise DataError(
                f"{ATTEMPTS} compositions were made, and none shows an object at {stage.side_px}×{stage.side_px}: are "
                "cut-outs transparent?"
            )
        made = render([draft.world for draft in drafts], stage.side_px, self._drawn_on)
        numbers = [_visible(maps[:, 0]) for maps in (made.labels, made.parts)]
        pixels, targets = list(made.images), []
        for place, (draft, objects, parts) in enumerate(zip(drafts, *numbers, strict=True)):
            rng = np.random.default_rng((*draft.seeds, attempt))
            if len(objects):
                targets.append(_asked_for(made, place, objects, parts, stage, rng))
            else:
                anew = replace(draft, world=self._world(stage, rng))
                (pixels[place],), (target,) = self._draw(stage, [anew], attempt + 1)
                targets.append(target)
        return pixels, targets


def _visible(labels: Tensor) -> list[NDArray[np.int64]]:
    """Numbers, other than 0, that fill enough of each map, (maps, side, side), and a cell of masks by half or more."""
    names = int(labels.max()) + 1
    area, enough = MASK_STRIDE**2, MASK_STRIDE**2 // 2
    cells = labels.unflatten(2, (-1, MASK_STRIDE)).unflatten(1, (-1, MASK_STRIDE)).transpose(2, 3).flatten(3)
    sorted_ = cells.sort(-1).values
    # Where pixels that lie so far apart in order are the same, all between them are.
    fills = sorted_[..., : area - enough + 1] == sorted_[..., enough - 1 :]
    of_map = names * torch.arange(len(labels), device=labels.device).view(-1, 1, 1, 1)

    def counted(numbers: Tensor) -> NDArray[np.int64]:
        counts = torch.bincount(numbers, minlength=len(labels) * names)
        return counts.view(len(labels), names).cpu().numpy()

    areas = counted((cells + of_map).flatten())
    filled = counted((sorted_[..., : area - enough + 1] + of_map)[fills])
    return [np.flatnonzero(row[1:]) + 1 for row in (areas >= MIN_AREA * labels[0].numel()) & (filled > 0)]


def _asked_for(
    made: Rendered,
    place: int,
    objects: NDArray[np.int64],
    parts: NDArray[np.int64],
    stage: Stage,
    rng: np.random.Generator,
) -> Tensor:
    """(frames, objects, side, side) bool: some of the objects, and some of their parts."""
    chosen = objects[drawn(len(objects), stage.objects, rng)]
    is_part = rng.random(stage.objects) < (PART_SHARE if len(parts) else 0)
    if is_part.any():
        chosen[is_part] = rng.choice(parts, int(is_part.sum()))
    numbers, wants_part = (
        torch.from_numpy(values).to(made.labels.device).view(-1, 1, 1) for values in (chosen, is_part)
    )
    return torch.where(wants_part, made.parts[place][:, None], made.labels[place][:, None]) == numbers


def held_out_scenes(sources: Sources, config: TrainingConfig) -> list[Scene]:
    """Compositions of sources that are kept from training, as images or, where clips are learned from, videos."""
    is_video = any(stage.frames > 1 for stage in config.stages)
    frames = VIDEO_FRAMES if is_video else 1
    draw: Callable[[np.random.Generator], World] = (
        partial(draw_clip, sources, VIDEO_FRAMES) if is_video else partial(draw_image, sources, with_parts=False)
    )

    @lru_cache(maxsize=2)  # a video is asked for frame by frame
    def composed(index: int) -> Composition:
        return compose(draw(np.random.default_rng((HELD_OUT_SEED, index))), HELD_OUT_SIDE_PX)

    def read(index: int, frame: int) -> Frame:
        made = composed(index)
        return Frame(f"composition {index}, frame {frame}", made.images[frame], masks_of_labels(made.labels[frame]))

    count = max(1, config.validation_objects // OBJECTS_OF_A_COMPOSITION)
    return [Scene(f"composition {index}", partial(read, index), lambda: frames) for index in range(count)]
