"""The processes of a run: they share its batches, and fail together, so that none waits for one that has failed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, gather_object

from masklet.errors import ConfigError, DataError, DeviceError, ImageError, VideoError
from masklet.training.config import TrainingConfig


def gather(accelerator: Accelerator, values: Sequence[Any]) -> list[Any]:
    """The values of all processes, in the order of their ranks."""
    return gather_object(list(values)) if accelerator.num_processes > 1 else list(values)


@contextmanager
def fail_together(accelerator: Accelerator) -> Iterator[None]:
    """Raises in every process if one of them cannot read its data inside the block.

    Raises:
        DataError, ImageError, VideoError: The error of this process; or, as a DataError, that of another process.
    """
    error: DataError | ImageError | VideoError | None = None
    try:
        yield
    except (DataError, ImageError, VideoError) as own_error:
        error = own_error
    failures = [message for message in gather(accelerator, [error and str(error)]) if message]
    if error is not None:
        raise error
    if failures:
        raise DataError(failures[0])


def uses_all_weights(config: TrainingConfig) -> bool:
    """Whether every step uses all weights that it trains, so that processes need not search for unused ones.

    A step on images does not use the memory, and one on clips does not use all other weights.
    """
    return config.lora is None and all(stage.frames == 1 and stage.train == "decoder" for stage in config.stages)


def shared_among(config: TrainingConfig, processes: int) -> TrainingConfig:
    """The configuration with as many micro-batches as the processes need: the next multiple of their number.

    Raises:
        ConfigError: A batch has too few images or clips.
    """
    micro_batches = -(-config.micro_batches // processes) * processes
    sizes = [size for stage in config.stages for size in stage.batch_sizes]
    while any(size % micro_batches for size in sizes):
        micro_batches += processes
        if micro_batches > min(sizes):
            raise ConfigError(
                f"batches of {', '.join(map(str, sorted(set(sizes))))} cannot be shared equally among {processes} "
                f"processes: expected a batch_size that is a multiple of {processes} in every stage"
            )
    return replace(config, micro_batches=micro_batches)


def make_accelerator(
    device: str, trackers: Sequence[str] = (), folder: Path | None = None, *, find_unused: bool = True
) -> Accelerator:
    """An accelerator on the CPU if ``device`` is ``cpu``, else on the GPU if there is one. It finds other processes.

    Args:
        device: ``auto`` or ``cpu``.
        trackers: Experiment trackers to log to.
        folder: Folder for the trackers' files.
        find_unused: Whether processes search for weights that a step does not use, see ``uses_all_weights``.

    Raises:
        DeviceError: The device is neither ``auto`` nor ``cpu``.
    """
    if device not in ("auto", "cpu"):
        raise DeviceError(f"device {device!r}: expected auto or cpu; to choose a GPU, set CUDA_VISIBLE_DEVICES")
    handler = DistributedDataParallelKwargs(find_unused_parameters=find_unused)
    return Accelerator(
        cpu=device == "cpu",
        mixed_precision="no",  # the configuration of the run decides, not accelerate's settings
        kwargs_handlers=[handler],
        log_with=list(trackers) or None,
        project_dir=folder,
    )
