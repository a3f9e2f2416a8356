"""Damaged files and documents for fuzz tests: a valid one in which a few things are changed."""

import copy
import math
import os

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

FUZZ_EXAMPLES = int(os.environ.get("MASKLET_FUZZ_EXAMPLES", "0"))


def fuzzed(quick):
    """Settings with a few examples, the same in every run; or as many as the environment asks for, new ones each time.

    MASKLET_FUZZ_EXAMPLES is their number, MASKLET_FUZZ_SEEDED=1 takes the same ones again.
    """
    return settings(
        derandomize=not FUZZ_EXAMPLES or "MASKLET_FUZZ_SEEDED" in os.environ,
        max_examples=FUZZ_EXAMPLES or quick,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


def attempt(call, refusal):
    """(result, ""), or (None, message) if the call is refused by this kind of error. Other errors pass."""
    try:
        return call(), ""
    except refusal as error:
        return None, str(error)


ODD_VALUES = [
    *(None, True, False, -1, 0, 1, 0.5, 2.0, -0.0, 1e300, math.nan, math.inf, -math.inf),
    *(7, 2**31, 2**63, -(2**63), 10**9, 10**400, "", "x", "0", "\ud800", "é", b"\xff"),
    *([], [[]], {}, [None], ["x"], [1, 2], [0.5, math.nan], {"a": 1}, [[1, 2, 3, 4, 5, 6]]),
]
"""What a broken program, or a person, may write in the place of a value."""


@st.composite
def damaged_documents(draw, document):
    """A JSON document in which one to three values are replaced, removed or repeated."""
    broken = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, 3))):
        places = list(places_of(broken))
        if not places:
            break
        holder, key = draw(st.sampled_from(places))
        action = draw(st.sampled_from(["replace", "replace", "replace", "remove", "repeat"]))
        if action == "remove":
            del holder[key]
        elif action == "repeat" and isinstance(holder, list):
            holder.append(holder[key])
        else:
            holder[key] = copy.deepcopy(draw(st.sampled_from(ODD_VALUES)))
    return broken


def places_of(document):
    """(container, key) of every value."""
    if isinstance(document, dict | list):
        for key, value in list(document.items() if isinstance(document, dict) else enumerate(document)):
            yield document, key
            yield from places_of(value)


@st.composite
def damaged_bytes(draw, content):
    """A file in which bytes were changed, which was cut off, or in which bytes were repeated or put in."""
    broken = bytearray(content)
    place = st.integers(0, max(len(content) - 1, 0))
    # The beginning of a file, which says what follows, is more interesting than the rest.
    place = place | st.integers(0, min(len(content) - 1, 200))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(place)
        match draw(st.sampled_from(["flip", "flip", "flip", "cut", "insert", "zero"])):
            case "flip":
                broken[at : at + 1] = bytes([draw(st.integers(0, 255))])
            case "cut":
                del broken[at:]
            case "insert":
                broken[at:at] = draw(st.binary(min_size=1, max_size=8))
            case "zero":
                broken[at : at + 16] = bytes(len(broken[at : at + 16]))
    return bytes(broken)
