"""Words instead of clicks, with a detector of one's own: makes docs/words.png.

    python examples/words.py [--out docs/words.png] [--detector IDEA-Research/grounding-dino-tiny]

Without --detector a stand-in is used, which needs no network and knows this one image.
"""

import argparse
from pathlib import Path

import numpy as np

import masklet

HERE = Path(__file__).parent


def stand_in(image: np.ndarray, words: list[str]) -> tuple[list[list[float]], list[float], list[str]]:
    """A detector is any function of an image and words that returns boxes, scores and labels."""
    known = {
        "truck": [[40, 130, 862, 440]],
        "wheel": [[226, 318, 330, 424], [714, 296, 818, 392]],
    }
    found = [(box, word) for word in words for box in known.get(word, [])]
    return [box for box, _ in found], [0.9] * len(found), [word for _, word in found]


def main() -> None:
    """Make the image."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=HERE.parent / "docs" / "words.png")
    parser.add_argument("--detector", help="A zero-shot detector on the Hugging Face Hub.")
    args = parser.parse_args()
    image = masklet.load().image(HERE / "images" / "truck.jpg")
    masks = image.predict(text=["truck", "wheel"], detector=args.detector or stand_in)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    masks.overlay().save(args.out)
    print(f"{', '.join(masks.labels.tolist())}: {args.out}")


if __name__ == "__main__":
    main()
