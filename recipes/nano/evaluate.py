"""Evaluates a model on compositions of held-out sources.

    python -m recipes.nano.evaluate --data DATA [--model MODEL] [--count 200] [--annotated-share 0]

Run it from the root of the repository. DATA holds the archives cutouts-*.zip, photos-*.zip and instances-*.zip.
"""

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
from recipes.nano.examples import compose
from recipes.nano.image_worlds import sample_image_world
from recipes.nano.sources import Sources, read_sources

SIDE_PX = 512
SEED = 2024
"""Seed of the compositions, which are drawn from (seed, index); training draws from (seed, step, index)."""
MAX_OBJECTS = 6
"""Maximum number of objects per composition, so that a few images of nuclei do not outweigh all others."""


def held_out_examples(
    sources: Sources, count: int, side_px: int = SIDE_PX, *, annotated_share: float = 0.0
) -> Iterator[Example]:
    """The first ``count`` compositions of held-out sources.

    Args:
        sources: Sources that were read with ``held_out=True``.
        count: Number of compositions.
        side_px: Height and width of the compositions.
        annotated_share: Share of compositions on annotated images, whose instances count too. The others are on images
            and textures.
    """
    for index in range(count):
        rng = np.random.default_rng((SEED, index))
        world = sample_image_world(sources, rng, annotated_share=annotated_share, with_parts=False)
        composition = compose(world, side_px)
        labels = composition.labels[0]
        is_kept = np.zeros(256, np.uint8)
        is_kept[1 + rng.permutation(labels.max())[:MAX_OBJECTS]] = 1
        yield Example(f"composition {index}", composition.images[0], labels * is_kept[labels])


def main() -> None:
    """Prints scores as JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m recipes.nano.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the archives")
    parser.add_argument("--model", help="name, folder or .pt file; by default the embedded model")
    parser.add_argument("--count", type=int, default=200, help="number of compositions")
    parser.add_argument(
        "--annotated-share", type=float, default=0.0, help="share of compositions on annotated images, 0 to 1"
    )
    arguments = parser.parse_args()
    sources = read_sources(arguments.data, held_out=True)
    examples = held_out_examples(sources, arguments.count, annotated_share=arguments.annotated_share)
    print(json.dumps(summarise(list(measure(load(arguments.model), examples)))))


if __name__ == "__main__":
    main()
