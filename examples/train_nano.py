"""Train the embedded model from nothing: images first, then videos on top of them.

    python examples/train_nano.py DATA RUNS

DATA holds the archives that images are composed of (see the embedded model's card), RUNS gets a folder for each of
the two runs. Both go on where they were cut. About three hours on two CPU cores; several GPUs share the work under
``accelerate launch``, with ``parts`` in the recipes set to a multiple of their number.
"""

import sys
from importlib.resources import files
from pathlib import Path

from masklet.training import read_config, train


def main() -> None:
    """Run the recipes in the package, the second from what the first made."""
    data, runs = sys.argv[1], Path(sys.argv[2])
    recipes = files("masklet.training")
    with_images = train(read_config(Path(str(recipes / "nano.yaml")), data=data), runs / "images")
    print("images:", with_images)
    start = str(runs / "images" / "last")
    print(
        "videos:", train(read_config(Path(str(recipes / "nano-video.yaml")), data=data, model=start), runs / "videos")
    )


if __name__ == "__main__":
    main()
