"""Track a dog through a video from one box in its first frame: makes docs/tracked-dog.gif, the animation of the README.

python examples/tracked_dog.py [--out docs/tracked-dog.gif] [--frames 30]
"""

import argparse
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

import masklet
from masklet.video.writer import VideoWriter

HERE = Path(__file__).parent
BOX = (288, 108, 480, 200)
FPS = 15
"""Half the video's speed, so that the mask can be followed."""
PAUSE = 10
"""Frames for which the box, and after it the last mask, are shown."""


def main() -> None:
    """Make the animation."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=HERE.parent / "docs" / "tracked-dog.gif")
    parser.add_argument("--frames", type=int, default=30)
    args = parser.parse_args()

    video = masklet.load().video(HERE / "videos" / "dog.mp4")
    video.prompt(frame=0, object="dog", box=BOX)
    results = list(islice(video.track(), args.frames))
    assert results[0].masks.image is not None
    prompted = Image.fromarray(results[0].masks.image)
    ImageDraw.Draw(prompted).rectangle(BOX, outline="white", width=3)
    masked = [result.masks.clean(fill_holes=300, remove_islands=150, smooth_px=2).overlay() for result in results]
    with VideoWriter(args.out, FPS) as animation:
        for image in [prompted] * PAUSE + masked + masked[-1:] * PAUSE:
            animation.write(np.asarray(image))
    print(f"{len(results)} frames, {args.out.stat().st_size / 1e6:.1f} MB: {args.out}")


if __name__ == "__main__":
    main()
