"""Prompts of several objects for one frame, as people give them to a stream."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

from masklet.errors import PromptError
from masklet.numbers import shown

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
