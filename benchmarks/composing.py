"""How long the synthetic world takes to make, beside the training steps of the embedded model that learn from it.

    python benchmarks/composing.py DATA [--sides 256 512] [--frames 1 5] [--images 8] [--json made.json]

DATA holds the archives that images are composed of. What chance decides is drawn on a thread of the CPU, the pixels
on the device that learns. Medians of the rounds after the first, in milliseconds an image or clip; parts of cut-outs,
which are looked for once in a run, were found before. Two rounds of prompts, float32.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

import torch
from common import device_name, report, seconds
from rich.table import Table

import masklet
from masklet.training.batches import Batch
from masklet.training.composed import Composed, Draft
from masklet.training.config import DataConfig, Stage, TrainingConfig
from masklet.training.loop import Trainer, make_accelerator
from masklet.training.sources import Sources, read_sources


def measure(sources: Sources, stage: Stage, device: str, rounds: int) -> dict[str, float]:
    """Milliseconds an image or clip."""
    config = TrainingConfig(data=DataConfig(layout="synthetic", path="."), stages=(stage,))
    trainer = Trainer(config, make_accelerator(device))
    composed = Composed(sources, config.seed, trainer.accelerator.device)
    for step in range(rounds + 1):
        for place in range(stage.images):
            composed.example(stage, step, place)  # finds parts
    rows: list[list[float]] = []
    for step in range(rounds + 1):
        drafts: list[Draft] = []
        batches: list[Batch] = []

        def draw(step: int = step, drafts: list[Draft] = drafts) -> None:
            drafts += [composed.example(stage, step, place) for place in range(stage.images)]

        def render(drafts: list[Draft] = drafts, batches: list[Batch] = batches) -> None:
            batches.append(composed.batch(stage, drafts))

        def learn(batches: list[Batch] = batches) -> None:
            trainer.take_step(batches[0])

        rows.append([seconds(work) / stage.images * 1e3 for work in (draw, render, learn)])
    return dict(zip(("chance", "pixels", "step"), map(statistics.median, zip(*rows[1:], strict=True)), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of cutouts-, images- and instances-*.zip")
    parser.add_argument("--sides", type=int, nargs="+", default=[256, 512])
    parser.add_argument("--images", type=int, default=8, help="of a step")
    parser.add_argument("--frames", type=int, nargs="+", default=[1, 5], help="1 for images, more for clips")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="auto", choices=["auto", "cpu"])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()

    sources = read_sources(args.data, held_out=False)
    table = Table("side", "frames", "chance (ms)", "pixels (ms)", "step (ms)", "made in a step's time")
    results = []
    for side in args.sides:
        for frames in args.frames:
            train = "memory" if frames > 1 else "everything"
            kind: dict[str, Any] = {"image_size": side, "frames": frames, "train": train}
            stage = Stage(steps=args.rounds + 1, images=args.images, objects=3, rounds=2, **kind)
            row = measure(sources, stage, args.device, args.rounds)
            results.append({"side": side, "frames": frames, **row})
            made = row["step"] / (row["chance"] + row["pixels"])
            table.add_row(str(side), str(frames), *(f"{ms:.1f}" for ms in row.values()), f"{made:.1f}")
    setting = {
        "images": args.images,
        "device": device_name("cuda" if args.device == "auto" and torch.cuda.is_available() else "cpu"),
        "threads": torch.get_num_threads(),
        "masklet": masklet.__version__,
        "torch": torch.__version__,
    }
    report(table, setting, results, args.json)


if __name__ == "__main__":
    main()
