"""Find everything in an image, and in a video while following it: the image docs/everything.png, made anew.

    python examples/everything.py [--out docs/everything.png] [--points 12] [--frames 10]

Clicks and frames are few, so that it takes a moment.
"""

import argparse
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

import masklet

HERE = Path(__file__).parent
HEIGHT = 400
"""Of the image; image and video lie side by side."""
LOOK = {"iou_threshold": 0.4, "stability_threshold": 0.3, "min_area": 50}
"""The embedded model is seldom as sure as published checkpoints are, which need no such thresholds."""


def main() -> None:
    """Make the image."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=HERE.parent / "docs" / "everything.png")
    parser.add_argument("--points", type=int, default=12, help="Clicks along each side.")
    parser.add_argument("--frames", type=int, default=10, help="Of the video; the last one is shown.")
    args = parser.parse_args()
    look = {"points_per_side": args.points, **LOOK}

    sam = masklet.load()
    image = sam.everything(HERE / "images" / "truck.jpg", **look)
    video = sam.video(HERE / "videos" / "dog.mp4")
    *_, last = islice(video.everything(every=max(1, args.frames // 2), **look), args.frames)

    shown = [image.overlay(), last.masks.overlay()]
    panels = [np.array(image.resize((round(image.width * HEIGHT / image.height), HEIGHT))) for image in shown]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate(panels, axis=1)).save(args.out)
    print(f"{len(image)} masks in the image, {len(last.object_ids)} objects in video frame {last.index}: {args.out}")


if __name__ == "__main__":
    main()
