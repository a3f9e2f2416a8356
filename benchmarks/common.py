"""Timing, memory and reports, for all benchmarks."""

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


def report(table: Table, setting: Mapping[str, object], results: object, path: Path | None) -> None:
    """Print a table under its setting, and write the setting and the results as JSON if there is a path."""
    table.title = ", ".join(f"{name} {value}" for name, value in setting.items())
    Console(width=120).print(table)
    if path:
        path.write_text(json.dumps({"setting": setting, "results": results}, indent=2))
