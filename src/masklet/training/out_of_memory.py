"""Recognises that memory ran out, and suggests what to change."""

from __future__ import annotations

import torch

from masklet.training.config import TrainingConfig


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the CPU or a GPU has too little memory."""
    return isinstance(error, MemoryError | torch.cuda.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def explanation(config: TrainingConfig, step: int) -> str:
    """The message for a run that ran out of memory after ``step`` steps: settings with which it may be resumed."""
    batch_size = config.stage_at(min(step, config.steps - 1)).batch_size
    more = range(config.micro_batches + 1, batch_size + 1)
    following = next((n for n in more if all(stage.batch_size % n == 0 for stage in config.stages)), None)
    changes = [] if config.checkpoint_activations else ["checkpoint_activations: true"]
    if following is not None:
        changes.append(f"micro_batches: {following}")
    if config.precision == "float32":
        changes.append("precision: auto")
    return (
        f"step {step + 1} ran out of memory. Set {', or '.join(changes) or 'a smaller batch_size'}, then start the run "
        "again to resume it. If that is not enough, start a new run with fewer objects, rounds or frames"
    )
