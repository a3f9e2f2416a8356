"""Engines: how a network runs. ``eager`` calls the model as it is; ``cpu`` is the same arithmetic, arranged for caches;
``cuda`` has few operators, mixed precision and CUDA graphs.

Everything that segments holds an ``Engine``, never a bare model; training holds the model.
"""

from __future__ import annotations

import torch

from masklet.engine.base import ConfidentMasks, Engine
from masklet.engine.cpu import CpuEngine
from masklet.engine.cpu.products import has_bfloat16_products
from masklet.engine.cuda import CudaEngine, default_precision
from masklet.engine.eager import EagerEngine
from masklet.errors import ConfigError
from masklet.model.sam2 import Sam2Model

__all__ = [
    "ENGINES",
    "ConfidentMasks",
    "CpuEngine",
    "CudaEngine",
    "EagerEngine",
    "Engine",
    "check_engine",
    "has_bfloat16_products",
    "make_engine",
]

ENGINES = ("auto", "eager", "cpu", "cuda")


def make_engine(model: Sam2Model, name: str = "auto", *, mixed: bool = False) -> Engine:
    """An engine for a model.

    Args:
        model: On the device and in the precision it is to run in.
        name: ``"eager"`` runs anywhere; ``"cpu"`` needs float32 weights on a CPU and is faster there; ``"cuda"`` needs
            a CUDA device; ``"auto"`` is ``"cpu"`` where it runs, ``"cuda"`` for a SAM 2 on a CUDA device, else
            ``"eager"``.
        mixed: Whether an engine may multiply matrices in bfloat16 where the device is faster at that. Weights, norms,
            residuals, positions and results stay in float32. The eager engine always uses the model's own precision.

    Raises:
        ConfigError: There is no such engine, or it cannot run this model.
    """
    check_engine(name)
    runs_on_cpu_engine = model.device.type == "cpu" and model.dtype == torch.float32
    if name == "cpu" and not runs_on_cpu_engine:
        raise ConfigError(
            f"engine 'cpu' cannot run a model in {model.dtype} on {model.device}: expected float32 weights on a CPU. "
            "Use engine='auto', or load with device='cpu' and dtype='auto' or 'float32'"
        )
    if name == "cuda" and model.device.type != "cuda":
        raise ConfigError(
            f"engine 'cuda' cannot run a model on {model.device}: expected a CUDA device. "
            "Use engine='auto', or load with device='cuda'"
        )
    # EdgeTAM was not measured on a GPU yet, so "auto" keeps to the plain network there.
    if name == "cuda" or (name == "auto" and model.device.type == "cuda" and not model.config.is_edgetam):
        return CudaEngine(model, default_precision(model.device) if mixed else torch.float32)
    if name == "eager" or not runs_on_cpu_engine:
        return EagerEngine(model)
    return CpuEngine(model, torch.bfloat16 if mixed and has_bfloat16_products() else torch.float32)


def check_engine(name: str) -> None:
    """Raises a ConfigError unless there is an engine of this name."""
    if name not in ENGINES:
        raise ConfigError(f"engine is {name!r}: expected one of {', '.join(ENGINES)}")
