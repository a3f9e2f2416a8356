"""Means over the scores of objects, for all evaluations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def summarise(scores: Sequence[DataclassInstance]) -> dict[str, float]:
    """The mean over objects of every float field, and the number of objects.

    Args:
        scores: One for each object, all of one class: ``ObjectScore``, ``TrackScore`` or ``RecallScore``.

    Raises:
        ValueError: ``scores`` is empty.
    """
    if not scores:
        raise ValueError("nothing to summarise: there are no objects")
    rows = [{name: value for name, value in asdict(score).items() if isinstance(value, float)} for score in scores]
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]} | {"objects": len(rows)}
