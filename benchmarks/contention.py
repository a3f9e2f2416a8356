"""The encode beside other processes that keep the processor busy, and from several threads at once.

    python benchmarks/contention.py [--model tiny] [--busy 2] [--threads 1 2 4] [--rounds 3] [--json contention.json]

First alone, then beside ``--busy`` processes that multiply matrices: masklet and transformers take turns, and masklet's
advantage under load is compared with that alone. Then one model encodes from several threads at once; throughput is
images per second of all threads together.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import torch
import transformers
from common import OURS, OURS_EXACT, THEIRS, report, setting, take_turns
from image import Models
from rich.table import Table

BUSY = "import torch; torch.set_num_threads(1); x = torch.randn(500, 500)\nwhile True: x @ x"


@contextmanager
def load(processes: int) -> Iterator[None]:
    """Processes that keep a core busy each."""
    running = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(processes)]
    try:
        time.sleep(5 if running else 0)  # until they have imported torch
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def throughput(encode: Callable[[], object], threads: int, rounds: int) -> float:
    """Images per second, of ``rounds`` images in each of several threads."""

    @torch.inference_mode()
    def run(_: int) -> None:
        for _ in range(rounds):
            encode()

    with ThreadPoolExecutor(threads) as pool:
        start = time.perf_counter()
        list(pool.map(run, range(threads)))
        return threads * rounds / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--busy", type=int, default=2)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    sides = {name: work for name, work in Models(args.model, "cpu").encode().items() if "compat" not in name}
    rows: list[dict[str, object]] = []
    for processes in (0, args.busy):
        with load(processes), torch.inference_mode():
            times = take_turns(sides, args.rounds)
        for name, own in times.items():
            wall = statistics.median(one["wall"] for one in own)
            ratios = [b["wall"] / a["wall"] for a, b in zip(own, times[THEIRS], strict=True)]
            rows.append({"busy": processes, "side": name, "wall_s": wall, "speed_up": statistics.median(ratios)})
    for name in (OURS, OURS_EXACT):
        for threads in args.threads:
            found = throughput(sides[name], threads, args.rounds)
            rows.append({"threads": threads, "side": name, "images_per_s": found})
    table = Table("busy processes", "threads", "side", "wall (s)", "images/s", f"× {THEIRS}")
    for row in rows:
        numbers = (f"{row[key]:.2f}" if key in row else "" for key in ("wall_s", "images_per_s", "speed_up"))
        table.add_row(str(row.get("busy", 0)), str(row.get("threads", 1)), str(row["side"]), *numbers)
    report(table, setting(model=args.model, resolution=1024), rows, args.json)


if __name__ == "__main__":
    main()
