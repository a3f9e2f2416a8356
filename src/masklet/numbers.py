"""Checks numbers from users and files: whole or finite, within limits, of any numeric type.

numpy and torch are not imported: a configuration needs neither.
"""

from __future__ import annotations

import math
import operator
import sys
from typing import Any

LARGEST = sys.maxsize
"""The largest whole number that numpy, torch and C libraries take."""
LARGEST_FLOAT = sys.float_info.max
MAX_COORDINATE = 2**24
"""In pixels. Up to here float32 holds every whole number, and pycocotools counts fifths of a pixel in 32 bits."""
MAX_PIXELS = 2**31 - 1
"""Pixels of an image whose masks COCO's run lengths can count."""


def whole_number(name: str, value: Any, error: type[Exception], *, least: int = -LARGEST, most: int = LARGEST) -> int:
    """A whole number as an ``int``: also numpy's integers, and floats without a fraction, as tables hold them.

    Args:
        name: Name for the message.
        value: What was given. Text and booleans are not numbers.
        error: The class of the error.
        least: The smallest allowed number.
        most: The largest allowed number.

    Raises:
        error: It is not a whole number, or is out of range.
    """
    number = _as_int(value)
    if number is None or not least <= number <= most:
        raise error(f"{name} is {shown(value)}: expected a whole number{_range(least, most)}")
    return number


def real_number(
    name: str, value: Any, error: type[Exception], *, least: float = -LARGEST_FLOAT, most: float = LARGEST_FLOAT
) -> float:
    """A number as a ``float``, from any numeric type; finite unless ``most`` is infinite. See ``whole_number``.

    Raises:
        error: It is not a number, or is out of range.
    """
    number = _as_float(value)
    if not least <= number <= most:
        kind = "finite number" if LARGEST < most < math.inf else "number"
        raise error(f"{name} is {shown(value)}: expected a {kind}{_range(least, most)}")
    return number


def size_of(name: str, value: Any, error: type[Exception]) -> tuple[int, int]:
    """(height, width) of an image, from any pair of whole numbers.

    Raises:
        error: It is not a size, or has more pixels than ``MAX_PIXELS``.
    """
    sides = value.tolist() if hasattr(value, "tolist") else value
    numbers = [_as_int(side) for side in sides] if isinstance(sides, list | tuple) else []
    match numbers:
        case [int(height), int(width)] if height >= 1 and width >= 1 and height * width <= MAX_PIXELS:
            return height, width
    raise error(
        f"{name} is {shown(value)}: expected (height, width), whole numbers from 1, with at most {MAX_PIXELS} pixels"
    )


def shown(value: Any, most: int = 80) -> str:
    """``repr`` for messages, cut where it is long."""
    try:
        text = repr(value)
    except ValueError:  # Python does not write numbers of more than 4,300 digits
        return "a number of thousands of digits"
    return text if len(text) <= most else f"{text[:most]}…"


def _as_int(value: Any) -> int | None:
    value = _plain(value)
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    try:
        return None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return None


def _as_float(value: Any) -> float:
    """NaN for anything that is not a number, or is too large."""
    value = _plain(value)
    if isinstance(value, bool | str | bytes) or hasattr(value, "shape"):
        return math.nan
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def _plain(value: Any) -> Any:
    """The number in a scalar of numpy or torch; anything else as it is."""
    return value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value


def _range(least: float, most: float) -> str:
    has_least, has_most = least > -LARGEST, most < LARGEST
    if has_least and has_most:
        return f", {_brief(least)} to {_brief(most)}"
    return f", {_brief(least)} or more" if has_least else f", {_brief(most)} or less" if has_most else ""


def _brief(number: float) -> str:
    return f"{number:g}" if isinstance(number, float) else str(number)
