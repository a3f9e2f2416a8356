"""Communication between the processes of a run, so that none waits for one that has failed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object

from masklet.errors import DataError, ImageError, VideoError


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
