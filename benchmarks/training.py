"""Peak memory and time of a training step in the ways that fine-tuning offers, each in a process of its own.

    python benchmarks/training.py [--models tiny large] [--ways decoder "decoder, cached"] [--json training.json]

Memory is a GPU's (the most that was allocated) or else resident memory of the process, whose base of libraries is
given beside it. The weights are random, images are noise at the model's own 1024 pixels with four objects, two
rounds of prompts, float32 unless said otherwise. Times are medians of the steps after the first, in which a cached
image is encoded.
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
from masklet.training.config import DataConfig, LoraConfig, Stage, TrainingConfig
from masklet.training.features import FeatureCache
from masklet.training.loop import Trainer, make_accelerator

WAYS: dict[str, dict[str, Any]] = {
    "decoder, cached": {"train": "decoder"},
    "decoder": {"train": "decoder"},
    "decoder's lora, cached": {"train": "lora", "lora": LoraConfig(targets=("mask_decoder.*_proj",))},
    "lora": {"train": "lora", "lora": LoraConfig()},
    "lora, checkpointed": {"train": "lora", "lora": LoraConfig(), "checkpoint_activations": True},
    "everything": {"train": "everything"},
    "everything, in two parts": {"train": "everything", "parts": 2},
    "everything, checkpointed": {"train": "everything", "checkpoint_activations": True},
    "everything, checkpointed, bfloat16": {"train": "everything", "checkpoint_activations": True, "bfloat16": True},
}
"""What learns, and more of ``TrainingConfig``."""


class Noise:
    """Two images, over and over."""

    def example(self, stage: Stage, step: int, place: int) -> Example:
        """See ``Examples``."""
        rng = np.random.default_rng(place % 2)
        side = stage.side_px
        masks = np.zeros((stage.objects, side, side), bool)
        for index in range(stage.objects):
            masks[index, side // 4 : side // 2, index * side // 8 : (index + 2) * side // 8] = True
        return Example(f"noise {place}", rng.integers(0, 256, (side, side, 3), dtype=np.uint8), masks)

    def batch(self, stage: Stage, examples: Sequence[Example]) -> Batch:
        """See ``Examples``."""
        return Batch.of(examples)


def learn(size: str, way: str, images: int, steps: int, cache: Path) -> dict[str, float]:
    """What the subprocess does."""
    base = peak_mb()
    choices = dict(WAYS[way])
    stage = Stage(steps=steps, images=images, objects=4, rounds=2, train=choices.pop("train"))
    data = DataConfig(layout="folder", path=".")  # never read
    config = TrainingConfig(model=released_config(*SIZES[size]), data=data, stages=(stage,), **choices)
    accelerator = make_accelerator("auto")
    kept = partial(FeatureCache, cache, max_bytes=1e10) if way.endswith("cached") else None
    trainer = Trainer(config, accelerator, kept)
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
    parser.add_argument("--images", type=int, default=2, help="of a step, even")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--cache", type=Path, help=argparse.SUPPRESS)  # in a subprocess
    args = parser.parse_args()
    if args.cache:
        print(json.dumps(learn(args.models[0], args.ways[0], args.images, args.steps, args.cache)))
        return

    table = Table("model", "learns", "peak (GB)", "of it before (GB)", "s/step")
    results = []
    for size in args.models:
        for way in args.ways:
            numbers = ["--images", str(args.images), "--steps", str(args.steps)]
            with tempfile.TemporaryDirectory() as cache:
                command = [sys.executable, __file__, "--models", size, "--ways", way, *numbers, "--cache", cache]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
            if done.returncode:  # killed for memory, or an error that it has printed
                table.add_row(size, way, f"ended with status {done.returncode}", "", "")
                continue
            row = json.loads(done.stdout.splitlines()[-1])
            results.append({"model": size, "learns": way, **row})
            table.add_row(size, way, f"{row['peak_mb'] / 1e3:.1f}", f"{row['base_mb'] / 1e3:.1f}", f"{row['s']:.2f}")
    setting = {
        "images": args.images,
        "device": device_name("cuda" if torch.cuda.is_available() else "cpu"),
        "threads": torch.get_num_threads(),
        "masklet": masklet.__version__,
        "torch": torch.__version__,
    }
    report(table, setting, results, args.json)


if __name__ == "__main__":
    main()
