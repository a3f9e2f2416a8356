"""``python -m soak``: runs the parts, prints a table and writes their figures as JSON."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import masklet

PARTS = {"files": 0.3, "prompts": 0.2, "kills": 0.25, "video": 0.15, "threads": 0.05, "disks": 0.05}
"""The modules of this package that attack something, and their shares of the time."""


def main() -> int:
    """Returns 1 if anything failed."""
    options = parsed()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="masklet-soak-"))
    print(f"seed {options.seed}; files of failures stay in {folder}", flush=True)
    torch.set_num_threads(1)
    parts = options.only or list(PARTS)
    total = sum(PARTS[part] for part in parts)
    report: dict[str, Any] = {"machine": machine(), "seed": options.seed, "parts": {}}
    for part in parts:
        seconds, start = 60 * options.minutes * PARTS[part] / total, time.monotonic()
        outcome = importlib.import_module(f"soak.{part}").run(seconds, options.seed, folder / part)
        taken = round(time.monotonic() - start)
        report["parts"][part] = {"seconds": taken, **outcome.figures, "failures": outcome.failures}
        show(part, taken, outcome.figures, outcome.failures)
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    return int(any(part["failures"] for part in report["parts"].values()))


def parsed() -> argparse.Namespace:
    """The arguments of the command."""
    parser = argparse.ArgumentParser(prog="python -m soak", description=sys.modules["soak"].__doc__)
    parser.add_argument("--minutes", type=float, default=60, help="for all parts together")
    parser.add_argument("--only", action="append", choices=PARTS, help="a part; repeatable")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where files are written; a temporary one by default")
    parser.add_argument("--json", type=Path, default=Path("soak.json"), help="where the figures are written")
    return parser.parse_args()


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    return {
        "masklet": masklet.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
    }


def show(part: str, seconds: int, figures: dict[str, Any], failures: list[str]) -> None:
    """Prints a part's figures, a row each, and its failures."""
    print(f"\n{part}: {seconds} s, {len(failures)} failures", flush=True)
    for name, value in figures.items():
        rows = value.items() if isinstance(value, dict) else [("", value)]
        for key, number in rows:
            print(f"  {name:24}{key:20}{json.dumps(number)}", flush=True)
    for failure in failures:
        print(f"  FAILED {failure}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
