"""Rows of one user. Those of others are as if they did not exist."""

from __future__ import annotations

from collections.abc import Sequence

from sqlmodel import Session, col, select

from masklet.serve.problems import NOT_FOUND, Problem
from masklet.serve.state.tables import Media, Object, Project, Result, TrackingJob


def project_of(session: Session, user: str, project_id: str) -> Project:
    """A project of this user."""
    row = session.get(Project, project_id)
    if row is None or row.user != user:
        raise Problem(404, NOT_FOUND.format("project"))
    return row


def media_of(session: Session, user: str, media_id: str) -> Media:
    """An image or a video of this user."""
    row = session.get(Media, media_id)
    if row is None or row.user != user:
        raise Problem(404, NOT_FOUND.format("image or video"))
    return row


def object_of(session: Session, media: Media, number: int) -> Object:
    """An object that is not deleted."""
    row = session.get(Object, (media.id, number))
    if row is None or row.deleted:
        raise Problem(404, f"there is no object {number} in {media.name}")
    return row


def job_of(session: Session, user: str, job_id: str) -> TrackingJob:
    """A tracking job of this user."""
    row = session.get(TrackingJob, job_id)
    if row is None or row.user != user:
        raise Problem(404, NOT_FOUND.format("tracking job"))
    return row


def objects_in(session: Session, media_id: str) -> Sequence[Object]:
    """The objects that are not deleted, in order."""
    chosen = select(Object).where(Object.media_id == media_id, col(Object.deleted).is_(False))
    return session.exec(chosen.order_by(col(Object.number))).all()


def current_result(session: Session, media_id: str, number: int, frame: int) -> Result | None:
    """The mask of an object in a frame."""
    place = (Result.media_id == media_id, Result.object_number == number, Result.frame == frame)
    return session.exec(select(Result).where(*place, col(Result.is_current).is_(True))).one_or_none()


def results_in(session: Session, media_id: str, frame: int | None = None) -> Sequence[Result]:
    """The masks of all objects that are not deleted, in a frame or in all, by frame and object."""
    chosen = (
        select(Result)
        .join(Object, (col(Object.media_id) == Result.media_id) & (col(Object.number) == Result.object_number))
        .where(Result.media_id == media_id, col(Result.is_current).is_(True), col(Object.deleted).is_(False))
        .order_by(col(Result.frame), col(Result.object_number))
    )
    return session.exec(chosen if frame is None else chosen.where(Result.frame == frame)).all()
