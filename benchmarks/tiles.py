"""Everything in an image of 400 megapixels, tile by tile: time, masks, and peak memory of the process.

    python benchmarks/tiles.py [--side 20000] [--tile 1024 --overlap 128] [--points 4] [--resolution 256] [--json FILE]

Needs ``masklet[tiff]``. The image is a TIFF of coloured ellipses on noise, written by another process.
Most of the memory is used by the network and by the masks of one tile; to see that it does not grow with the image,
compare ``--side 5000`` with ``--side 20000``.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from common import device_name, peak_mb, report, seconds
from rich.table import Table

import masklet


def write_image(path: Path, side: int) -> None:
    """Bands of noise with ellipses that cross the borders of tiles; one band is in memory at a time."""
    rng, band = np.random.default_rng(0), 500
    pixels = tifffile.memmap(path, shape=(side, side, 3), dtype=np.uint8, photometric="rgb", bigtiff=True)
    for top in range(0, side, band):
        part = rng.integers(90, 120, (min(band, side - top), side, 3), np.uint8)
        for left in range(0, side - band, band):
            h, w = rng.integers(100, 450, 2)
            y, x = np.mgrid[: min(h, len(part)), :w]
            inside = ((y + 0.5) / h - 0.5) ** 2 + ((x + 0.5) / w - 0.5) ** 2 < 0.25
            part[: len(inside), left : left + w][inside] = rng.integers(0, 255, 3)
        pixels[top : top + band] = part
        pixels.flush()
    del pixels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--side", type=int, default=20_000)
    parser.add_argument("--tile", type=int, default=1024)
    parser.add_argument("--overlap", type=int, default=128)
    parser.add_argument("--points", type=int, default=4)
    parser.add_argument("--resolution", type=int, default=256)
    parser.add_argument("--iou", type=float, default=0.5)
    parser.add_argument("--stability", type=float, default=0.5)
    parser.add_argument("--model")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    sam = masklet.load(args.model)
    found: dict[str, Any] = {"masks": 0, "bytes": 0}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "large.tif"
        # In another process, whose memory is not counted.
        writer = multiprocessing.get_context("spawn").Process(target=write_image, args=(path, args.side))
        writer.start()
        writer.join()
        sam.everything(np.zeros((64, 64, 3), np.uint8), points_per_side=args.points, resolution=args.resolution)
        found["megabytes on disk"] = round(path.stat().st_size / 1e6)
        before_mb = peak_mb()

        def find() -> None:
            instances = sam.everything_tiled(
                path,
                tile=args.tile,
                overlap=args.overlap,
                points_per_side=args.points,
                resolution=args.resolution,
                iou_threshold=args.iou,
                stability_threshold=args.stability,
            )
            for instance in instances:
                found["masks"] += 1
                found["bytes"] += len(json.dumps(instance))

        found["seconds"] = round(seconds(find), 1)
    found |= {"peak before (MB)": round(before_mb), "peak (MB)": round(peak_mb())}
    setting = {
        **{name: value for name, value in vars(args).items() if name != "json"},
        "device": str(sam.model.device),
        "cpu": device_name(),
        "masklet": masklet.__version__,
    }
    table = Table(*found)
    table.add_row(*map(str, found.values()))
    report(table, setting, found, args.json)


if __name__ == "__main__":
    main()
