"""How the values of an image become brightness: range, bands, missing values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Literal, TypeAlias

from masklet.errors import ConfigError
from masklet.numbers import real_number

ValueRange: TypeAlias = tuple[float, float] | Literal["auto"]
Bands: TypeAlias = int | Sequence[int]


@dataclass(frozen=True, kw_only=True)
class ImageOptions:
    """How to interpret the values of an image, see ``masklet.images.reading.read_image``.

    Raises:
        ConfigError: A value is invalid.
    """

    value_range: ValueRange | None = None
    """(low, high): the values that become black and white; others are clipped. ``"auto"`` uses the 0.5th and 99.5th
    percentiles of the selected bands together, without missing values. None: the range of the type, 0 to 255 for uint8,
    0 to 65535 for uint16, 0 to 1 for floats."""
    bands: Bands | None = None
    """Which channels become red, green and blue, counted from 0; one number gives a greyscale image of that channel.
    None: the image is read as greyscale, RGB or RGBA."""
    nodata: float | None = None
    """The value of missing pixels; it may be NaN. They are not counted by ``"auto"`` and become black. NaN is missing,
    too, whenever ``value_range`` or ``nodata`` is given."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "value_range", checked_range(self.value_range))
        object.__setattr__(self, "bands", checked_bands(self.bands))
        object.__setattr__(self, "nodata", checked_nodata(self.nodata))

    @property
    def is_default(self) -> bool:
        """Whether images are read as they are."""
        return self == DEFAULT

    @property
    def skips_nan(self) -> bool:
        """Whether NaN counts as a missing value."""
        return self.value_range is not None or self.nodata is not None

    def to_json(self) -> dict[str, Any]:
        """Plain values for a file; ``from_json`` reads them."""
        is_finite = self.nodata is None or math.isfinite(self.nodata)
        return {
            "value_range": self.value_range,
            "bands": self.bands,
            "nodata": self.nodata if is_finite else str(self.nodata),  # JSON has no NaN
        }

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> ImageOptions:
        """Reads what ``to_json`` returned. Missing entries have their defaults.

        Raises:
            ConfigError: It is anything else.
        """
        if not isinstance(saved, Mapping):
            raise ConfigError(f"saved image options are {saved!r}: expected value_range, bands and nodata by name")
        nodata = saved.get("nodata")
        return cls(
            value_range=saved.get("value_range"),
            bands=saved.get("bands"),
            nodata=float(nodata) if nodata in ("nan", "inf", "-inf") else nodata,
        )


def checked_range(value_range: Any) -> ValueRange | None:
    """As two Python floats, ``"auto"`` or None."""
    if value_range is None:
        return None
    if isinstance(value_range, str) and value_range == "auto":
        return "auto"
    try:
        low, high = (real_number("value_range", one, ValueError) for one in value_range)
    except (TypeError, ValueError):
        low = high = 0.0
    if not 0 < high - low < math.inf:  # the difference of two finite numbers may be infinite
        raise ConfigError(
            f"value_range is {value_range!r}: expected (low, high), two numbers of which the second is larger, "
            '"auto" or None'
        )
    return low, high


def checked_bands(bands: Any) -> int | tuple[int, ...] | None:
    """As Python integers: one, a tuple of three, or None."""
    if bands is None:
        return None
    is_one = isinstance(bands, Integral)
    try:
        several = [bands] if is_one else list(bands)
    except TypeError:
        several = []
    whole = [int(one) for one in several if isinstance(one, Integral) and not isinstance(one, bool)]
    if len(several) not in (1, 3) or len(whole) < len(several) or min(whole) < 0:
        raise ConfigError(
            f"bands is {bands!r}: expected the channel that becomes a greyscale image, or the three that become red, "
            "green and blue, counted from 0: bands=(3, 2, 1)"
        )
    return whole[0] if len(whole) == 1 else tuple(whole)


def checked_nodata(nodata: Any) -> float | None:
    """As a Python number, or None."""
    if nodata is None:
        return None
    if isinstance(nodata, Integral) and not isinstance(nodata, bool) and -(2**63) <= int(nodata) < 2**64:
        return int(nodata)  # 64 bits do not fit into a float
    try:
        number = float(nodata) if isinstance(nodata, Real) and not isinstance(nodata, bool) else None
    except OverflowError:
        number = None
    if number is None:
        raise ConfigError(f"nodata is {nodata!r}: expected a number that a pixel can have, float('nan') or None")
    return number


DEFAULT = ImageOptions()
