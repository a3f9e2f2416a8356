"""Prompts for a frame, as people give them: checked, and joined with earlier ones. Runs without torch."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np

from masklet.config import BOX_TOP_LEFT, SizeHW
from masklet.errors import PromptError
from masklet.numbers import shown
from masklet.prompts import check_prompts, one_box

EXAMPLE = 'as in {"cup": {"points": [(40, 30)]}}'


def checked_prompts(prompts: Any) -> Mapping[Hashable, Mapping[str, Any]]:
    """Prompts by object, see ``VideoStream.push``.

    Raises:
        PromptError: They are not dicts, or have keys that a prompt does not have.
    """
    prompts = {} if prompts is None else prompts
    if not isinstance(prompts, Mapping):
        raise PromptError(f"prompts are {shown(prompts)}: expected a dict of prompts by object, {EXAMPLE}")
    for object_id, prompt in prompts.items():
        if not isinstance(prompt, Mapping) or not prompt.keys() <= {"points", "labels", "box", "mask"}:
            raise PromptError(
                f"the prompt for object {shown(object_id)} is {shown(prompt)}: expected points, labels, box or mask, "
                f"{EXAMPLE}"
            )
    return prompts


def check_clicks(
    points: Any, labels: Any, box: Any, *, size_hw: SizeHW, input_hw: SizeHW
) -> tuple[np.ndarray, np.ndarray]:
    """Check the points and the box of one object.

    Returns:
        (points, 2) float32 in pixels of the network's input, box corners first, and (points,) int64 labels.

    Raises:
        PromptError: They make no sense, or are for several objects.
    """
    prompts = check_prompts(points, labels, None if box is None else one_box(box), size_hw=size_hw, input_hw=input_hw)
    if len(prompts) != 1:
        raise PromptError(f"points for {len(prompts)} objects: expected one list, since a prompt is for one object")
    return prompts.points[0], prompts.labels[0]


def joined_clicks(earlier: np.ndarray, later: np.ndarray) -> np.ndarray:
    """Which clicks of a frame count after a further prompt: a new box replaces an earlier one, and corners come first.

    Args:
        earlier: (points,) labels of the earlier clicks.
        later: (points,) labels of the further ones.

    Returns:
        Indices of the earlier clicks followed by the later ones.
    """
    labels = np.concatenate([earlier, later])
    is_kept = np.ones(len(labels), bool)
    if (later == BOX_TOP_LEFT).any():
        is_kept[: len(earlier)] = earlier < BOX_TOP_LEFT
    kept = is_kept.nonzero()[0]
    return kept[np.argsort(labels[kept] < BOX_TOP_LEFT, kind="stable")]
