"""Dictionaries of state that others' code reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from masklet.video.track import Track


class LiveMapping(Mapping[Any, Any]):
    """A read-only dictionary of what the tracker holds at the moment.

    Args:
        keys: Returns the keys.
        value: Returns the value of a key.
    """

    def __init__(self, keys: Callable[[], list[Any]], value: Callable[[Any], Any]) -> None:
        self._keys = keys
        self._value = value

    def __getitem__(self, key: Any) -> Any:
        if key not in self._keys():
            raise KeyError(key)
        return self._value(key)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._keys())

    def __len__(self) -> int:
        return len(self._keys())

    def __repr__(self) -> str:
        return f"LiveMapping of {self._keys()}"


def by_place(objects: Callable[[], int], value: Callable[[int], Any]) -> LiveMapping:
    """A mapping from an object's place among the objects.

    Args:
        objects: Returns how many there are.
        value: Returns the value for a place.
    """
    return LiveMapping(lambda: [*range(objects())], value)


def tracked_frames(track: Track) -> dict[int, dict[str, bool]]:
    """The frames that tracking has reached, in order: ``{frame: {"reverse": False}}``."""
    return {frame: {"reverse": track.tracked_steps[frame] < 0} for frame in sorted(track.tracked_steps)}
