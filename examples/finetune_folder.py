"""Fine-tunes the embedded model on a folder of your own images and masks.

    python examples/finetune_folder.py IMAGES RUN [STEPS]

IMAGES holds images/NAME.jpg and masks/NAME.png, with 0 for background and one number per object. RUN/best is the
resulting model, and RUN/samples shows its masks of validation images. The same command resumes an interrupted run.
"""

import sys

import masklet
from masklet.training import train


def configuration(images: str, steps: int) -> dict[str, object]:
    """Trains the decoder alone, so each image is encoded once and a laptop is enough."""
    return {
        "model": "nano",
        "data": {"layout": "folder", "path": images, "flip": False},
        "stages": [{"steps": steps, "train": "decoder", "batch_size": 2, "objects": 4, "rounds": 3}],
        "learning_rate": 1.0e-4,
        "cache": "features",
        "validate_every": max(1, steps // 5),
    }


def main() -> None:
    """Trains, prints the result, and loads the model."""
    images, run, *steps = sys.argv[1:]
    config = configuration(images, int(steps[0]) if steps else 300)
    summary = train(config, run)
    print(summary)
    sam = masklet.load(summary.folder / ("best" if summary.best else "last"))
    print(f"a model of {sum(p.numel() for p in sam.model.parameters()) / 1e6:.1f} M weights, ready for use")


if __name__ == "__main__":
    main()
