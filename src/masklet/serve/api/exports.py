"""Exports."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response
from fastapi.responses import FileResponse
from starlette.background import BackgroundTask

from masklet.serve.api.common import Work
from masklet.serve.api.projects import media_in
from masklet.serve.auth import User
from masklet.serve.exports import IMAGE_FORMATS, VIDEO_FORMATS, export_media, export_project
from masklet.serve.problems import RESPONSES
from masklet.serve.state.rows import media_of, project_of
from masklet.serve.workspace import Workspace

router = APIRouter(prefix="/v1", tags=["exports"], responses=RESPONSES)
FILE: dict[int | str, dict[str, Any]] = {200: {"content": {"application/octet-stream": {}}, "description": "The file."}}
FORMATS = f"Of images: {', '.join(IMAGE_FORMATS)}. Of videos: {', '.join(VIDEO_FORMATS)}"


@router.get("/media/{media_id}/export", response_class=Response, responses=FILE)
def export(
    user: User, ws: Work, media_id: str, format: Annotated[str, Query(description=FORMATS, max_length=40)]
) -> FileResponse:
    """The masks of an image, or the tracks of a video, as a file. Objects' names become classes."""
    with ws.database.reading() as db:
        media = media_of(db, user, media_id)
    return sent(ws, lambda folder: export_media(ws, media, format, folder))


@router.get("/projects/{project_id}/export", response_class=Response, responses=FILE)
def export_all(user: User, ws: Work, project_id: str) -> FileResponse:
    """A project as an archive: images as a COCO data set, videos as JSON lines."""
    with ws.database.reading() as db:
        project_of(db, user, project_id)
        media = list(media_in(db, project_id))
    return sent(ws, lambda folder: export_project(ws, media, folder, "project"))


def sent(ws: Workspace, write: Callable[[Path], Path]) -> FileResponse:
    """The file that ``write`` makes in a temporary folder, which goes when it was sent."""
    folder = Path(tempfile.mkdtemp(dir=ws.settings.data / "exports"))
    try:
        path = write(folder)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    cleaning = BackgroundTask(shutil.rmtree, folder, ignore_errors=True)
    return FileResponse(path, media_type="application/octet-stream", filename=path.name, background=cleaning)
