"""Compositions of sources that are never trained on; ``python -m masklet.training.held_out`` measures on them."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from masklet.evaluation.folder import Example
from masklet.evaluation.measure import measure
from masklet.evaluation.scores import summarise
from masklet.segmenter import load
from masklet.training.composed import compose
from masklet.training.sources import Sources, read_sources
from masklet.training.synthetic import draw_image

SIDE_PX = 512
SEED = 2024
"""Of the compositions that are measured on; training draws from (seed, step, image), never from (seed, image)."""
MAX_OBJECTS = 6
"""Objects asked for in one composition, or a few images of nuclei would outweigh all others."""


def held_out_examples(
    sources: Sources, count: int, side_px: int = SIDE_PX, *, real_share: float = 0.0
) -> Iterator[Example]:
    """The first ``count`` compositions, of ``sources`` that were read with ``held_out=True``.

    Args:
        sources: Cut-outs, images and annotated images.
        count: How many.
        side_px: Their height and width.
        real_share: 0 pastes objects on images and textures; 1 begins with annotated images, whose objects count too.
    """
    for index in range(count):
        rng = np.random.default_rng((SEED, index))
        made = compose(draw_image(sources, rng, real_share=real_share, with_parts=False), side_px)
        labels = made.labels[0]
        kept = np.zeros(256, np.uint8)
        kept[1 + rng.permutation(labels.max())[:MAX_OBJECTS]] = 1
        yield Example(f"composition {index}", made.images[0], labels * kept[labels])


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(prog="python -m masklet.training.held_out", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of cutouts-, images- and instances-*.zip")
    parser.add_argument("--model", help="name, folder or .pt file; the embedded model if not given")
    parser.add_argument("--count", type=int, default=200, help="of compositions")
    parser.add_argument("--real-share", type=float, default=0.0, help="of images that begin with an annotated image")
    arguments = parser.parse_args()
    sources = read_sources(arguments.data, held_out=True)
    examples = held_out_examples(sources, arguments.count, real_share=arguments.real_share)
    print(json.dumps(summarise(list(measure(load(arguments.model), examples)))))


if __name__ == "__main__":
    main()
