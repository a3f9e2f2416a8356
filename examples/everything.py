"""Find everything in an image, and find and track everything in a video: makes docs/everything.png.

    python examples/everything.py [--out docs/everything.png] [--points 12] [--frames 10]

It uses few points and frames, to finish quickly.
"""

import argparse
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

import masklet

HERE = Path(__file__).parent
HEIGHT = 400
"""Of the image and of the frame, which are placed side by side, in pixels."""
MIN_AREA = 50
"""Holes and islands of fewer pixels are removed."""


def main() -> None:
    """Make the image."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=HERE.parent / "docs" / "everything.png")
    parser.add_argument("--points", type=int, default=12, help="Points along each side of the image.")
    parser.add_argument("--frames", type=int, default=10, help="Frames of the video; the last one is shown.")
    args = parser.parse_args()

    sam = masklet.load()
    image = sam.everything(HERE / "images" / "truck.jpg", points_per_side=args.points, min_area=MIN_AREA)
    video = sam.video(HERE / "videos" / "dog.mp4")
    every = max(1, args.frames // 2)
    results = video.everything(every=every, points_per_side=args.points, min_area=MIN_AREA)
    *_, last = islice(results, args.frames)

    overlays = [image.overlay(), last.masks.overlay()]
    panels = [np.array(panel.resize((round(panel.width * HEIGHT / panel.height), HEIGHT))) for panel in overlays]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate(panels, axis=1)).save(args.out)
    print(f"{len(image)} masks in the image, {len(last.object_ids)} objects in video frame {last.index}: {args.out}")


if __name__ == "__main__":
    main()
