"""Constants that are made once for a size."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

MAX_SIZES = 8
"""Sizes that are kept. The one used longest ago is dropped first."""

Value = TypeVar("Value")


class BySize(Generic[Value]):
    """Values by size, made when they are needed first."""

    def __init__(self) -> None:
        self._values: OrderedDict[Hashable, Value] = OrderedDict()

    def get(self, size: Hashable, make: Callable[[], Value]) -> Value:
        """The value for a size. Threads may make it twice; all get one that is right."""
        value = self._values.get(size)
        if value is None:
            value = self._values.setdefault(size, make())
            while len(self._values) > MAX_SIZES:
                self._values.popitem(last=False)
        return value
