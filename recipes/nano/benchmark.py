"""Compares the time to compose training images with the time of the training steps that use them.

    python -m recipes.nano.benchmark DATA [--sizes 256 512] [--frames 1 5] [--batch-size 8] [--json results.json]

Run it from the root of the repository. DATA holds the archives that images are composed of. Worlds are sampled on a CPU
thread and rendered on the device that trains. Reports medians over all rounds but the first, in milliseconds per image
or clip. Parts of cut-outs, which a run finds once, are found before. Two rounds of prompts, float32.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

import masklet
from benchmarks.common import device_name, report, seconds
from masklet.training.batches import Batch
from masklet.training.config import Stage, TrainingConfig
from masklet.training.loop import Trainer
from masklet.training.processes import make_accelerator
from recipes.nano.examples import ComposedExamples, Draft
from recipes.nano.sources import Sources, read_sources


def measure(sources: Sources, stage: Stage, device: str, rounds: int) -> dict[str, float]:
    """Milliseconds per image or clip."""
    config = TrainingConfig(stages=(stage,))
    trainer = Trainer(config, make_accelerator(device))
    examples = ComposedExamples(sources, config.seed, trainer.accelerator.device)
    for step in range(rounds + 1):
        for index in range(stage.batch_size):
            examples.example(stage, step, index)  # finds and caches parts
    rows: list[list[float]] = []
    for step in range(rounds + 1):
        drafts: list[Draft] = []
        batches: list[Batch] = []

        def sample(step: int = step, drafts: list[Draft] = drafts) -> None:
            drafts += [examples.example(stage, step, index) for index in range(stage.batch_size)]

        def render(drafts: list[Draft] = drafts, batches: list[Batch] = batches) -> None:
            batches.append(examples.batch(stage, drafts))

        def train(batches: list[Batch] = batches) -> None:
            trainer.train_step(batches[0])

        rows.append([seconds(work) / stage.batch_size * 1e3 for work in (sample, render, train)])
    medians = map(statistics.median, zip(*rows[1:], strict=True))
    return dict(zip(("sampling", "rendering", "step"), medians, strict=True))


def main() -> None:
    """Measures, prints a table."""
    parser = argparse.ArgumentParser(
        prog="python -m recipes.nano.benchmark",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("data", type=Path, help="folder of the archives")
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 512], help="input sizes")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--frames", type=int, nargs="+", default=[1, 5], help="1 for images, more for clips")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="auto", choices=["auto", "cpu"])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()

    sources = read_sources(args.data, held_out=False)
    table = Table("size", "frames", "sampling (ms)", "rendering (ms)", "step (ms)", "composed in the time of a step")
    results = []
    for size in args.sizes:
        for frames in args.frames:
            kind: dict[str, Any] = {
                "input_size": size,
                "frames": frames,
                "train": "memory" if frames > 1 else "everything",
            }
            stage = Stage(steps=args.rounds + 1, batch_size=args.batch_size, objects=3, rounds=2, **kind)
            row = measure(sources, stage, args.device, args.rounds)
            results.append({"size": size, "frames": frames, **row})
            composed = row["step"] / (row["sampling"] + row["rendering"])
            table.add_row(str(size), str(frames), *(f"{ms:.1f}" for ms in row.values()), f"{composed:.1f}")
    setting = {
        "batch_size": args.batch_size,
        "device": device_name("cuda" if args.device == "auto" and torch.cuda.is_available() else "cpu"),
        "threads": torch.get_num_threads(),
        "masklet": masklet.__version__,
        "torch": torch.__version__,
    }
    report(table, setting, results, args.json)


if __name__ == "__main__":
    main()
