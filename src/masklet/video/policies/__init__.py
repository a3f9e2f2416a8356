"""The memory policies that come with masklet. ``masklet.video.policy`` has their interface and the paper's."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from masklet.errors import ConfigError, MaskletError, SessionError
from masklet.numbers import shown
from masklet.video.policies.dam4sam import Dam4SamPolicy
from masklet.video.policies.sam2long import Sam2LongPolicy
from masklet.video.policies.sam3 import Sam3Policy
from masklet.video.policies.samurai import SamuraiPolicy
from masklet.video.policy import MAX_PROMPTED, MemoryPolicy, PaperPolicy

__all__ = [
    "POLICIES",
    "Dam4SamPolicy",
    "PolicyInfo",
    "Sam2LongPolicy",
    "Sam3Policy",
    "SamuraiPolicy",
    "check_policy",
    "make_policy",
]


@dataclass(frozen=True)
class PolicyInfo:
    """A policy that has a name."""

    make: Any  # its class
    paper: str
    licence: str
    """Licence of the authors' code. Ours is written from the formulas."""


POLICIES = {
    "paper": PolicyInfo(PaperPolicy, "SAM 2, arXiv 2408.00714", "Apache-2.0"),
    "sam3": PolicyInfo(Sam3Policy, "SAM 3, arXiv 2511.16719", "SAM License"),
    "samurai": PolicyInfo(SamuraiPolicy, "SAMURAI, arXiv 2411.11922", "Apache-2.0"),
    "dam4sam": PolicyInfo(Dam4SamPolicy, "DAM4SAM, arXiv 2411.17576", "see their repository"),
    "sam2long": PolicyInfo(Sam2LongPolicy, "SAM2Long, arXiv 2410.16268", "CC-BY-NC 4.0"),
}
"""By name."""


EXPECTED = f"expected {', '.join(map(repr, POLICIES))}"


def check_policy(name: str) -> None:
    """Raises a ConfigError unless there is a policy of this name."""
    if name not in POLICIES:
        raise ConfigError(f"policy is {name!r}: {EXPECTED}")


def make_policy(
    policy: str | MemoryPolicy, *, num_maskmem: int, max_prompted: int | None, length: int | None = None
) -> MemoryPolicy:
    """The policy of a name, or the policy itself.

    Args:
        policy: A name of ``POLICIES``, or an object.
        num_maskmem: Temporal slots of the model.
        max_prompted: See ``PaperPolicy``. An object has its own, and "sam3" 4 unless another number is asked for.
        length: See ``PaperPolicy``.

    Raises:
        ConfigError: There is no policy of this name; the object is not a policy; ``max_prompted`` was changed beside an
            object, or is None for another policy than the paper's.
        PromptError: ``max_prompted`` is not a whole number from 1.
    """
    expected = f"{EXPECTED}, or a memory policy (masklet.video.policy)"
    if isinstance(policy, str):
        if policy not in POLICIES:
            raise ConfigError(f"policy is {policy!r}: {expected}")
        if policy == "paper":
            return PaperPolicy(num_maskmem, max_prompted, length)
        if max_prompted is None:
            raise ConfigError(
                f"max_prompted is None, but policy is {policy!r}: expected a number, since only 'paper' reads all "
                "prompted frames"
            )
        limit = {} if max_prompted == MAX_PROMPTED else {"max_prompted": max_prompted}
        return POLICIES[policy].make(num_maskmem=num_maskmem, length=length, **limit)
    if not (callable(getattr(policy, "select", None)) and hasattr(policy, "keeps") and hasattr(policy, "choose")):
        raise ConfigError(f"policy is {policy!r}: {expected}")
    if max_prompted != MAX_PROMPTED:
        raise ConfigError(
            f"max_prompted is {max_prompted}, but policy is an object: expected the name of a policy, or the limit in "
            "the object, as in PaperPolicy(max_prompted=3)"
        )
    return policy


def policy_to_json(policy: MemoryPolicy) -> dict[str, Any]:
    """A policy as saved sessions hold it: its name, or the name of its class, and its constants."""
    if isinstance(policy, PaperPolicy):
        return asdict(policy)
    names = [name for name, info in POLICIES.items() if type(policy) is info.make]
    if not names:
        return {"class": type(policy).__name__}
    return {**asdict(policy), "name": names[0]}  # type: ignore[call-overload]  # it is a dataclass


def policy_from_json(saved: dict[str, Any], own: MemoryPolicy | None = None) -> MemoryPolicy:
    """The policy of a saved session.

    Args:
        saved: From ``policy_to_json``.
        own: The caller's, if the session was tracked with one that has no name.

    Raises:
        SessionError: It is unknown, or needs the caller's.
    """
    constants: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in saved.items()
    }
    if "class" in constants:
        if type(own).__name__ != constants["class"]:
            raise SessionError(
                f"it was tracked with the memory policy {shown(constants['class'])}, which is not masklet's: pass it, "
                f"sam.resume(path, policy={constants['class']}(…))"
            )
        assert own is not None
        return own
    if own is not None:
        raise SessionError(f"policy is {shown(own)}: expected none, since the session knows its own")
    name = constants.pop("name", "paper")
    try:
        return POLICIES[name].make(**constants)
    except (KeyError, TypeError, ValueError, MaskletError) as error:
        raise SessionError(f"it has an unknown memory policy: {error}") from error
