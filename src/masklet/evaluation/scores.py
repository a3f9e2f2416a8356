"""What all evaluations have in common: a score for each object, and means over objects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def summarise(scores: Sequence[DataclassInstance]) -> dict[str, float]:
    """Means over objects of every float that a score holds, and how many objects there were.

    Args:
        scores: One for each object, all of one kind: ``ObjectScore``, ``TrackScore`` or ``FoundScore``.

    Raises:
        ValueError: There are none.
    """
    if not scores:
        raise ValueError("nothing to summarise: there is no object")
    rows = [{name: value for name, value in asdict(score).items() if isinstance(value, float)} for score in scores]
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]} | {"objects": len(rows)}
