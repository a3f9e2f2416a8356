"""What is in memory: encoded images and open sessions, the least recently used of which leave it first."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from masklet.serve.heap import HeapTrimmer

Value = TypeVar("Value")


@dataclass
class Entry(Generic[Value]):
    """A value in the cache."""

    value: Value
    size: Callable[[Value], int]
    leave: Callable[[Value], None] | None
    """Called when the value leaves the cache, for example to save it."""
    bytes: int = 0
    users: int = 0
    """Blocks that use it now; it stays until they end."""


class Cache:
    """A cache with a budget in bytes."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self._entries: OrderedDict[Hashable, Entry[Any]] = OrderedDict()
        self._lock = threading.RLock()
        self._trim_heap = HeapTrimmer()

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: object) -> bool:
        return key in self._entries

    def held_keys(self) -> list[Hashable]:
        """The keys, least recently used first."""
        with self._lock:
            return list(self._entries)

    @property
    def bytes(self) -> int:
        """What the values take."""
        with self._lock:
            return sum(entry.bytes for entry in self._entries.values())

    @property
    def is_full(self) -> bool:
        """Whether the values take more than the budget: those that are used now cannot leave."""
        return self.bytes > self.budget

    @contextmanager
    def use(
        self,
        key: Hashable,
        make: Callable[[], Value],
        size: Callable[[Value], int],
        leave: Callable[[Value], None] | None = None,
    ) -> Iterator[Value]:
        """A value, made if it is not there; it stays at least until the block ends.

        Its size is measured again after the block. A value that two threads request concurrently may be made twice.
        """
        with self._lock:
            entry = self._entries.get(key)
        if entry is None:
            made = Entry(value := make(), size, leave, size(value))
            with self._lock:
                entry = self._entries.setdefault(key, made)
        with self._lock:
            self._entries[key] = entry
            self._entries.move_to_end(key)
            entry.users += 1
        try:
            yield entry.value
        finally:
            with self._lock:
                entry.users -= 1
                entry.bytes = entry.size(entry.value)
            self._shrink()
            self._trim_heap()

    def drop(self, key: Hashable, *, save: bool = False) -> None:
        """Forgets a value; with ``save``, saves it first, as when it is evicted."""
        with self._lock:
            entry = self._entries.pop(key, None)
        if save and entry is not None and entry.leave is not None:
            entry.leave(entry.value)

    def clear(self) -> None:
        """Evicts all values."""
        for key in self.held_keys():
            self.drop(key, save=True)

    def _shrink(self) -> None:
        leaving = []
        with self._lock:
            total = sum(entry.bytes for entry in self._entries.values())
            for key, entry in list(self._entries.items()):
                if total <= self.budget:
                    break
                if not entry.users:
                    del self._entries[key]
                    leaving.append(entry)
                    total -= entry.bytes
        for entry in leaving:
            if entry.leave is not None:
                entry.leave(entry.value)
