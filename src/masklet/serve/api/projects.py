"""Projects, and the images and videos in them."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response, UploadFile
from fastapi.responses import FileResponse
from PIL import Image
from sqlalchemy import delete, func
from sqlmodel import Session, col, select

from masklet.everything.options import EverythingOptions
from masklet.images.reading import read_image
from masklet.serve.api.common import Work, on_device
from masklet.serve.api.schemas import FolderBody, FrameNumber, MediaReply, ProjectBody, ProjectReply
from masklet.serve.auth import User
from masklet.serve.library import check_pixels, display_name, file_of, files_in, inside, inspect
from masklet.serve.problems import RESPONSES, Problem
from masklet.serve.state.leases import take_lease
from masklet.serve.state.rows import media_of, project_of
from masklet.serve.state.tables import Edit, Lease, Media, Object, Project, Result, TrackingJob, new_id
from masklet.serve.workspace import Workspace

router = APIRouter(prefix="/v1", tags=["projects and media"], responses=RESPONSES)
JPEG: dict[int | str, dict[str, Any]] = {200: {"content": {"image/jpeg": {}}, "description": "The image."}}
FRAME_QUALITY, THUMBNAIL_SIDE = 90, 160


@router.get("/me")
def who_am_i(user: User, ws: Work) -> dict[str, Any]:
    """The user of the token, and what the server offers."""
    limits = ws.settings.limits
    return {
        "user": user,
        "folder": ws.settings.folder is not None,
        "limits": {"upload_bytes": limits.upload_bytes, "pixels": limits.pixels, "duration": limits.duration},
        "input_size": list(ws.runtime.sam.image_processor.input_hw),
        "iou_threshold": EverythingOptions.for_model(ws.runtime.sam.engine.config, {}).iou_threshold,
    }


@router.get("/projects")
def list_projects(user: User, ws: Work) -> list[ProjectReply]:
    """Your projects, newest first."""
    with ws.database.reading() as db:
        counts = select(Media.project_id, func.count()).where(Media.user == user).group_by(col(Media.project_id))
        counted = dict(db.exec(counts).all())
        rows = db.exec(select(Project).where(Project.user == user).order_by(col(Project.created).desc())).all()
        return [ProjectReply(**row.model_dump(), media=counted.get(row.id, 0)) for row in rows]


@router.post("/projects", status_code=201)
def create_project(user: User, ws: Work, body: ProjectBody) -> ProjectReply:
    """Makes a project."""
    with ws.database.writing() as db:
        row = Project(user=user, name=body.name)
        db.add(row)
    return ProjectReply(**row.model_dump(), media=0)


@router.patch("/projects/{project_id}")
def rename_project(user: User, ws: Work, project_id: str, body: ProjectBody) -> ProjectReply:
    """Renames a project."""
    with ws.database.writing() as db:
        row = project_of(db, user, project_id)
        row.name = body.name
        db.add(row)
        count = len(media_in(db, project_id))
    return ProjectReply(**row.model_dump(), media=count)


@router.delete("/projects/{project_id}", status_code=204)
async def delete_project(request: Request, user: User, project_id: str) -> None:
    """Deletes a project with its uploads and masks. Files of the folder stay."""
    await on_device(request, user, deleted_project, project_id)


def deleted_project(ws: Workspace, user: str, project_id: str) -> None:
    """See ``delete_project``."""
    with ws.database.writing() as db:
        row = project_of(db, user, project_id)
        media = media_in(db, project_id)
        for one in media:
            delete_rows(ws, db, one)
        db.flush()
        db.delete(row)
    for one in media:
        forget_files(ws, one)


@router.get("/folder")
def list_folder(user: User, ws: Work) -> list[str]:
    """Files of the folder that is annotated in place. Empty if the server has none."""
    return [] if ws.settings.folder is None else list(files_in(ws.settings.folder))


@router.get("/projects/{project_id}/media")
def list_media(user: User, ws: Work, project_id: str) -> list[MediaReply]:
    """The images and videos of a project, in the order in which they were added."""
    with ws.database.reading() as db:
        project_of(db, user, project_id)
        rows = media_in(db, project_id)
    return [media_reply(ws, row) for row in rows]


@router.post("/projects/{project_id}/media", status_code=201)
def upload_media(user: User, ws: Work, project_id: str, file: UploadFile) -> MediaReply:
    """Uploads an image or a video. What it is, is decided by its content."""
    check_room(ws, user, project_id)
    media_id = new_id()
    uploads = ws.settings.data / "uploads"
    path = uploads / media_id
    try:
        with path.open("xb") as copy:
            shutil.copyfileobj(file.file, copy)
            if copy.tell() > ws.settings.limits.upload_bytes:
                raise Problem(413, f"the file is too large: expected at most {ws.settings.limits.upload_bytes:,} bytes")
            copy.flush()
            os.fsync(copy.fileno())
        content = inspect(path, ws.settings.limits)
        return add_media(ws, user, project_id, path, content, name=display_name(file.filename), media_id=media_id)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


@router.post("/projects/{project_id}/folder-media", status_code=201)
def add_from_folder(user: User, ws: Work, project_id: str, body: FolderBody) -> MediaReply:
    """Adds a file of the folder, which stays where it is. Adding it again returns the same."""
    check_room(ws, user, project_id)
    path = inside(ws.settings.folder, body.path)
    if path is None or ws.settings.folder is None:
        raise Problem(404, "the folder has no such file: GET /v1/folder lists them")
    relative = path.relative_to(ws.settings.folder.resolve()).as_posix()
    with ws.database.reading() as db:
        same = (Media.project_id == project_id, col(Media.in_folder).is_(True), Media.path == relative)
        known = db.exec(select(Media).where(*same)).first()
    if known is not None:
        return media_reply(ws, known)
    content = inspect(path, ws.settings.limits)
    return add_media(ws, user, project_id, path, content, name=display_name(path.name), relative=relative)


@router.get("/media/{media_id}")
def get_media(user: User, ws: Work, media_id: str) -> MediaReply:
    """An image or a video."""
    with ws.database.reading() as db:
        row = media_of(db, user, media_id)
    return media_reply(ws, row)


@router.delete("/media/{media_id}", status_code=204)
async def delete_media(request: Request, user: User, media_id: str) -> None:
    """Deletes an image or a video with its masks. A file of the folder stays."""
    await on_device(request, user, deleted_media, media_id)


def deleted_media(ws: Workspace, user: str, media_id: str) -> None:
    """See ``delete_media``."""
    with ws.database.writing() as db:
        row = media_of(db, user, media_id)
        delete_rows(ws, db, row)
    forget_files(ws, row)


@router.get("/media/{media_id}/file", response_class=Response)
def get_file(user: User, ws: Work, media_id: str) -> FileResponse:
    """The file as it was uploaded."""
    with ws.database.reading() as db:
        row = media_of(db, user, media_id)
    return FileResponse(file_of(ws.settings, row), media_type="application/octet-stream", filename=row.name)


@router.get("/media/{media_id}/frames/{frame}.jpg", response_class=Response, responses=JPEG)
def get_frame(
    user: User,
    ws: Work,
    media_id: str,
    frame: FrameNumber,
    side: Annotated[
        int | None, Query(ge=16, le=8192, description="Longest side, in pixels; by default as it is")
    ] = None,
) -> Response:
    """An image, or a frame of a video, upright, as a JPEG."""
    with ws.database.reading() as db:
        row = media_of(db, user, media_id)
    pixels = (
        read_image(file_of(ws.settings, row)) if row.kind == "image" and frame == 0 else ws.frame_pixels(row, frame)
    )
    check_pixels((pixels.shape[0], pixels.shape[1]), ws.settings.limits)
    image = Image.fromarray(pixels)
    if side is not None:
        image.thumbnail((side, side))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=FRAME_QUALITY)
    return Response(file.getvalue(), media_type="image/jpeg", headers={"Cache-Control": "private, max-age=86400"})


def media_in(db: Session, project_id: str) -> Sequence[Media]:
    """The images and videos of a project."""
    return db.exec(select(Media).where(Media.project_id == project_id).order_by(col(Media.created))).all()


def check_room(ws: Workspace, user: str, project_id: str) -> None:
    """Raises a Problem unless one more image may be added to a project of the user."""
    with ws.database.reading() as db:
        project_of(db, user, project_id)
        count = db.exec(select(func.count()).select_from(Media).where(Media.user == user)).one()
    if count >= ws.settings.limits.media:
        raise Problem(413, f"you have {count} images and videos: expected at most {ws.settings.limits.media}")


def add_media(
    ws: Workspace,
    user: str,
    project_id: str,
    path: Path,
    content: Any,
    *,
    name: str,
    media_id: str | None = None,
    relative: str | None = None,
) -> MediaReply:
    """The row of a file that was inspected."""
    row = Media(
        id=media_id or new_id(),
        project_id=project_id,
        user=user,
        kind=content.kind,
        name=name,
        in_folder=relative is not None,
        path=relative or path.name,
        width=content.size_hw[1],
        height=content.size_hw[0],
        frames=content.frames,
        fps=content.fps,
    )
    with ws.database.writing() as db:
        project_of(db, user, project_id)  # it may have been deleted meanwhile
        db.add(row)
    return media_reply(ws, row)


def delete_rows(ws: Workspace, db: Session, media: Media) -> None:
    """Deletes everything that the database holds about an image or a video.

    Raises:
        Problem: It is being tracked.
        Busy: Another process works on it.
    """
    ws.refuse_while_tracking(media)
    take_lease(db, media.id, ws.owner)
    db.flush()
    for table in (Edit, Result, Object, TrackingJob, Lease):
        db.exec(delete(table).where(col(table.media_id) == media.id))
    db.flush()
    db.delete(media)


def forget_files(ws: Workspace, media: Media) -> None:
    """Removes what was beside the database."""
    ws.forget(media.id)
    if not media.in_folder:
        (ws.settings.data / "uploads" / media.path).unlink(missing_ok=True)


def media_reply(ws: Workspace, row: Media) -> MediaReply:
    """A row, as it is sent."""
    job = ws.interrupted_job(row.id) if row.kind == "video" else None
    return MediaReply(**row.model_dump(), project=row.project_id, job=None if job is None else job.id)
