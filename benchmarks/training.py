"""Measures peak memory and time of a training step for the ways to fine-tune, each in a process of its own.

    python benchmarks/training.py [--models tiny large] [--ways decoder "decoder, cached"] [--json training.json]

Memory is the peak allocated on a GPU, or else the peak resident memory of the process; the memory of its libraries
alone is given beside it. Weights are random. A step takes two images of four objects with two rounds of prompts, or two
clips with three rounds, at 1024 pixels and in the precision ``auto`` unless stated otherwise. Images are noise: a step
costs the same for all images. Times are medians of the steps after the first one, which encodes images that are then
cached.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import SIZES, device_name, peak_mb, report
from rich.table import Table

import masklet
from masklet.checkpoints.meta import released_config
from masklet.training.batches import Batch, Example
from masklet.training.config import LoraConfig, Stage, TrainingConfig
from masklet.training.features import FeatureCache
from masklet.training.loop import Trainer
from masklet.training.precision import precision_for
from masklet.training.processes import make_accelerator

WAYS: dict[str, dict[str, Any]] = {
    "decoder, cached": {"train": "decoder"},
    "decoder": {"train": "decoder"},
    "decoder's lora, cached": {"train": "lora", "lora": LoraConfig(targets=("mask_decoder.*_proj",))},
    "lora": {"train": "lora", "lora": LoraConfig()},
    "lora, checkpointed": {"train": "lora", "lora": LoraConfig(), "checkpoint_activations": True},
    "everything": {"train": "everything"},
    "everything, two micro-batches": {"train": "everything", "micro_batches": 2},
    "everything, checkpointed": {"train": "everything", "checkpoint_activations": True},
    "everything, checkpointed, float32": {
        "train": "everything",
        "checkpoint_activations": True,
        "precision": "float32",
    },
    "memory, clips of 8 frames": {"train": "memory", "frames": 8, "rounds": 3},
}
"""What is trained, and further settings of ``TrainingConfig`` or of its stage."""


class Noise:
    """Two images or clips, repeated. Nothing moves."""

    def example(self, stage: Stage, step: int, index: int) -> Example:
        """See ``Examples``."""
        rng = np.random.default_rng(index % 2)
        size = stage.input_size
        masks = np.zeros((stage.objects, size, size), bool)
        for number in range(stage.objects):
            masks[number, size // 4 : size // 2, number * size // 8 : (number + 2) * size // 8] = True
        pixels = rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
        if stage.frames > 1:
            pixels, masks = (np.stack([one] * stage.frames) for one in (pixels, masks))
        return Example(f"noise {index}", pixels, masks)

    def batch(self, stage: Stage, examples: Sequence[Example]) -> Batch:
        """See ``Examples``."""
        return Batch.from_examples(examples)


def measure(size: str, way: str, batch_size: int, steps: int, cache: Path) -> dict[str, float]:
    """Trains in this process."""
    base = peak_mb()
    choices = dict(WAYS[way])
    of_stage = {name: choices.pop(name) for name in ("frames", "rounds") if name in choices}
    stage = Stage(steps=steps, batch_size=batch_size, objects=4, train=choices.pop("train"), rounds=2)
    stage = replace(stage, **of_stage)
    config = TrainingConfig(model=released_config(*SIZES[size]), stages=(stage,), **choices)
    accelerator = make_accelerator("auto")
    cached = partial(FeatureCache, cache, max_bytes=1e10) if way.endswith("cached") else None
    trainer = Trainer(config, accelerator, cache=cached)
    times, start = [], time.perf_counter()
    for _ in trainer.run(Noise()):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
        start = time.perf_counter()
    on_gpu = accelerator.device.type == "cuda"
    peak = torch.cuda.max_memory_allocated() / 1e6 if on_gpu else peak_mb()
    return {"peak_mb": peak, "base_mb": 0.0 if on_gpu else base, "s": statistics.median(times[1:])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=SIZES, default=["tiny", "large"])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--batch-size", type=int, default=2, help="an even number")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--cache", type=Path, help=argparse.SUPPRESS)  # set in subprocesses
    args = parser.parse_args()
    if args.cache:
        print(json.dumps(measure(args.models[0], args.ways[0], args.batch_size, args.steps, args.cache)))
        return

    table = Table("model", "trained", "peak (GB)", "libraries (GB)", "s/step")
    results = []
    for size in args.models:
        for way in args.ways:
            numbers = ["--batch-size", str(args.batch_size), "--steps", str(args.steps)]
            with tempfile.TemporaryDirectory() as cache:
                command = [sys.executable, __file__, "--models", size, "--ways", way, *numbers, "--cache", cache]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
            if done.returncode:  # out of memory, or an error that it printed
                table.add_row(size, way, f"ended with status {done.returncode}", "", "")
                continue
            row = json.loads(done.stdout.splitlines()[-1])
            results.append({"model": size, "trained": way, **row})
            table.add_row(size, way, f"{row['peak_mb'] / 1e3:.1f}", f"{row['base_mb'] / 1e3:.1f}", f"{row['s']:.2f}")
    setting = {
        "batch_size": args.batch_size,
        "device": device_name("cuda" if torch.cuda.is_available() else "cpu"),
        "threads": torch.get_num_threads(),
        "precision": precision_for("auto", torch.device("cuda" if torch.cuda.is_available() else "cpu")),
        "masklet": masklet.__version__,
        "torch": torch.__version__,
    }
    report(table, setting, results, args.json)


if __name__ == "__main__":
    main()
