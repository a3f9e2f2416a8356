"""What a part found, and which errors are clear."""

from __future__ import annotations

import linecache
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import masklet
from masklet.errors import MaskletError

PACKAGE = str(Path(masklet.__file__).parent)
SHORTEST_MESSAGE = 20


@dataclass
class Outcome:
    """The figures of a part, and its failures, each with how to repeat it."""

    figures: dict[str, Any] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)


def is_clear(error: BaseException) -> bool:
    """Whether an error was raised on purpose: one of masklet's, or a built-in that masklet raises with a message."""
    if isinstance(error, MaskletError):
        return len(str(error)) >= SHORTEST_MESSAGE
    last = traceback.extract_tb(error.__traceback__)[-1]
    is_ours = last.filename.startswith(PACKAGE) and "raise " in linecache.getline(last.filename, last.lineno or 0)
    kinds = (ValueError, TypeError, LookupError, RuntimeError)  # the last two as the drop-in classes promise
    return is_ours and isinstance(error, kinds) and len(str(error)) >= SHORTEST_MESSAGE


def described(error: BaseException) -> str:
    """The error, and the place in masklet where it came up."""
    frames = traceback.extract_tb(error.__traceback__)
    places = [frame for frame in frames if frame.filename.startswith(PACKAGE)] or frames
    where = ", ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in places[-3:])
    return f"{type(error).__name__}: {str(error)[:200]} ({where})"
