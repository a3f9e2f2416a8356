"""Adapts the embedded model to greyscale images, as from a microscope or an ultrasound scanner, with LoRA.

    python examples/lora_greyscale.py RUN [IMAGES] [STEPS]

The images are synthetic, so that the example runs anywhere: speckle noise with dim ellipses that hardly stand out.
Training and validation use an input size of 256 pixels; use the model with ``sam.image(image, resolution=256)``.
Only adapters in the attention layers of the encoder and the decoder are trained. They are merged into plain weights, so
the result is a model like any other.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from masklet.training import train

SIDE_PX = 256


def draw_image(rng: np.random.Generator) -> tuple[Image.Image, Image.Image]:
    """An image of one channel, and the label map of its ellipses."""
    y, x = np.mgrid[:SIDE_PX, :SIDE_PX]
    brightness, labels = np.full((SIDE_PX, SIDE_PX), 70.0), np.zeros((SIDE_PX, SIDE_PX), np.uint8)
    for number in range(1, rng.integers(3, 7)):
        centre, radii, angle = rng.uniform(30, SIDE_PX - 30, 2), rng.uniform(14, 40, 2), rng.uniform(0, np.pi)
        u = (x - centre[0]) * np.cos(angle) + (y - centre[1]) * np.sin(angle)
        v = (y - centre[1]) * np.cos(angle) - (x - centre[0]) * np.sin(angle)
        inside = (u / radii[0]) ** 2 + (v / radii[1]) ** 2 < 1
        brightness[inside] = 70 + rng.uniform(15, 40)
        labels[inside] = number
    speckled = brightness * rng.gamma(8, 1 / 8, brightness.shape)
    image = Image.fromarray(np.clip(speckled, 0, 255).astype(np.uint8))
    return image.filter(ImageFilter.GaussianBlur(1)), Image.fromarray(labels)


def write_images(folder: Path, count: int) -> None:
    """Writes a folder of images and masks."""
    rng = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    for index in range(count):
        for kind, image in zip(("images", "masks"), draw_image(rng), strict=True):
            image.save(folder / kind / f"{index:03}.png")


def configuration(images: Path, steps: int) -> dict[str, object]:
    """LoRA of rank 8 on all attention layers of the encoder and the decoder."""
    return {
        "model": "nano",
        "data": {"layout": "folder", "path": str(images), "validation": 0.2},
        "lora": {"rank": 8, "alpha": 16, "targets": ["vision_encoder.*.attn.*", "mask_decoder.*_proj"]},
        "stages": [{"steps": steps, "train": "lora", "input_size": 256, "batch_size": 2, "objects": 4, "rounds": 2}],
        "learning_rate": 1.0e-3,
        "validate_every": max(1, steps // 4),
        "validation_objects": 40,
    }


def main() -> None:
    """Makes images, trains, and prints the result."""
    run, *numbers = sys.argv[1:]
    count, steps = [*map(int, numbers), *(60, 200)[len(numbers) :]]
    images = Path(run) / "images"
    write_images(images, count)
    print(train(configuration(images, steps), run))


if __name__ == "__main__":
    main()
