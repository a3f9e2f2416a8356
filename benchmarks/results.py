"""Ten thousand masks of a 4K image through every export: time, and peak memory of the process.

    python benchmarks/results.py [--masks 10000] [--size 3840 2160] [--json results.json]

As bool arrays they would take 83 GB. They are run lengths, as in COCO files and from ``everything(output="rle")``, read
with ``Masks.from_coco(…, packed=True)``. The masks are ellipses with holes, 8 to 400 pixels wide.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from common import device_name, peak_mb, report, seconds
from rich.table import Table

import masklet
from masklet.masks import Patch, encode_patch
from masklet.results.exporters import coco_instance


def ellipses(count: int, size_hw: tuple[int, int]) -> list[dict[str, Any]]:
    """COCO instances of ellipses with a hole; the image's border cuts some of them."""
    rng = np.random.default_rng(0)
    height, width = size_hw
    instances = []
    for number in range(count):
        h, w = np.exp(rng.uniform(np.log(8), np.log(400), 2)).astype(int)
        y, x = np.mgrid[:h, :w]
        radius = np.hypot((y + 0.5) / h - 0.5, (x + 0.5) / w - 0.5)
        y0, x0 = int(rng.integers(0, height - 4)), int(rng.integers(0, width - 4))
        inside = ((radius < 0.5) & (radius > 0.12))[: height - y0, : width - x0]
        h, w = inside.shape
        rle = encode_patch(Patch((slice(y0, y0 + h), slice(x0, x0 + w)), inside), size_hw)
        area, score = int(inside.sum()), float(rng.random())
        instances.append(
            coco_instance(number + 1, rle, (x0, y0, x0 + w, y0 + h), area=area, score=score, object_id=number)
        )
    return instances


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--masks", type=int, default=10_000)
    parser.add_argument("--size", type=int, nargs=2, default=(3840, 2160), metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    width, height = args.size
    image = np.random.default_rng(1).integers(0, 255, (height, width, 3), np.uint8)
    instances = ellipses(args.masks, (height, width))
    before_mb = peak_mb()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        made: dict[str, Any] = {}

        def read() -> None:
            made["masks"] = masklet.Masks.from_coco(instances, packed=True)

        exports = {
            "from_coco(packed=True)": read,
            "boxes, areas": lambda: (made["masks"].boxes, made["masks"].areas),
            "clean": lambda: made["masks"].clean(fill_holes=50, remove_islands=50),
            "to_coco": lambda: made["masks"].to_coco(),
            "to_rle": lambda: made["masks"].to_rle(),
            "overlay": lambda: made["masks"].overlay(image),
            "overlay(ids=True)": lambda: made["masks"].overlay(image, ids=True),
            "save .png": lambda: made["masks"].save(Path(folder) / "masks.png"),
            "save .json": lambda: made["masks"].save(Path(folder) / "masks.json"),
            "save .svg": lambda: made["masks"].save(Path(folder) / "masks.svg"),
            "to_polygons": lambda: made["masks"].to_polygons(),
            "to_geojson": lambda: made["masks"].to_geojson(),
        }
        for name, export in exports.items():
            rows.append({"export": name, "seconds": seconds(export), "peak_mb": peak_mb()})
    setting = {
        "masks": args.masks,
        "image": f"{width}×{height}",
        "as arrays": f"{args.masks * width * height / 1e9:.0f} GB",
        "masklet": masklet.__version__,
        "cpu": device_name(),
        "before": f"{before_mb:.0f} MB",
    }
    table = Table("export", "seconds", "peak (MB)")
    for row in rows:
        table.add_row(row["export"], f"{row['seconds']:.2f}", f"{row['peak_mb']:.0f}")
    report(table, setting, rows, args.json)


if __name__ == "__main__":
    main()
