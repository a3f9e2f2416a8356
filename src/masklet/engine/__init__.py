"""Engines: how a network runs. ``eager`` calls the model as it is; ``cpu`` is the same arithmetic, arranged for caches.

Everything that segments holds an ``Engine``, never a bare model; training holds the model.
"""

from __future__ import annotations

import torch

from masklet.engine.base import ConfidentMasks, Engine
from masklet.engine.cpu import CpuEngine
from masklet.engine.eager import EagerEngine
from masklet.errors import ConfigError
from masklet.model.sam2 import Sam2Model

__all__ = ["ENGINES", "ConfidentMasks", "CpuEngine", "EagerEngine", "Engine", "check_engine", "make_engine"]

ENGINES = ("auto", "eager", "cpu")


def make_engine(model: Sam2Model, name: str = "auto") -> Engine:
    """An engine for a model.

    Args:
        model: On the device and in the precision it is to run in.
        name: ``"eager"`` runs anywhere; ``"cpu"`` needs float32 weights on a CPU and is faster there; ``"auto"`` is
            ``"cpu"`` where that runs, and else ``"eager"``.

    Raises:
        ConfigError: There is no such engine, or it cannot run this model.
    """
    check_engine(name)
    runs_on_cpu_engine = model.device.type == "cpu" and model.dtype == torch.float32
    if name == "cpu" and not runs_on_cpu_engine:
        raise ConfigError(
            f"engine 'cpu' cannot run a model in {model.dtype} on {model.device}: expected float32 weights on a CPU. "
            "Use engine='auto', or load with device='cpu' and dtype='float32'"
        )
    return EagerEngine(model) if name == "eager" or not runs_on_cpu_engine else CpuEngine(model)


def check_engine(name: str) -> None:
    """Raises a ConfigError unless there is an engine of this name."""
    if name not in ENGINES:
        raise ConfigError(f"engine is {name!r}: expected one of {', '.join(ENGINES)}")
