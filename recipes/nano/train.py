"""Trains the embedded model from scratch: images first, then videos on top of them.

    python -m recipes.nano.train DATA --run RUN

Run it from the root of the repository. DATA holds the archives that images are composed of, see README.md. RUN gets the
folders ``images`` and ``videos``; the model is RUN/videos/last. An interrupted run is resumed by the same command. It
takes about three and a half hours on two CPU cores. Several GPUs share the work under ``accelerate launch``, if
``micro_batches`` in the recipes is a multiple of their number.

To run a single recipe, with its results in RUN itself:

    python -m recipes.nano.train DATA --run RUN --recipe recipes/nano/images.yaml [--model MODEL]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from masklet.cli.train import execute
from masklet.errors import MaskletError
from recipes.nano.recipe import make_run, read_recipe

IMAGES, VIDEOS = (Path(__file__).parent / name for name in ("images.yaml", "videos.yaml"))


def main() -> None:
    """Trains."""
    parser = argparse.ArgumentParser(
        prog="python -m recipes.nano.train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, metavar="DATA")
    parser.add_argument("--run", type=Path, required=True, help="folder for the results")
    parser.add_argument("--recipe", type=Path, help="run this recipe alone")
    parser.add_argument("--model", help="with --recipe: overrides the model to start from")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu"])
    parser.add_argument("--threads", type=int, help="CPU threads of PyTorch")
    arguments = parser.parse_args()
    if arguments.model is not None and arguments.recipe is None:
        parser.error("--model needs --recipe")
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    steps = [(IMAGES, None, "images"), (VIDEOS, str(arguments.run / "images/last"), "videos")]
    if arguments.recipe is not None:
        steps = [(arguments.recipe, arguments.model, ".")]
    try:
        for path, model, name in steps:
            recipe = read_recipe(path, model=model)
            execute(make_run(recipe, arguments.data, arguments.run / name, device=arguments.device))
    except MaskletError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
