"""Timing, memory and reports, for all benchmarks."""

from __future__ import annotations

import json
import platform
import re
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import transformers
from rich.console import Console
from rich.table import Table

import masklet
from masklet.checkpoints.meta import META_SIZES
from masklet.engine import has_bfloat16_products

SIZES = dict(zip(("tiny", "small", "base-plus", "large"), META_SIZES, strict=True))
"""The released sizes by name: arguments of ``released_config``."""


def seconds(work: Callable[[], object]) -> float:
    """Time of a function, on a GPU until the device has finished."""
    start = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def peak_mb() -> float:
    """Peak resident memory of this process, in 10**6 bytes."""
    status = Path("/proc/self/status")
    if status.exists() and (peak := re.search(r"VmHWM:\s+(\d+) kB", status.read_text())):
        return int(peak[1]) * 1024 / 1e6
    # This may include the memory of the parent process at the time of the fork.
    peak_rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak_rss * (1 if sys.platform == "darwin" else 1024) / 1e6  # bytes there, kilobytes elsewhere


def device_name(device: str = "cpu") -> str:
    """The product name of the GPU or the processor."""
    if device != "cpu":
        return torch.cuda.get_device_name()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists() and (name := re.search(r"model name\s*: (.+)", cpuinfo.read_text())):
        return name[1]
    return platform.processor() or platform.machine()


BF16 = "bfloat16 autocast"
OURS, OURS_EXACT = "masklet", "masklet float32"
THEIRS, THEIRS_BF16 = "transformers float32", f"transformers {BF16}"
REFERENCES = (THEIRS, THEIRS_BF16, OURS_EXACT)
"""Sides that all others of a work are compared with."""

Seconds = dict[str, float]
"""``wall`` and ``cpu`` seconds of one call; on a busy machine the latter hardly depend on other processes."""


def both_clocks(work: Callable[[], object]) -> Seconds:
    """Time of a function by both clocks."""
    cpu = time.process_time()
    wall = seconds(work)
    return {"wall": wall, "cpu": time.process_time() - cpu}


def take_turns(
    sides: Mapping[str, Callable[[], object]], rounds: int, *, warm_up: bool = True
) -> dict[str, list[Seconds]]:
    """Every side once unmeasured, then all of them in turn, so that changes of the machine's speed affect all."""
    if warm_up:
        for work in sides.values():
            work()
    times: dict[str, list[Seconds]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, work in sides.items():
            times[name].append(both_clocks(work))
    return times


def rows_of(times: Mapping[str, list[Seconds]], **labels: object) -> list[dict[str, object]]:
    """A row for each side: medians, and how many times as fast as each reference it is, by either clock.

    A ratio is the median of the rounds' own ratios.
    """
    rows = []
    for name, own in times.items():
        row: dict[str, object] = {**labels, "side": name, "rounds": len(own)}
        for clock in ("wall", "cpu"):
            row[f"{clock}_s"] = statistics.median(one[clock] for one in own)
            row[f"{clock}_speed_up"] = {
                reference: statistics.median(b[clock] / a[clock] for a, b in zip(own, times[reference], strict=True))
                for reference in REFERENCES
                if reference in times and reference != name
            }
        rows.append(row)
    return rows


def table_of(rows: list[dict[str, object]], labels: tuple[str, ...]) -> Table:
    """Rows of ``rows_of`` as a table; speed-ups are by wall time, and in brackets by CPU time."""
    table = Table(*labels, "side", "wall (s)", "CPU (s)", *(f"× {reference}" for reference in REFERENCES))
    for row in rows:
        speed_ups = (
            f"{row['wall_speed_up'][name]:.2f} ({row['cpu_speed_up'][name]:.2f})"
            if name in row["wall_speed_up"]
            else ""
            for name in REFERENCES
        )
        seconds_of = (f"{row[f'{clock}_s']:.3f}" for clock in ("wall", "cpu"))
        table.add_row(*(str(row[label]) for label in labels), str(row["side"]), *seconds_of, *speed_ups)
    return table


def setting(device: str = "cpu", **more: object) -> dict[str, object]:
    """What a measurement depends on: the machine, the commit and the versions."""
    git = subprocess.run(
        ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"], capture_output=True, text=True
    )
    return {
        "device": device_name(device),
        "bfloat16 products": has_bfloat16_products(),
        "threads": torch.get_num_threads(),
        "commit": git.stdout.strip(),
        "masklet": masklet.__version__,
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        **more,
    }


def autocast(work: Callable[[], object], device: str = "cpu") -> Callable[[], object]:
    """The same work under bfloat16 autocast."""

    def run() -> object:
        with torch.autocast(device, torch.bfloat16):
            return work()

    return run


def report(table: Table, conditions: Mapping[str, object], results: object, path: Path | None) -> None:
    """Print a table under its setting, and write the setting and the results as JSON if there is a path."""
    table.title = ", ".join(f"{name} {value}" for name, value in conditions.items())
    Console(width=150).print(table)
    if path:
        save(conditions, results, path)


def save(conditions: Mapping[str, object], results: object, path: Path) -> None:
    """Write the setting and the results as JSON."""
    path.write_text(json.dumps({"setting": conditions, "results": results}, indent=2))
