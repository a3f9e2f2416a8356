"""Settings of processors and models: sizes, numbers for each channel, the text of their files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from masklet.checkpoints import HubOptions
from masklet.config import SizeHW
from masklet.errors import ConfigError


class SizeDict(dict[str, int]):
    """``height`` and ``width``, by key or attribute."""

    @property
    def height(self) -> int:
        """In pixels."""
        return self["height"]

    @property
    def width(self) -> int:
        """In pixels."""
        return self["width"]

    @property
    def hw(self) -> SizeHW:
        """(height, width)."""
        return self.height, self.width


def read_size(name: str, size: Any) -> SizeDict:
    """A size from ``{"height": …, "width": …}``, (height, width) or the side of a square.

    Raises:
        ConfigError: It is something else.
    """
    sides: Any = [size.get("height"), size.get("width")] if isinstance(size, Mapping) else size
    sides = list(sides) if isinstance(sides, Sequence) else [sides, sides]
    if len(sides) != 2 or not all(isinstance(s, int | np.integer) and not isinstance(s, bool) and s > 0 for s in sides):
        raise ConfigError(f'{name} is {size!r}: expected {{"height": …, "width": …}} in pixels, or one side')
    return SizeDict(height=int(sides[0]), width=int(sides[1]))


def read_channels(name: str, values: Any) -> tuple[float, ...]:
    """A number for each of red, green and blue, from three or from one for all.

    Raises:
        ConfigError: It is something else.
    """
    numbers = [values] * 3 if isinstance(values, int | float) else list(values)
    if len(numbers) != 3 or not all(isinstance(n, int | float) for n in numbers):
        raise ConfigError(f"{name} is {values!r}: expected a number for each of red, green and blue, or one")
    return tuple(float(n) for n in numbers)


def json_text(content: Mapping[str, Any]) -> str:
    """The text of a file of settings."""
    return json.dumps(content, indent=2, sort_keys=True) + "\n"


def take_hub_options(kwargs: dict[str, Any]) -> HubOptions:
    """Where the files of a processor are. Removes these keyword arguments, and those without effect here."""
    for name in ("use_fast", "trust_remote_code", "backend"):
        kwargs.pop(name, None)
    return HubOptions.taken_from(kwargs)
