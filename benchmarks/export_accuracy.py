"""What exporting costs in accuracy: exported graphs on onnxruntime beside torch, on annotated images and videos.

    python benchmarks/export_accuracy.py FOLDER [--model nano] [--precisions fp32 fp16 int8] [--exports FOLDER]
        [--json FILE]

FOLDER holds images/NAME.jpg and masks/NAME.png, or JPEGImages/VIDEO/*.jpg and Annotations/VIDEO/*.png. Images: the IoU
of the masks with those of torch, for a click in the middle of each object and for its box. Videos: J&F of each object
by the rules of DAVIS, prompted by its mask and by three clicks. torch is the eager engine in float32.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from common import report, setting
from rich.table import Table

import masklet
from masklet.evaluation.agreement import region_j
from masklet.evaluation.clicks import box_of, next_click
from masklet.evaluation.folder import read_folder
from masklet.evaluation.video import evaluate_videos, read_videos, summarise_videos
from masklet.export import to_onnx

TORCH = "torch"


def prompts_of(truth: np.ndarray) -> list[dict[str, Any]]:
    """A click in the middle of an object, and its box."""
    click = next_click(np.zeros_like(truth), truth)
    assert click is not None
    return [{"points": [click.point]}, {"box": box_of(truth)}]


def agreement_on_images(sides: dict[str, Any], folder: Path) -> dict[str, dict[str, float]]:
    """By side, the IoU of its masks with those of torch: the mean, the median and the lowest."""
    ious: dict[str, list[float]] = defaultdict(list)
    for example in read_folder(folder):
        encoded = {name: sam.image(example.image) for name, sam in sides.items()}
        for number in example.objects:
            for prompt in prompts_of(example.mask(number)):
                masks = {name: image.predict(**prompt).masks[0] for name, image in encoded.items()}
                for name, mask in masks.items():
                    ious[name].append(region_j(mask, masks[TORCH]))
    return {
        name: {
            "mean IoU": statistics.mean(found),
            "median IoU": statistics.median(found),
            "lowest IoU": min(found),
            "masks": len(found),
        }
        for name, found in ious.items()
    }


def accuracy_on_videos(sides: dict[str, Any], folder: Path) -> dict[str, dict[str, float]]:
    """By side, J&F in per cent for mask and click prompts, means over all objects."""
    scores = defaultdict(list)
    for video in read_videos(folder):
        for name, sam in sides.items():
            found_here = list(evaluate_videos(sam, [video]))
            scores[name] += found_here
            found = summarise_videos(found_here)
            print(f"{video.name}, {name}: {100 * found['j_and_f']:.2f}, clicks {100 * found['clicks_j_and_f']:.2f}")
    means = {name: summarise_videos(found) for name, found in scores.items()}
    return {
        name: {
            "J&F": 100 * mean["j_and_f"],
            "J&F of clicks": 100 * mean["clicks_j_and_f"],
            "objects": mean["objects"],
            "videos": mean["videos"],
        }
        for name, mean in means.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--precisions", nargs="+", default=["fp32", "fp16", "int8"])
    parser.add_argument(
        "--exports", type=Path, help="Keeps the exports of each precision, and uses those that it holds."
    )
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    sides: dict[str, Any] = {TORCH: masklet.load(args.model, device="cpu", dtype="float32", engine="eager")}
    with tempfile.TemporaryDirectory() as temporary:
        exports = args.exports or Path(temporary)
        for precision in args.precisions:
            if not (exports / precision).exists():
                to_onnx(args.model, exports / precision, precision=precision, check=False)
            sides[precision] = masklet.load(exports / precision, engine="onnx", threads=1)
        measure = accuracy_on_videos if (args.folder / "JPEGImages").is_dir() else agreement_on_images
        results = measure(sides, args.folder)
    columns = list(results[TORCH])
    table = Table("", *columns)
    for name, row in results.items():
        table.add_row(
            name, *(f"{row[column]:.4f}" if isinstance(row[column], float) else str(row[column]) for column in columns)
        )
    conditions = setting(onnxruntime=onnxruntime.__version__, model=args.model, data=args.folder.name)
    report(table, conditions, results, args.json)


if __name__ == "__main__":
    main()
