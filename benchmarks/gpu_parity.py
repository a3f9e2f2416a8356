"""The masks of the cuda engine against those of the eager one: for ``gpu.py``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

import masklet
from masklet.engine import CudaEngine, EagerEngine, Engine
from masklet.model.prompt_encoder import Prompts
from masklet.model.sam2 import Sam2Model

REPOSITORY = Path(__file__).resolve().parents[1]


def relative_error(ours: torch.Tensor, expected: torch.Tensor) -> float:
    return ((ours - expected).abs().max() / expected.abs().max().clamp(min=1e-12)).item()


def iou(a: np.ndarray, b: np.ndarray) -> float:
    """The least IoU of two stacks of masks."""
    both, either = (a & b).sum((-2, -1)), (a | b).sum((-2, -1))
    return float(np.where(either > 0, both / np.maximum(either, 1), 1.0).min())


def function_errors(device: torch.device, model: Sam2Model, precision: torch.dtype) -> dict[str, float]:
    """The largest error of each function of the cuda engine, relative to the largest value of the eager one."""
    from masklet.model.memory_attention import Memory

    eager, cuda, config = EagerEngine(model), CudaEngine(model, precision), model.config
    side = config.image_size
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


def mask_agreement(device: torch.device, precision: torch.dtype, *, is_dry: bool) -> dict[str, float]:
    """The least IoU of the embedded model's masks: eager in float32 against the cuda engine."""
    from masklet.segmenter import Segmenter

    sam = masklet.load(device="cpu")
    model, processor = sam.model.to(device), sam.image_processor
    processor = processor.with_size(128) if is_dry else processor
    both = [Segmenter(engine, processor) for engine in (EagerEngine(model), CudaEngine(model, precision))]
    grid = [[(x, y)] for x in range(100, 900, 200) for y in range(75, 600, 150)][:: 8 if is_dry else 1]
    masks, videos = [], []
    for one in both:
        masks.append(one.image(REPOSITORY / "examples/images/truck.jpg").predict(grid).masks)
        video = one.video(REPOSITORY / "examples/videos/dog.mp4")
        for number in range(3):
            video.prompt(0, number, box=(300 - 10 * number, 40, 520 + 5 * number, 420))
        frames = list(video.track(end=1 if is_dry else 24))
        videos.append(np.stack([result.masks.masks for result in frames]))
    ious = [(a & b).sum() / max((a | b).sum(), 1) for a, b in zip(*masks, strict=True)]
    return {
        "image, least": iou(*masks),
        "image, mean": float(np.mean(ious)),
        "video, least": iou(*videos),
        "video, differing pixels": float(np.mean(videos[0] != videos[1])),
    }
