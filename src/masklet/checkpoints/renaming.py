"""Tables of the names that tensors have in two layouts."""

from __future__ import annotations

import re
from collections.abc import Sequence

Rule = tuple[re.Pattern[str], str]
"""A pattern and its replacement."""


def rule(name: str, other: str) -> Rule:
    """A rule that replaces a part of a name: # stands for a number, ^ for the beginning and $ for the end of a name."""
    pattern = re.escape(name).replace(re.escape("#"), r"(\d+)")
    for place in "^$":
        pattern = pattern.replace(re.escape(place), place)
    return re.compile(pattern), other.strip("^$").replace("#", r"\1")


def renamed(name: str, rules: Sequence[Rule]) -> str:
    """Applies all rules to a name, in order."""
    for pattern, replacement in rules:
        name = pattern.sub(replacement, name)
    return name
