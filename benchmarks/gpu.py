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
import itertools
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
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import masklet
from masklet.checkpoints.meta import META_SIZES, released_config
from masklet.config import (
    Sam2Config,
    Sam2ImageEncoderConfig,
    Sam2MaskDecoderConfig,
    Sam2MemoryAttentionConfig,
)
from masklet.engine import CudaEngine, EagerEngine, Engine
from masklet.model.prompt_encoder import Prompts
from masklet.model.sam2 import Sam2Model
from masklet.processing import ImageProcessor
from masklet.video.session import VideoSession

REPOSITORY = Path(__file__).resolve().parents[1]
SIZES = dict(zip(("tiny", "small", "base-plus", "large"), META_SIZES, strict=True))
VIDEO_HW = (480, 854)
SECTION_SECONDS = 60
"""Limit of one section."""
PATIENCE = 10
"""A dry run, on a CPU that may be busy with other work, may take so many times as long."""
THEIR_SECONDS = 8.0
"""Limit of one video with transformers."""
POINTS_PER_SIDE = 32
FILLING = 24
"""Frames in which memory fills up and graphs are captured."""


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


# Parity


def relative_error(ours: torch.Tensor, expected: torch.Tensor) -> float:
    return ((ours - expected).abs().max() / expected.abs().max().clamp(min=1e-12)).item()


def iou(a: np.ndarray, b: np.ndarray) -> float:
    """The least IoU of two stacks of masks."""
    both, either = (a & b).sum((-2, -1)), (a | b).sum((-2, -1))
    return float(np.where(either > 0, both / np.maximum(either, 1), 1.0).min())


def function_errors(run: Run, model: Sam2Model, precision: torch.dtype) -> dict[str, float]:
    """The largest error of each function of the cuda engine, relative to the largest value of the eager one."""
    from masklet.model.memory_attention import Memory

    eager, cuda, config = EagerEngine(model), CudaEngine(model, precision), model.config
    side, device = config.image_size, run.device
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(device)

    # Otherwise torch rounds the inputs of float32 convolutions, which hides differences.
    with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        pixels = noise(1, 3, side, side)
        features = eager.encode(pixels)
        errors = {"encode": max(map(relative_error, cuda.encode(pixels), features))}
        cells = features.map_hw[0] * features.map_hw[1]
        clicks = Prompts(torch.rand(1, 5, 2, 2, generator=generator).to(device) * side, torch.ones(1, 5, 2).long())
        clicks = clicks.to(device)
        for objects in (1, 3):
            memory = Memory(
                noise(objects, 7, cells, config.memory_encoder.output_channels).bfloat16(),
                torch.arange(7, device=device).expand(objects, -1).contiguous(),
                noise(objects, 16, config.hidden_size),
                torch.rand(objects, 16, generator=generator).to(device),
            )
            with_gaps = replace(memory, is_empty=torch.arange(23, device=device).expand(objects, -1) % 3 == 1)
            conditioned = eager.read_memory(features, memory)
            logits, scores = noise(objects, side // 4, side // 4), noise(objects, 1)
            calls: dict[str, Callable[[Engine], torch.Tensor]] = {
                "read": lambda e, m=memory: e.read_memory(features, m),
                "read with empty slots": lambda e, m=with_gaps: e.read_memory(features, m),
                "decode": lambda e, c=conditioned: e.decode(features, multimask=True, conditioned=c).logits,
                "write": lambda e, a=logits, b=scores: e.write_memory(features, a, b, binarize=False),
                "clicks": lambda e: e.decode(features, clicks, multimask=False).logits,
            }
            for name, call in calls.items():
                for turn in ("first", "again"):  # the second time from a graph
                    errors[f"{name}, {objects} objects, {turn}"] = relative_error(call(cuda), call(eager))
    return {name: float(f"{error:.2e}") for name, error in errors.items()}


def mask_agreement(run: Run, precision: torch.dtype) -> dict[str, float]:
    """The least IoU of the embedded model's masks: eager in float32 against the cuda engine."""
    from masklet.segmenter import Segmenter

    sam = masklet.load(device="cpu")
    model, processor = sam.model.to(run.device), sam.image_processor
    processor = processor.with_size(128) if run.is_dry else processor
    both = [Segmenter(engine, processor) for engine in (EagerEngine(model), CudaEngine(model, precision))]
    grid = [[(x, y)] for x in range(100, 900, 200) for y in range(75, 600, 150)][:: 8 if run.is_dry else 1]
    masks, videos = [], []
    for one in both:
        masks.append(one.image(REPOSITORY / "examples/images/truck.jpg").predict(grid).masks)
        video = one.video(REPOSITORY / "examples/videos/dog.mp4")
        for number in range(3):
            video.prompt(0, number, box=(300 - 10 * number, 40, 520 + 5 * number, 420))
        frames = list(video.track(end=1 if run.is_dry else 24))
        videos.append(np.stack([result.masks.masks for result in frames]))
    ious = [(a & b).sum() / max((a | b).sum(), 1) for a, b in zip(*masks, strict=True)]
    return {
        "image, least": iou(*masks),
        "image, mean": float(np.mean(ious)),
        "video, least": iou(*videos),
        "video, differing pixels": float(np.mean(videos[0] != videos[1])),
    }


# Speed


@dataclass
class Pair:
    """Networks of the same random weights."""

    model: Sam2Model
    engine: CudaEngine
    theirs: Any  # transformers' Sam2Model
    their_video: Any  # transformers' Sam2VideoModel
    reason: str  # why there are none

    def autocast(self) -> Any:
        """The precision that transformers is measured in."""
        return torch.autocast(self.model.device.type, torch.bfloat16)


def make_pair(run: Run, name: str) -> Pair:
    torch.manual_seed(0)
    with run.device:  # draws the weights of large models quickly
        model = Sam2Model(miniature() if run.is_dry else released_config(*SIZES[name])).eval().requires_grad_(False)
    model.mask_decoder.pred_obj_score_head.proj_out.bias.fill_(10.0)  # so that no object is absent
    theirs = their_video = None
    reason = ""
    try:
        import transformers

        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            theirs = transformers.Sam2Model.from_pretrained(folder).eval().to(run.device)
            their_video = transformers.Sam2VideoModel.from_pretrained(folder).eval().to(run.device)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"[:300]
    model = model.to(run.device)
    return Pair(model, CudaEngine(model, torch.bfloat16), theirs, their_video, reason)


def miniature() -> Sam2Config:
    """A network that a CPU runs in milliseconds."""
    encoder = Sam2ImageEncoderConfig(
        hidden_size=16,
        num_attention_heads=2,
        blocks_per_stage=(1, 1, 2, 1),
        global_attention_blocks=(3,),
        window_size_per_stage=(8, 4, 4, 4),
        window_positional_embedding_background_size=(5, 5),
    )
    return Sam2Config(
        image_size=64,
        image_encoder=encoder,
        mask_decoder=Sam2MaskDecoderConfig(mlp_dim=96),
        memory_attention=Sam2MemoryAttentionConfig(num_layers=1, feed_forward_hidden_size=128),
    )


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


def write_video(path: Path, frames: int) -> None:
    """A noisy image that moves sideways, as H.264."""
    import av

    height, width = VIDEO_HW
    wide = np.random.default_rng(0).integers(0, 255, (height // 8, width // 8 + frames, 3), dtype=np.uint8)
    big = wide.repeat(8, 0).repeat(8, 1)
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(frames):
            image = np.ascontiguousarray(big[:, 4 * number : 4 * number + width])
            file.mux(stream.encode(av.VideoFrame.from_ndarray(image)))
        file.mux(stream.encode())


def video_speed(run: Run, pair: Pair, objects: int, path: Path) -> dict[str, Any]:
    """Frames a second from the file to masks in host memory, once memory is full; and the time to the first frame."""
    start = time.perf_counter()
    video = prompted(pair, objects, path)
    tracking = video.track()
    next(tracking)
    first = time.perf_counter() - start
    times = frame_times(itertools.islice(tracking, FILLING))
    of_thread, of_process = time.thread_time(), time.process_time()
    times += frame_times(tracking)
    of_thread, of_process = time.thread_time() - of_thread, time.process_time() - of_process
    steady = max(len(times) - FILLING, 1)
    result: dict[str, Any] = {"cuda": summary(times), "first_frame_s": round(first, 3)}
    result["calling_thread_ms"] = round(1000 * of_thread / steady, 3)
    result["all_threads_ms"] = round(1000 * of_process / steady, 3)
    result["graphs"] = len(video.engine._runner)
    if pair.their_video is not None:
        with torch.inference_mode(), pair.autocast():
            frames = their_frames(run, pair, points_of(objects), path)
            result["transformers"] = summary(frame_times(frames, THEIR_SECONDS))
        ours, theirs = result["cuda"].get("frames_per_second"), result["transformers"].get("frames_per_second")
        result["ratio"] = round(ours / theirs, 2) if ours and theirs else None
    return result


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


def points_of(objects: int) -> list[list[float]]:
    """A click for each object, the same in every run."""
    generator = torch.Generator().manual_seed(0)
    return (torch.rand(objects, 2, generator=generator) * torch.tensor([VIDEO_HW[1], VIDEO_HW[0]])).tolist()


def prompted(pair: Pair, objects: int, path: Path) -> VideoSession:
    """A session of an engine that has captured nothing yet."""
    from masklet.segmenter import Segmenter

    segmenter = Segmenter(CudaEngine(pair.model, torch.bfloat16), ImageProcessor(pair.model.config.image_size))
    video = segmenter.video(path)
    for number, (x, y) in enumerate(points_of(objects)):
        video.prompt(0, number, points=[(x, y)])
    return video


def frame_times(frames: Iterator[object], most: float = 30.0) -> list[float]:
    """The time of each frame, of as many as there is time for."""
    times: list[float] = []
    start = time.perf_counter()
    for _ in frames:
        times.append(time.perf_counter() - start)
        if sum(times) > most:
            break
        start = time.perf_counter()
    return times


def summary(times: list[float]) -> dict[str, float]:
    """Of the frames after memory was filled and graphs were captured."""
    steady = times[FILLING:] or times[len(times) // 2 :]
    return {
        "frames": len(steady),
        "frames_per_second": round(len(steady) / sum(steady), 2),
        "median_ms": round(1000 * statistics.median(steady), 3),
        "max_ms": round(1000 * max(steady), 3),
        "filling_s": round(sum(times[: len(times) - len(steady)]), 3),
    }


def their_frames(run: Run, pair: Pair, points: list[list[float]], path: Path) -> Iterator[np.ndarray]:
    """Masks of each frame by transformers. Frames are read and resized as ours are, in the same thread as the rest."""
    from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoInferenceSession

    from masklet.video.frames import open_video

    side = pair.model.config.image_size
    processor = ImageProcessor(side)
    session = Sam2VideoInferenceSession(
        video_height=VIDEO_HW[0],
        video_width=VIDEO_HW[1],
        dtype=torch.float32,
        inference_device=run.device,
        inference_state_device=run.device,
        video_storage_device=run.device,
    )
    for number, (x, y) in enumerate(points):
        place = torch.tensor([x * side / VIDEO_HW[1], y * side / VIDEO_HW[0]]).view(1, 1, 1, 2)
        labels = torch.ones(1, 1, 1, dtype=torch.int32)
        prompt = {"point_coords": place.to(run.device), "point_labels": labels.to(run.device)}
        session.add_point_inputs(session.obj_id_to_idx(number), 0, prompt)
        session.obj_with_new_inputs.append(number)
    for frame in open_video(path).frames():
        pixels = processor.frame_values(frame.image).to(run.device)
        masks = pair.their_video(inference_session=session, frame=pixels).pred_masks
        large = torch.nn.functional.interpolate(masks.float(), VIDEO_HW, mode="bilinear", align_corners=False)
        yield (large > 0).cpu().numpy()


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
        work = partial(with_memory, run, partial(video_speed, run, pair, count, path))
        run.section(f"{name}: video, {count} objects", work)
    if is_first:
        run.section("reading", partial(reading_speed, run, pair, path))
        run.section(f"{name}: kernels", partial(kernels, run, pair, max(objects), path))
        run.section("pytest -m gpu", partial(gpu_tests, run))
        for title, precision in {"float32": torch.float32, "bfloat16": torch.bfloat16}.items():
            errors = partial(function_errors, run, pair.model, precision)
            run.section(f"{name}: errors of functions, {title}", errors)
            run.section(f"masks of the embedded model, {title}", partial(mask_agreement, run, precision))
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
            run.section(f"{name}: make", lambda n=name, m=made: m.append(make_pair(run, n)) or m[0].reason)
            if made:
                measure_model(run, name, made.pop(), args.objects, path, is_first=number == 0)
    results = {name: section["result"] for name, section in run.found["sections"].items()}
    failed = [name for name, result in results.items() if isinstance(result, dict) and "error" in result]
    print(f"{len(run.found['sections'])} sections, failed: {failed or 'none'}; {args.json}", flush=True)


if __name__ == "__main__":
    main()
