"""What the benchmarks share."""

from __future__ import annotations

import json
import platform
import re
import resource
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from masklet.checkpoints.meta import META_SIZES

SIZES = dict(zip(("tiny", "small", "base-plus", "large"), META_SIZES, strict=True))
"""Released sizes by the names that benchmarks take: what ``released_config`` is given."""


def seconds(work: Callable[[], object]) -> float:
    """What it takes, on a GPU until it is done there."""
    start = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def peak_mb() -> float:
    """The most memory this process has had resident, in 10**6 bytes."""
    status = Path("/proc/self/status")
    if status.exists() and (peak := re.search(r"VmHWM:\s+(\d+) kB", status.read_text())):
        return int(peak[1]) * 1024 / 1e6
    # This may count what the parent took when it started us.
    peak_rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak_rss * (1 if sys.platform == "darwin" else 1024) / 1e6  # bytes there, kilobytes elsewhere


def device_name(device: str = "cpu") -> str:
    """What the maker calls the GPU or the processor."""
    if device != "cpu":
        return torch.cuda.get_device_name()
    told = Path("/proc/cpuinfo")
    if told.exists() and (name := re.search(r"model name\s*: (.+)", told.read_text())):
        return name[1]
    return platform.processor() or platform.machine()


def report(table: Table, setting: Mapping[str, object], results: object, path: Path | None) -> None:
    """Print the table under what it was measured in, and write both as JSON where that is asked for."""
    table.title = ", ".join(f"{name} {value}" for name, value in setting.items())
    Console(width=120).print(table)
    if path:
        path.write_text(json.dumps({"setting": setting, "results": results}, indent=2))
