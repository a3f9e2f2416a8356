"""Saving a session while it is tracked."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import closing, suppress
from time import monotonic
from typing import TypeVar

from masklet.errors import SessionError

Result = TypeVar("Result")

SAVING_SHARE = 0.1
"""Saving a long video takes long. At most this share of the time is spent on it."""


def autosaving(results: Generator[Result], save: Callable[[], None], seconds: float) -> Generator[Result]:
    """The same results. ``save`` is called at intervals, and when they end or are interrupted.

    Args:
        results: Closed at the end.
        save: Saves the session.
        seconds: The least time between the end of one save and the next.
    """
    due = monotonic() + seconds
    try:
        with closing(results):
            for result in results:
                if (started := monotonic()) >= due:
                    save()
                    due = monotonic() + max(seconds, (1 / SAVING_SHARE - 1) * (monotonic() - started))
                yield result
    except BaseException:
        with suppress(SessionError):  # the error that interrupted tracking matters more
            save()
        raise
    save()
