"""The history of an object: a record of each frame, and how it is stored and saved."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from masklet.errors import SessionError, SpoolError
from masklet.numbers import shown
from masklet.video.policy import FrameRecord

NUMBERS = ("iou_score", "object_score")
WHOLE_NUMBERS = ("area", "step", "parent")


class RecordPacking:
    """``FrameRecord`` as JSON, for a spool. Python writes floats so that they are read back exactly."""

    def pack(self, value: FrameRecord) -> bytes:  # noqa: D102
        return json.dumps(asdict(value), separators=(",", ":")).encode()

    def unpack(self, data: bytes) -> FrameRecord:  # noqa: D102
        try:
            return read_record(json.loads(data))
        except (ValueError, RecursionError) as error:
            raise SpoolError(f"a stored record of a frame is damaged: track this frame again ({error})") from error


def read_record(values: Any) -> FrameRecord:
    """A record from the plain values that JSON holds.

    Raises:
        SessionError: They are not those of a record.
    """
    expected = {*NUMBERS, *WHOLE_NUMBERS, "box", "is_prompted", "notes"}
    is_right = (
        isinstance(values, Mapping)
        and values.keys() == expected
        and all(_is_finite(values[name]) for name in NUMBERS)
        and all(type(values[name]) is int and abs(values[name]) < 2**62 for name in WHOLE_NUMBERS)
        and values["parent"] >= 0
        and isinstance(values["box"], list)
        and len(values["box"]) == 4
        and all(map(_is_finite, values["box"]))
        and isinstance(values["is_prompted"], bool)
        and isinstance(values["notes"], dict)
    )
    if not is_right:
        raise SessionError(f"a frame of the history is {shown(values)}: expected {', '.join(sorted(expected))}")
    return FrameRecord(**{**values, "box": tuple(values["box"])})


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
