"""Tables of the names that tensors have in two layouts."""

from __future__ import annotations

import re
from collections.abc import Sequence

Rule = tuple[re.Pattern[str], str]
"""A pattern, and what replaces it."""


def rule(name: str, other: str) -> Rule:
    """A part of a name, and the part that replaces it: # is a number, ^ the beginning and $ the end of a name."""
    pattern = re.escape(name).replace(re.escape("#"), r"(\d+)")
    for place in "^$":
        pattern = pattern.replace(re.escape(place), place)
    return re.compile(pattern), other.strip("^$").replace("#", r"\1")


def renamed(name: str, rules: Sequence[Rule]) -> str:
    """A name after all rules, one after the other."""
    for pattern, replacement in rules:
        name = pattern.sub(replacement, name)
    return name
