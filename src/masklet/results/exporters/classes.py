"""Finds the class of each mask, in the same way for every export."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

Categories: TypeAlias = str | Sequence[str] | Mapping[Any, str]
"""The classes of masks: one name for all, a name for each mask, or a name for each object id."""
DEFAULT_NAME = "object"
"""The class of masks whose class is not given."""


@dataclass(frozen=True)
class Classes:
    """The class of each mask, and all classes in the order of their numbers."""

    names: tuple[str, ...]
    """All classes, without duplicates."""
    numbers: tuple[int, ...]
    """The class of each mask, as an index of ``names``."""

    @property
    def labels(self) -> list[str]:
        """The name of the class of each mask."""
        return [self.names[number] for number in self.numbers]


def read_classes(
    categories: Categories | None, object_ids: Iterable[Hashable], names: Sequence[str] | None = None
) -> Classes:
    """Reads the classes of masks as callers give them.

    Args:
        categories: See ``Categories``; by default all masks are of the class "object". A mapping may hold more objects
            than there are.
        object_ids: Object id of each mask.
        names: All classes in the order of their numbers, so that numbers agree between images. By default those of
            ``categories``, in the order in which they are first named.

    Raises:
        ValueError: A mask or object has no name; a name is not text, or is not among ``names``.
    """
    if names is not None and (categories is None or isinstance(names, str)):
        raise ValueError(f"names={names!r}: expected a list of all classes, and categories=, which says each mask's")
    labels, listed = labels_of(DEFAULT_NAME if categories is None else categories, list(object_ids))
    check_names(listed if names is None else [*names, *listed])
    known = list(dict.fromkeys(listed)) if names is None else list(names)
    if len(set(known)) < len(known):
        raise ValueError(f"names={known} lists a name twice: expected all classes in the order of their numbers")
    numbers = {name: number for number, name in enumerate(known)}
    if missing := [name for name in labels if name not in numbers]:
        raise ValueError(f"class {missing[0]!r} is not among names={known}: expected all classes there")
    return Classes(tuple(map(str, known)), tuple(numbers[name] for name in labels))


def check_names(names: Iterable[Any]) -> None:
    """Raise a ValueError unless all are text."""
    for name in names:
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"{name!r} is not the name of a class: expected text, such as 'cat'")


def labels_of(categories: Categories, object_ids: list[Hashable]) -> tuple[list[str], list[str]]:
    """The name of the class of each mask, and all names in the order in which they are given."""
    if isinstance(categories, str):
        return [categories] * len(object_ids), [categories]
    if isinstance(categories, Mapping):
        if missing := [one for one in object_ids if one not in categories]:
            raise ValueError(
                f"categories has no class for object {missing[0]!r}, only for {list(categories)[:10]}: "
                "expected {object id: name} for all objects"
            )
        return [categories[one] for one in object_ids], list(categories.values())
    labels = list(categories) if hasattr(categories, "__getitem__") else None  # not a set, which has no order
    if labels is None or len(labels) != len(object_ids):
        came = repr(categories) if labels is None else f"{len(labels)} names"
        raise ValueError(
            f"categories is {came}, but there are {len(object_ids)} masks: expected one name for all, a list with a "
            "name for each mask, or {object id: name}"
        )
    return labels, labels
