"""Changes of objects and masks, which can be undone and done again."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from sqlalchemy import delete, func, update
from sqlmodel import Session, col, select

from masklet.serve.problems import Problem
from masklet.serve.state.rows import current_result
from masklet.serve.state.tables import Edit, Media, Object, Result

COLOURS = (
    "#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#46c8f0",
    "#f032e6", "#9acd32", "#008080", "#9a6324", "#800000", "#808000",
)  # fmt: skip
"""Colours of objects, used in turn."""
SQL_VALUES = 500
"""Values in one SQL statement."""
EDITS_KEPT = 500
"""Changes kept for an image or a video: older ones can no longer be undone."""


@dataclass(frozen=True)
class Place:
    """An object, and the frame in which it is changed, if it is one."""

    number: int
    frame: int | None = None


def snapshot(session: Session, media: Media, place: Place) -> dict[str, Any]:
    """What an edit of a place may change: as JSON, to go back to."""
    row = session.get(Object, (media.id, place.number))
    state: dict[str, Any] = {"object": None}
    if row is not None:
        state["object"] = {"name": row.name, "colour": row.colour, "deleted": row.deleted}
    if place.frame is not None:
        result = current_result(session, media.id, place.number, place.frame)
        state["result"] = None if result is None else result.id
    return state


def restore(session: Session, media: Media, place: Place, state: dict[str, Any]) -> None:
    """Goes to a ``snapshot``."""
    row = session.get(Object, (media.id, place.number))
    if row is not None:
        for name, value in (state["object"] or {"deleted": True}).items():
            setattr(row, name, value)
        session.add(row)
    if place.frame is not None:
        set_current(session, media.id, place, state["result"])


def set_current(session: Session, media_id: str, place: Place, result_id: int | None) -> None:
    """Makes one of the results in a place the one that is shown, or none."""
    there = (
        col(Result.media_id) == media_id,
        col(Result.object_number) == place.number,
        col(Result.frame) == place.frame,
    )
    session.exec(update(Result).where(*there).values(is_current=False))
    if result_id is not None:
        session.exec(update(Result).where(*there, col(Result.id) == result_id).values(is_current=True))
    session.expire_all()


def record(session: Session, media: Media, title: str, place: Place, before: dict[str, Any]) -> None:
    """Records a change that was made, so that it can be undone. What was undone before cannot be done again."""
    session.flush()
    forget_undone(session, media.id)
    after = snapshot(session, media, place)
    session.add(
        Edit(
            media_id=media.id,
            title=title,
            object_number=place.number,
            frame=place.frame,
            before=json.dumps(before),
            after=json.dumps(after),
        )
    )
    session.flush()
    forget_old(session, media.id)


def undo(session: Session, media: Media, *, redo: bool = False) -> Edit:
    """Undoes the last change, or does the last undone one again.

    Raises:
        Problem: There is none.
    """
    chosen = select(Edit).where(Edit.media_id == media.id, col(Edit.undone).is_(redo))
    edit = session.exec(chosen.order_by(col(Edit.id) if redo else col(Edit.id).desc())).first()
    if edit is None:
        raise Problem(409, "there is nothing to redo" if redo else "there is nothing to undo")
    place = Place(edit.object_number, edit.frame)
    restore(session, media, place, json.loads(edit.after if redo else edit.before))
    edit.undone = not redo
    session.add(edit)
    media.version += 1
    session.add(media)
    return edit


def forget_undone(session: Session, media_id: str) -> None:
    """Forgets what was undone, since something else was done instead."""
    if session.exec(select(Edit.id).where(Edit.media_id == media_id, col(Edit.undone).is_(True))).first() is not None:
        session.exec(delete(Edit).where(col(Edit.media_id) == media_id, col(Edit.undone).is_(True)))
        forget_results(session, media_id)


def forget_results(session: Session, media_id: str) -> None:
    """Deletes results that are not shown and that no change leads back to."""
    edits = session.exec(select(Edit).where(Edit.media_id == media_id)).all()
    kept = {json.loads(text).get("result") for edit in edits for text in (edit.before, edit.after)}
    hidden = (Result.media_id == media_id, col(Result.is_current).is_(False))
    old = [found for found in session.exec(select(Result.id).where(*hidden)).all() if found not in kept]
    for start in range(0, len(old), SQL_VALUES):
        session.exec(delete(Result).where(col(Result.id).in_(old[start : start + SQL_VALUES])))


def forget_old(session: Session, media_id: str) -> None:
    """Keeps the last ``EDITS_KEPT`` changes, and the results that they need."""
    chosen = select(Edit.id).where(Edit.media_id == media_id).order_by(col(Edit.id).desc()).offset(EDITS_KEPT)
    if old := session.exec(chosen.limit(EDITS_KEPT)).all():
        session.exec(delete(Edit).where(col(Edit.id).in_(old)))
        forget_results(session, media_id)


def next_object(session: Session, media: Media, limit: int) -> int:
    """The number of a new object.

    Raises:
        Problem: There are too many.
    """
    highest = session.exec(select(func.max(Object.number)).where(Object.media_id == media.id)).one() or 0
    if highest >= limit:
        raise Problem(413, f"{media.name} has {highest} objects already: expected at most {limit}")
    return highest + 1


def add_object(session: Session, media: Media, name: str | None, colour: str | None, limit: int) -> Object:
    """A new object, as a change that can be undone."""
    number = next_object(session, media, limit)
    row = Object(
        media_id=media.id,
        number=number,
        name=name or f"object {number}",
        colour=colour or COLOURS[(number - 1) % len(COLOURS)],
    )
    before = {"object": None}
    session.add(row)
    record(session, media, f"add {row.name}", Place(number), before)
    return row
