"""Examples and scenes of the synthetic world."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np

from masklet.training.batches import Example, Mask, Pixels, drawn, fills_a_cell
from masklet.training.clips import compose_clip
from masklet.training.config import Stage, TrainingConfig
from masklet.training.data.scenes import Frame, Scene, masks_of_labels
from masklet.training.sources import Sources
from masklet.training.synthetic import compose

PART_SHARE = 0.25
"""Objects that are asked for in pictures whose objects have parts, and are such a part."""
HELD_OUT_SIDE_PX = 512
HELD_OUT_SEED = 2025
"""Of the compositions that are measured on; training draws from (seed, step, place), never from (seed, index)."""
OBJECTS_OF_A_COMPOSITION = 3
"""Roughly, on average."""
FILM_FRAMES = 8


@dataclass(frozen=True)
class Composed:
    """Examples that are made up on the fly, each another."""

    sources: Sources
    seed: int

    def example(self, stage: Stage, step: int, place: int) -> Example:
        """See ``Examples``; compositions without objects are made anew."""
        rng = np.random.default_rng((self.seed, step, place))
        while True:
            pixels, masks = self._picture(stage, rng) if stage.frames == 1 else self._clip(stage, rng)
            if len(masks):
                return Example(f"composition {place} of step {step}", pixels, masks)

    def _picture(self, stage: Stage, rng: np.random.Generator) -> tuple[Pixels, Mask]:
        made = compose(self.sources, stage.side_px, rng)
        masks, parts = (masks[fills_a_cell(masks)] for masks in map(_masks_of, (made.labels, made.parts)))
        if not len(masks):
            return made.picture, masks
        chosen = masks[drawn(len(masks), stage.objects, rng)]
        is_part = rng.random(stage.objects) < (PART_SHARE if len(parts) else 0)
        chosen[is_part] = parts[rng.integers(0, max(1, len(parts)), is_part.sum())]
        return made.picture, chosen

    def _clip(self, stage: Stage, rng: np.random.Generator) -> tuple[Pixels, Mask]:
        film, labels = compose_clip(self.sources, stage.side_px, stage.frames, rng)
        masks = _masks_of(labels)  # (objects, frames, height, width)
        masks = masks[fills_a_cell(masks[:, 0])]
        return film, masks[drawn(len(masks), stage.objects, rng)].swapaxes(0, 1) if len(masks) else masks


def _masks_of(labels: Pixels) -> Mask:
    """(..., height, width) labels 0..k to (k, ..., height, width)."""
    return labels == np.arange(1, labels.max() + 1, dtype=np.uint8).reshape(-1, *[1] * labels.ndim)


def held_out_scenes(sources: Sources, config: TrainingConfig) -> list[Scene]:
    """Compositions of sources that are kept from training, as pictures or, where clips are learned from, films."""
    is_film = any(stage.frames > 1 for stage in config.stages)
    frames = FILM_FRAMES if is_film else 1

    @lru_cache(maxsize=2)  # a film is asked for frame by frame
    def composed(index: int) -> tuple[Pixels, Pixels]:
        rng = np.random.default_rng((HELD_OUT_SEED, index))
        if is_film:
            return compose_clip(sources, HELD_OUT_SIDE_PX, FILM_FRAMES, rng)
        made = compose(sources, HELD_OUT_SIDE_PX, rng)
        return made.picture[None], made.labels[None]

    def read(index: int, frame: int) -> Frame:
        pictures, labels = composed(index)
        return Frame(f"composition {index}, frame {frame}", pictures[frame], masks_of_labels(labels[frame]))

    count = max(1, config.validation_objects // OBJECTS_OF_A_COMPOSITION)
    return [Scene(f"composition {index}", partial(read, index), lambda: frames) for index in range(count)]
