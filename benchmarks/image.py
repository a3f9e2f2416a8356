"""Load, encode and decode times beside transformers, in one process, turn by turn, on the same random weights.

    python benchmarks/image.py [--models tiny base-plus] [--objects 64] [--rounds 5] [--json image.json]

Times are medians over the rounds; the ratio is the median of the rounds' own ratios, which holds when the machine's
speed drifts. Above 1 masklet is faster.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from common import SIZES, device_name, report, seconds
from rich.table import Table

import masklet
from masklet.checkpoints.meta import released_config


def compare(ours: Callable[[], object], theirs: Callable[[], object], rounds: int) -> dict[str, float]:
    """Both once unmeasured, then in turn."""
    seconds(ours), seconds(theirs)
    pairs = [(seconds(ours), seconds(theirs)) for _ in range(rounds)]
    return {
        "masklet_s": statistics.median(a for a, _ in pairs),
        "transformers_s": statistics.median(b for _, b in pairs),
        "ratio": statistics.median(b / a for a, b in pairs),
        "ratio_min": min(b / a for a, b in pairs),
        "ratio_max": max(b / a for a, b in pairs),
    }


def measure(size: str, objects: int, rounds: int, device: str) -> dict[str, dict[str, float]]:
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        masklet.Sam2Model(released_config(*SIZES[size])).save_pretrained(folder)
        results = {
            "load": compare(
                lambda: masklet.Sam2Model.from_pretrained(folder),
                lambda: transformers.Sam2Model.from_pretrained(folder),
                rounds,
            )
        }
        ours = masklet.Sam2Model.from_pretrained(folder).to(device)
        theirs = transformers.Sam2Model.from_pretrained(folder).eval().to(device)
    pixels = torch.randn(1, 3, 1024, 1024, device=device)
    with torch.inference_mode():
        results["encode"] = compare(
            lambda: ours.get_image_embeddings(pixels), lambda: theirs.get_image_embeddings(pixels), rounds
        )
        embeddings = ours.get_image_embeddings(pixels)
        for count in (1, objects):
            points = torch.rand(1, count, 1, 2, device=device) * 1024
            labels = torch.ones(1, count, 1, dtype=torch.long, device=device)
            prompts = {"image_embeddings": embeddings, "input_points": points, "input_labels": labels}
            results[f"decode {count} × 1 click"] = compare(
                lambda p=prompts: ours(**p), lambda p=prompts: theirs(**p), rounds
            )
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=SIZES, default=["tiny", "base-plus"])
    parser.add_argument("--objects", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    results = {size: measure(size, args.objects, args.rounds, args.device) for size in args.models}
    setting = {
        "device": device_name(args.device),
        "threads": torch.get_num_threads(),
        "dtype": "float32",
        "resolution": 1024,
        "masklet": masklet.__version__,
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "rounds": args.rounds,
    }
    table = Table("model", "work", "masklet (s)", "transformers (s)", "ratio", "min – max")
    for size, rows in results.items():
        for work, row in rows.items():
            spread = f"{row['ratio_min']:.2f} – {row['ratio_max']:.2f}"
            table.add_row(
                size, work, f"{row['masklet_s']:.3f}", f"{row['transformers_s']:.3f}", f"{row['ratio']:.2f}", spread
            )
    report(table, setting, results, args.json)


if __name__ == "__main__":
    main()
