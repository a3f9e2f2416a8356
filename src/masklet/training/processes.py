"""What the processes of a run tell each other, so that none waits for one that has stopped."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object

from masklet.errors import DataError, ImageError, VideoError


def gathered(accelerator: Accelerator, values: Sequence[Any]) -> list[Any]:
    """The values of all processes, in their order."""
    return gather_object(list(values)) if accelerator.num_processes > 1 else list(values)


@contextmanager
def stopping_together(accelerator: Accelerator) -> Iterator[None]:
    """Data that one process cannot read end the block in all of them.

    Raises:
        DataError, ImageError, VideoError: What went wrong here; or, as DataError, what did so in another process.
    """
    error: DataError | ImageError | VideoError | None = None
    try:
        yield
    except (DataError, ImageError, VideoError) as here:
        error = here
    failures = [text for text in gathered(accelerator, [error and str(error)]) if text]
    if error is not None:
        raise error
    if failures:
        raise DataError(failures[0])
