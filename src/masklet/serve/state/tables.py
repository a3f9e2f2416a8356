"""The tables of the database."""

from __future__ import annotations

from time import time
from uuid import uuid4

from sqlalchemy import Column, Index, LargeBinary, Text
from sqlmodel import Field, SQLModel


def new_id() -> str:
    """A name that cannot be guessed."""
    return uuid4().hex


class Project(SQLModel, table=True):
    """Images and videos of one user."""

    id: str = Field(default_factory=new_id, primary_key=True)
    user: str = Field(index=True)
    name: str
    created: float = Field(default_factory=time)


class Media(SQLModel, table=True):
    """An image or a video."""

    id: str = Field(default_factory=new_id, primary_key=True)
    project_id: str = Field(foreign_key="project.id", index=True)
    user: str = Field(index=True)
    kind: str
    """image or video."""
    name: str
    """As the user knows it; never part of a path."""
    in_folder: bool
    """Whether the file is in the folder that is annotated in place; otherwise it was uploaded."""
    path: str
    """Below the folder, or below the uploads."""
    width: int
    height: int
    frames: int
    fps: float
    version: int = 0
    """Changes with every change of a video's session, so that other processes notice that theirs is out of date."""
    remaining: str = Field(default="[]", sa_column=Column(Text, nullable=False))
    """Ranges of frames that are still to be tracked."""
    created: float = Field(default_factory=time)


class Object(SQLModel, table=True):
    """An object of an image or a video."""

    media_id: str = Field(foreign_key="media.id", primary_key=True)
    number: int = Field(primary_key=True)
    """Number of the object, from 1."""
    name: str
    colour: str
    visible: bool = True
    deleted: bool = False
    """It can be restored by undoing."""


class Result(SQLModel, table=True):
    """The mask of an object in an image or a frame. Rows are never changed, only replaced."""

    __table_args__ = (Index("result_place", "media_id", "object_number", "frame"),)

    id: int | None = Field(default=None, primary_key=True)
    media_id: str = Field(foreign_key="media.id")
    object_number: int
    frame: int = 0
    is_current: bool = True
    """Whether it is shown; others are what undoing goes back to."""
    prompts: str | None = Field(default=None, sa_column=Column(Text))
    """JSON; None for a mask that was tracked."""
    counts: str = Field(sa_column=Column(Text, nullable=False))
    """COCO's compressed run lengths."""
    iou_score: float
    object_score: float | None = None
    state: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    """All that going on needs: logits of an image, the tracker's result of a video."""
    track_number: int = 0
    is_prompted: bool = True
    step: int | None = None
    time: float | None = None
    clicks: bytes | None = Field(default=None, sa_column=Column(LargeBinary))
    conditioned: bytes | None = Field(default=None, sa_column=Column(LargeBinary))


class Edit(SQLModel, table=True):
    """A change that can be undone."""

    id: int | None = Field(default=None, primary_key=True)
    media_id: str = Field(foreign_key="media.id", index=True)
    title: str
    object_number: int
    frame: int | None = None
    before: str = Field(sa_column=Column(Text, nullable=False))
    """JSON: values of the object, and the current result in the frame."""
    after: str = Field(sa_column=Column(Text, nullable=False))
    undone: bool = False


class TrackingJob(SQLModel, table=True):
    """Tracking of a video."""

    __tablename__ = "tracking_job"

    id: str = Field(default_factory=new_id, primary_key=True)
    media_id: str = Field(foreign_key="media.id", index=True)
    user: str
    status: str
    """running, done, cancelled, failed or interrupted."""
    done: int = 0
    total: int = 0
    error: str | None = None
    owner: str
    """The process that runs it."""
    is_cancelled: bool = False
    """Set by any process."""
    created: float = Field(default_factory=time)


class Lease(SQLModel, table=True):
    """Which process works on an image or a video."""

    media_id: str = Field(foreign_key="media.id", primary_key=True)
    owner: str
    expires: float
