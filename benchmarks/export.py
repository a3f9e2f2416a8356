"""Exported graphs on onnxruntime beside masklet's cpu engine: size, load, encode, click and video frame.

    python benchmarks/export.py [--model nano] [--precisions fp32 int8] [--rounds 5] [--provider cpu] [--exports FOLDER]
        [--json export.json]

All run turn by turn in one process, on one thread. Times are CPU times, medians over the rounds; ratios are medians of
the rounds' own ratios to masklet's engine. Above 1 the exported graphs are faster. With onnxruntime-openvino in place
of onnxruntime, ``--provider openvino`` measures OpenVINO.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from common import report, setting
from rich.table import Table

import masklet
from masklet.export import to_onnx


def cpu_seconds(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def moving_rectangles(frames: int) -> list[np.ndarray]:
    """Frames of 360 by 640."""
    noise = np.random.default_rng(0).integers(0, 80, (360, 640, 3), dtype=np.uint8)
    video = [noise.copy() for _ in range(frames)]
    for index, frame in enumerate(video):
        frame[100:200, 100 + 4 * index : 260 + 4 * index] += 150
    return video


def works(sam: Any, frames: int) -> dict[str, Callable[[], object]]:
    """What is measured, of one segmenter. A frame is one of a video whose memory is full."""
    image = moving_rectangles(1)[0]
    encoded = sam.image(image)
    video = sam.video(moving_rectangles(8 + frames))
    video.prompt(0, points=[(180, 150)])
    tracked = video.track()
    for _ in range(8):
        next(tracked)
    return {
        "encode": lambda: sam.image(image),
        "click": lambda: encoded.predict(points=[(180, 150)]),
        "video frame": lambda: next(tracked),
    }


def measure(model: str, precisions: list[str], rounds: int, provider: str, exports: Path | None) -> dict[str, Any]:
    torch.set_num_threads(1)
    results: dict[str, Any] = {"size_mb": {}, "load_s": {}}
    with tempfile.TemporaryDirectory() as temporary:
        folder = exports or Path(temporary)
        loaders: dict[str, Callable[[], Any]] = {"cpu engine": lambda: masklet.load(model, device="cpu", engine="cpu")}
        for precision in precisions:
            if not (out := folder / precision).exists():
                to_onnx(model, out, precision=precision, check=False)
            results["size_mb"][precision] = sum(path.stat().st_size for path in out.glob("*.onnx")) / 1e6
            loaders[precision] = lambda out=out: masklet.load(out, engine="onnx", threads=1, provider=provider)
        measured = {}
        for name, load in loaders.items():
            results["load_s"][name] = cpu_seconds(load)
            measured[name] = works(load(), rounds + 1)
        for work in ("encode", "click", "video frame"):
            for run in measured.values():
                run[work]()  # unmeasured
            turns = [{name: cpu_seconds(run[work]) for name, run in measured.items()} for _ in range(rounds)]
            results[work] = {
                name: {
                    "s": statistics.median(turn[name] for turn in turns),
                    "ratio": statistics.median(turn["cpu engine"] / turn[name] for turn in turns),
                }
                for name in measured
            }
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--precisions", nargs="+", default=["fp32", "int8"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--provider", default="cpu")
    parser.add_argument("--exports", type=Path, help="Keeps the exports, by precision, and uses those that it holds.")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    results = measure(arguments.model, arguments.precisions, arguments.rounds, arguments.provider, arguments.exports)
    table = Table("", "size", "load", "encode", "click", "video frame")
    for name, load in results["load_s"].items():
        size = results["size_mb"].get(name)
        cells = [
            f"{results[work][name]['s'] * 1e3:.0f} ms ({results[work][name]['ratio']:.2f})"
            for work in list(results)[2:]
        ]
        table.add_row(name, "" if size is None else f"{size:.1f} MB", f"{load:.2f} s", *cells)
    conditions = setting(onnxruntime=onnxruntime.__version__, provider=arguments.provider, model=arguments.model)
    report(table, conditions, results, arguments.json)


if __name__ == "__main__":
    main()
