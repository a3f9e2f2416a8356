"""Everything worth knowing about a GPU in one run of at most five minutes: speed, parity, memory, and `pytest -m gpu`.

    python benchmarks/gpu.py [--json gpu.json] [--models tiny base-plus large] [--objects 1 4 16] [--seconds 280]

It needs torch and masklet's own dependencies; transformers is measured beside if it is there. Sections run one after
another, each with a limit of time, and videos come first. A section that fails leaves its error in the file, which is
written after each.

Weights are random but for parity, where the embedded model has real masks to lose. Times are medians after a warm-up,
with the device synchronised; transformers runs under autocast to bfloat16. `--dry-run` goes through all of it in
miniature, on a CPU too.
"""

from __future__ import annotations

import argparse
import contextlib
import cProfile
import io
import json
import os
import pstats
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu_networks import SIZES, Pair, make_pair
from gpu_parity import function_errors, mask_agreement
from gpu_video import FILLING, prompted, video_speed, write_video

import masklet
from masklet.engine import EagerEngine
from masklet.model.prompt_encoder import Prompts
from masklet.processing import ImageProcessor

REPOSITORY = Path(__file__).resolve().parents[1]
SECTION_SECONDS = 60
"""Limit of one section."""
PATIENCE = 10
"""A dry run, on a CPU that may be busy with other work, may take so many times as long."""
POINTS_PER_SIDE = 32


@dataclass
class Run:
    """One run: its settings, its deadline, and the file with what was found."""

    path: Path
    device: torch.device
    deadline: float
    is_dry: bool
    found: dict[str, Any] = field(default_factory=dict)

    @property
    def remaining(self) -> float:
        """Seconds until the end."""
        return self.deadline - time.monotonic()

    def section(self, name: str, work: Callable[[], Any]) -> None:
        """Run a section, whatever happens in it, and write the file."""
        start = time.monotonic()
        try:
            with limited(min(SECTION_SECONDS * (PATIENCE if self.is_dry else 1), self.remaining)):
                result = work()
        except Exception as error:
            result = {"error": f"{type(error).__name__}: {error}"[:500], "trace": traceback.format_exc()[-3000:]}
        took = round(time.monotonic() - start, 2)
        self.found["sections"][name] = {"seconds": took, "result": result}
        print(f"{name}: {took} s {json.dumps(result)[:400]}", flush=True)
        self.write()
        if self.device.type == "cuda":
            with contextlib.suppress(RuntimeError):  # after a fatal error of the device
                torch.cuda.empty_cache()

    def write(self) -> None:
        """Write the file whole, or not at all."""
        unfinished = self.path.with_suffix(".part")
        unfinished.write_text(json.dumps(self.found, indent=1))
        os.replace(unfinished, self.path)


@contextlib.contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise a TimeoutError in the block after so many seconds."""
    if seconds <= 0:
        raise TimeoutError("no time is left")

    def stop(number: int, frame: object) -> None:
        raise TimeoutError(f"it took longer than {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def milliseconds(run: Run, work: Callable[[], object], repeats: int = 20, most: float = 3.0) -> dict[str, float]:
    """Median, least and most of a function's time; the first call, which may capture graphs, apart."""
    start = time.perf_counter()
    work()
    synchronise(run.device)
    first = time.perf_counter() - start
    for _ in range(0 if run.is_dry else 2):
        work()
    synchronise(run.device)
    times: list[float] = []
    begun = time.perf_counter()
    while len(times) < (1 if run.is_dry else repeats) and (not times or time.perf_counter() - begun < most):
        start = time.perf_counter()
        work()
        synchronise(run.device)
        times.append(time.perf_counter() - start)
    values = {"median_ms": statistics.median(times), "min_ms": min(times), "max_ms": max(times), "first_ms": first}
    return {**{name: round(1000 * value, 3) for name, value in values.items()}, "repeats": len(times)}


def with_memory(run: Run, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The result of a function, with the peak memory of the device."""
    if run.device.type != "cuda":
        return work()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    result = work()
    peaks = {"allocated": torch.cuda.max_memory_allocated(), "reserved": torch.cuda.max_memory_reserved()}
    return {**result, "peak_mb": {name: round(value / 1e6) for name, value in peaks.items()}}


def setting(run: Run) -> dict[str, Any]:
    versions = {"masklet": masklet.__version__, "torch": torch.__version__, "python": sys.version.split()[0]}
    with contextlib.suppress(ImportError):
        import transformers

        versions["transformers"] = transformers.__version__
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=REPOSITORY, capture_output=True, text=True, timeout=5)
        versions["commit"] = commit.stdout.strip()
    device: dict[str, Any] = {"device": str(run.device), "processors": os.cpu_count()}
    if run.device.type == "cuda":
        properties = torch.cuda.get_device_properties(run.device)
        device |= {"name": properties.name, "memory_mb": round(properties.total_memory / 1e6)}
        device |= {"capability": f"{properties.major}.{properties.minor}", "cuda": torch.version.cuda}
    return {**versions, **device, "dry_run": run.is_dry}


def image_speed(run: Run, pair: Pair) -> dict[str, Any]:
    """Encode, one click and 64 clicks: the cuda engine, the eager one in float32, and transformers."""
    side = pair.model.config.image_size
    pixels = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0)).to(run.device)
    eager, results = EagerEngine(pair.model), {}
    with torch.inference_mode():
        results["encode"] = {
            "cuda": milliseconds(run, lambda: pair.engine.encode(pixels)),
            "eager float32": milliseconds(run, lambda: eager.encode(pixels), 5, 1.0),
        }
        features = pair.engine.encode(pixels)
        embeddings = None
        if pair.theirs is not None:
            with pair.autocast():
                results["encode"]["transformers"] = milliseconds(run, lambda: pair.theirs.get_image_embeddings(pixels))
                embeddings = pair.theirs.get_image_embeddings(pixels)
        for objects in (1, 64):
            points = torch.rand(1, objects, 1, 2, generator=torch.Generator().manual_seed(1)).to(run.device) * side
            labels = torch.ones(1, objects, 1, dtype=torch.int64, device=run.device)
            prompts = Prompts(points, labels)
            row = {
                "cuda": milliseconds(run, lambda p=prompts: pair.engine.decode(features, p, multimask=True)),
                "eager float32": milliseconds(run, lambda p=prompts: eager.decode(features, p, multimask=True), 5, 1.0),
            }
            if embeddings is not None:
                with pair.autocast():
                    row["transformers"] = milliseconds(
                        run,
                        lambda p=points, q=labels: pair.theirs(
                            image_embeddings=embeddings, input_points=p, input_labels=q, multimask_output=True
                        ),
                    )
            results[f"{objects} click{'s' * (objects > 1)}"] = row
    return results


def everything_speed(run: Run, pair: Pair) -> dict[str, Any]:
    """All masks of an image beyond the encode, and transformers' decoding of the same points alone."""
    from masklet.segmenter import Segmenter

    side, points = pair.model.config.image_size, 4 if run.is_dry else POINTS_PER_SIDE
    image = np.random.default_rng(0).integers(0, 255, (side, side, 3), dtype=np.uint8)
    sam = Segmenter(pair.engine, ImageProcessor(side))
    result: dict[str, Any] = {"points": points**2}
    # Thresholds of random weights decide how many masks remain: few, and as many as a photograph has.
    for name, threshold in (("few masks", 0.99), ("many masks", 0.0)):
        options = {"points_per_side": points, "iou_threshold": threshold, "stability_threshold": threshold}
        result[name] = milliseconds(run, lambda o=options: sam.everything(image, **o), 5, 5.0)
    result["encode with reading"] = milliseconds(run, lambda: sam.image(image), 5, 2.0)
    if pair.theirs is not None:
        result["transformers, decoding alone"] = milliseconds(run, partial(decode_points, pair, points**2), 2, 3.0)
    return result


@torch.inference_mode()
def decode_points(pair: Pair, count: int) -> None:
    side, device = pair.model.config.image_size, pair.model.device
    with pair.autocast():
        embeddings = pair.theirs.get_image_embeddings(torch.zeros(1, 3, side, side, device=device))
        for _ in range(0, count, 64):
            points = torch.full((1, min(count, 64), 1, 2), side / 2, device=device)
            labels = torch.ones(points.shape[:3], dtype=torch.int64, device=device)
            pair.theirs(image_embeddings=embeddings, input_points=points, input_labels=labels, multimask_output=True)


def kernels(run: Run, pair: Pair, most_objects: int, path: Path) -> dict[str, Any]:
    """Where a GPU's time goes, and that of the host's threads in a video: for the model that is measured first."""
    from masklet.segmenter import Segmenter

    side = pair.model.config.image_size
    sam = Segmenter(pair.engine, ImageProcessor(side))
    image = np.random.default_rng(0).integers(0, 255, (side, side, 3), dtype=np.uint8)
    points = torch.rand(1, 64, 1, 2, generator=torch.Generator().manual_seed(1)).to(run.device) * side
    prompts = Prompts(points, torch.ones(1, 64, 1, dtype=torch.int64, device=run.device))
    with torch.inference_mode():
        features = pair.engine.encode(torch.zeros(1, 3, side, side, device=run.device))
        found = {"64 clicks": kernel_times(run, lambda: pair.engine.decode(features, prompts, multimask=True))}
    options = {"points_per_side": 4 if run.is_dry else POINTS_PER_SIDE, "iou_threshold": 0.0}
    found["everything"] = kernel_times(run, lambda: sam.everything(image, **options), 2)
    for count in (most_objects, 1):
        tracking = prompted(pair, count, path).track()
        for _ in range(2 if run.is_dry else FILLING + 6):
            next(tracking)
        found[f"video frame, {count} objects"] = kernel_times(run, partial(next, tracking))
    calls = cProfile.Profile()
    calls.enable()
    for _ in range(1 if run.is_dry else 10):
        next(tracking)
    calls.disable()
    pstats.Stats(calls, stream=(text := io.StringIO())).sort_stats("tottime").print_stats(25)
    found["calls of video frames"] = text.getvalue().splitlines()[-30:]
    return found


def kernel_times(run: Run, work: Callable[[], object], repeats: int = 3) -> dict[str, Any]:
    """Milliseconds of all kernels and of the slowest ones, of one run of a function, beside its time by the clock."""
    clock = milliseconds(run, work, repeats)["median_ms"]
    with torch.profiler.profile() as profiler:
        for _ in range(repeats):
            work()
        synchronise(run.device)
    times: dict[str, list[float]] = {}
    for event in profiler.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            times.setdefault(event.name[:100], []).append(event.device_time / 1000 / repeats)
    slowest = sorted(times.items(), key=lambda item: -sum(item[1]))[:16]
    return {
        "clock_ms": clock,
        "kernels_ms": round(sum(map(sum, times.values())), 3),
        "launches": round(sum(map(len, times.values())) / repeats),
        "slowest": [[round(sum(each), 3), round(len(each) / repeats), name] for name, each in slowest],
    }


def reading_speed(run: Run, pair: Pair, path: Path) -> dict[str, float]:
    """Frames a second that the reading thread alone can decode and put into pinned memory, and milliseconds of a copy
    to the device with resizing.
    """
    from masklet.video.frames import open_video

    start = time.perf_counter()
    count = sum(frame.staged is not None for frame in open_video(path).frames(stage=pair.engine.stage))
    took = time.perf_counter() - start
    processor = ImageProcessor(pair.model.config.image_size)
    staged = pair.engine.stage(next(open_video(path).frames()).image)
    encode = milliseconds(run, lambda: pair.engine.encode_frame(staged, processor.config), 10, 2.0)
    return {"frames_per_second": round(count / took, 1), "copy_resize_encode_ms": encode["median_ms"]}


def gpu_tests(run: Run) -> dict[str, Any]:
    """`pytest -m gpu`, or what it would run."""
    arguments = ["-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider", "tests/engine/test_cuda_gpu.py"]
    if run.is_dry:
        arguments.append("--collect-only")
    done = subprocess.run([sys.executable, *arguments], cwd=REPOSITORY, capture_output=True, text=True)
    return {"exit status": done.returncode, "tail": (done.stdout + done.stderr)[-1500:]}


def measure_model(run: Run, name: str, pair: Pair, objects: list[int], path: Path, *, is_first: bool) -> None:
    """All sections of one model: its videos first, since the time may end before the rest."""
    for count in objects:
        work = partial(with_memory, run, partial(video_speed, pair, count, path))
        run.section(f"{name}: video, {count} objects", work)
    if is_first:
        run.section("reading", partial(reading_speed, run, pair, path))
        run.section(f"{name}: kernels", partial(kernels, run, pair, max(objects), path))
        run.section("pytest -m gpu", partial(gpu_tests, run))
        for title, precision in {"float32": torch.float32, "bfloat16": torch.bfloat16}.items():
            errors = partial(function_errors, run.device, pair.model, precision)
            run.section(f"{name}: errors of functions, {title}", errors)
            run.section(
                f"masks of the embedded model, {title}",
                partial(mask_agreement, run.device, precision, is_dry=run.is_dry),
            )
    run.section(f"{name}: images", partial(with_memory, run, partial(image_speed, run, pair)))
    run.section(f"{name}: everything", partial(with_memory, run, partial(everything_speed, run, pair)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(SIZES), default=["tiny", "base-plus", "large"])
    parser.add_argument("--objects", nargs="+", type=int, default=[1, 4, 16])
    parser.add_argument("--frames", type=int, default=120)
    parser.add_argument("--seconds", type=float, default=280.0, help="limit of the whole run")
    parser.add_argument("--json", type=Path, default=Path("gpu.json"))
    parser.add_argument("--dry-run", action="store_true", help="a network in miniature, on any device")
    args = parser.parse_args()
    if not (torch.cuda.is_available() or args.dry_run):
        parser.error("there is no CUDA device: expected one, or --dry-run")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    seconds = args.seconds * (PATIENCE if args.dry_run else 1)
    run = Run(args.json, device, time.monotonic() + seconds, args.dry_run, {"sections": {}})
    run.found["setting"] = setting(run)
    run.write()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "noise.mp4"
        run.section("write a video", lambda: write_video(path, 16 if args.dry_run else args.frames))
        for number, name in enumerate(args.models):
            made: list[Pair] = []
            run.section(
                f"{name}: make",
                lambda n=name, m=made: m.append(make_pair(run.device, n, is_dry=args.dry_run)) or m[0].reason,
            )
            if made:
                measure_model(run, name, made.pop(), args.objects, path, is_first=number == 0)
    results = {name: section["result"] for name, section in run.found["sections"].items()}
    failed = [name for name, result in results.items() if isinstance(result, dict) and "error" in result]
    print(f"{len(run.found['sections'])} sections, failed: {failed or 'none'}; {args.json}", flush=True)


if __name__ == "__main__":
    main()
