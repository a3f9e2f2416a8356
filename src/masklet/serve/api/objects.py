"""Objects, prompts, masks, undo and redo."""

from __future__ import annotations

import io
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from PIL import Image
from sqlmodel import Session, col, select

from masklet.serve.annotate import clear_prompts, keep_masks, preview, prompt_object
from masklet.serve.api.common import AskedFormat, Tolerance, Work, mask_reply, mask_values, on_device, packed
from masklet.serve.api.schemas import (
    FrameNumber,
    HistoryReply,
    KeepBody,
    LaneReply,
    MaskReply,
    ObjectBody,
    ObjectChange,
    ObjectNumber,
    ObjectPromptBody,
    ObjectReply,
    OneShotMask,
    PreviewBody,
)
from masklet.serve.auth import User
from masklet.serve.edits import Place, add_object, record, snapshot, undo
from masklet.serve.problems import RESPONSES, Problem
from masklet.serve.state.rows import current_result, media_of, object_of, objects_in, results_in
from masklet.serve.state.tables import Edit, Object, Result
from masklet.serve.workspace import Workspace
from masklet.video.frames import consecutive

router = APIRouter(prefix="/v1/media/{media_id}", tags=["objects and masks"], responses=RESPONSES)
PNG: dict[int | str, dict[str, Any]] = {
    200: {"content": {"image/png": {}}, "description": "The mask: 255 inside, 0 outside."}
}
AskedFrame = Annotated[FrameNumber, Query(description="0 for an image")]


@router.get("/objects")
def list_objects(user: User, ws: Work, media_id: str) -> list[ObjectReply]:
    """The objects of an image or a video."""
    with ws.database.reading() as db:
        media_of(db, user, media_id)
        return [object_reply(row) for row in objects_in(db, media_id)]


@router.post("/objects", status_code=201)
async def create_object(request: Request, user: User, media_id: str, body: ObjectBody) -> ObjectReply:
    """Adds an object, which has no mask until it is prompted."""
    return await on_device(request, user, new_object, media_id, body)


def new_object(ws: Workspace, user: str, media_id: str, body: ObjectBody) -> ObjectReply:
    """See ``create_object``."""
    with ws.editing(user, media_id) as media, ws.database.writing() as db:
        return object_reply(add_object(db, media, body.name, body.colour, ws.settings.limits.objects))


@router.patch("/objects/{number}")
async def change_object(
    request: Request, user: User, media_id: str, number: ObjectNumber, body: ObjectChange
) -> ObjectReply:
    """Changes the name, the colour or the visibility of an object."""
    return await on_device(request, user, changed_object, media_id, number, body)


def changed_object(ws: Workspace, user: str, media_id: str, number: int, body: ObjectChange) -> ObjectReply:
    """See ``change_object``."""
    with ws.editing(user, media_id) as media, ws.database.writing() as db:
        row, place = object_of(db, media, number), Place(number)
        before = snapshot(db, media, place)
        for name, value in body.model_dump(exclude_none=True).items():
            setattr(row, name, value)
        db.add(row)
        if snapshot(db, media, place) != before:  # showing and hiding is not undone
            record(db, media, f"change {row.name}", place, before)
        return object_reply(row)


@router.delete("/objects/{number}", status_code=204)
async def delete_object(request: Request, user: User, media_id: str, number: ObjectNumber) -> None:
    """Deletes an object with its masks. It can be undone."""
    await on_device(request, user, deleted_object, media_id, number)


def deleted_object(ws: Workspace, user: str, media_id: str, number: int) -> None:
    """See ``delete_object``."""
    with ws.editing(user, media_id) as media:
        ws.refuse_while_tracking(media)
        with ws.database.writing() as db:
            media, place = media_of(db, user, media_id), Place(number)
            row, before = object_of(db, media, number), snapshot(db, media, Place(number))
            row.deleted = True
            media.version += 1
            db.add_all([row, media])
            record(db, media, f"delete {row.name}", place, before)


@router.post("/objects/{number}/prompts")
async def prompt(
    request: Request,
    user: User,
    media_id: str,
    number: ObjectNumber,
    body: ObjectPromptBody,
    format: AskedFormat = "rle",
    tolerance: Tolerance = 0.0,
) -> MaskReply:
    """Prompts an object, or corrects it. The mask is saved before this answers."""
    result = await on_device(request, user, prompt_object, media_id, number, body)
    return reply_of(request.app.state.workspace, user, media_id, result, format, tolerance)


@router.delete("/objects/{number}/prompts", status_code=204)
async def remove_prompts(
    request: Request, user: User, media_id: str, number: ObjectNumber, frame: AskedFrame = 0
) -> None:
    """Removes all prompts of an object in an image or a frame, with the mask there."""
    await on_device(request, user, clear_prompts, media_id, number, frame)


@router.post("/preview")
async def preview_prompt(
    request: Request, user: User, media_id: str, body: PreviewBody, format: AskedFormat = "rle"
) -> OneShotMask:
    """The mask that a prompt would give in an image, or in a frame on its own. Nothing is saved."""
    found = await on_device(request, user, preview, media_id, body)
    return OneShotMask(**mask_values(found, format, 0.0))


@router.post("/objects-from-masks", status_code=201)
async def objects_from_masks(request: Request, user: User, media_id: str, body: KeepBody) -> list[ObjectReply]:
    """Makes an object of each mask, for example of those that ``everything`` found."""
    numbers = await on_device(request, user, keep_masks, media_id, body)
    with request.app.state.workspace.database.reading() as db:
        return [object_reply(row) for row in objects_in(db, media_id) if row.number in numbers]


@router.get("/masks")
def list_masks(
    user: User, ws: Work, media_id: str, frame: AskedFrame = 0, format: AskedFormat = "rle", tolerance: Tolerance = 0.0
) -> list[MaskReply]:
    """The masks of all objects in an image or a frame."""
    with ws.database.reading() as db:
        media = media_of(db, user, media_id)
        rows = results_in(db, media_id, frame)
    return [mask_reply(row, media, format, tolerance) for row in rows]


@router.get("/objects/{number}/mask.png", response_class=Response, responses=PNG)
def get_mask_png(user: User, ws: Work, media_id: str, number: ObjectNumber, frame: AskedFrame = 0) -> Response:
    """The mask of an object as a PNG."""
    with ws.database.reading() as db:
        media = media_of(db, user, media_id)
        object_of(db, media, number)
        row = current_result(db, media_id, number, frame)
    if row is None:
        raise Problem(404, f"object {number} has no mask in frame {frame}")
    file = io.BytesIO()
    Image.fromarray(packed(row, media).masks[0]).convert("L").save(file, "PNG")
    return Response(file.getvalue(), media_type="image/png")


@router.get("/lanes")
def list_lanes(user: User, ws: Work, media_id: str) -> list[LaneReply]:
    """In which frames each object of a video is prompted, tracked and absent."""
    columns = col(Result.object_number), col(Result.frame), col(Result.is_prompted), col(Result.object_score)
    with ws.database.reading() as db:
        media_of(db, user, media_id)
        numbers = [row.number for row in objects_in(db, media_id)]
        chosen = select(*columns).where(Result.media_id == media_id, col(Result.is_current).is_(True))
        rows = db.exec(chosen.order_by(col(Result.frame))).all()
    return [lane(number, [row for row in rows if row[0] == number]) for number in numbers]


def lane(number: int, rows: list[tuple[int, int, bool, float | None]]) -> LaneReply:
    """The lane of one object, from its rows in the order of frames."""
    prompted = [frame for _, frame, is_prompted, _ in rows if is_prompted]
    tracked = [frame for _, frame, is_prompted, _ in rows if not is_prompted]
    absent = [frame for _, frame, is_prompted, score in rows if not is_prompted and (score or 0) <= 0]
    ends = [[[one[0], one[-1]] for one in consecutive(frames)] for frames in (tracked, absent)]
    return LaneReply(number=number, prompted=prompted, tracked=ends[0], absent=ends[1])


@router.get("/history")
def get_history(user: User, ws: Work, media_id: str) -> HistoryReply:
    """What ``undo`` and ``redo`` would do."""
    with ws.database.reading() as db:
        media_of(db, user, media_id)
        return history(db, media_id)


@router.post("/undo")
async def undo_edit(request: Request, user: User, media_id: str) -> HistoryReply:
    """Undoes the last change of an image or a video."""
    return await on_device(request, user, go_back, media_id, False)


@router.post("/redo")
async def redo_edit(request: Request, user: User, media_id: str) -> HistoryReply:
    """Does the last undone change again."""
    return await on_device(request, user, go_back, media_id, True)


def go_back(ws: Workspace, user: str, media_id: str, redo: bool) -> HistoryReply:
    """See ``undo_edit`` and ``redo_edit``."""
    with ws.editing(user, media_id) as media:
        ws.refuse_while_tracking(media)
        with ws.database.writing() as db:
            media = media_of(db, user, media_id)
            edit = undo(db, media, redo=redo)
            db.flush()
            reply = history(db, media_id)
            reply.frame = edit.frame
            return reply


def history(db: Session, media_id: str) -> HistoryReply:
    """The next changes to undo and to redo."""
    chosen = select(Edit.title).where(Edit.media_id == media_id)
    undone = chosen.where(col(Edit.undone).is_(True)).order_by(col(Edit.id))
    done = chosen.where(col(Edit.undone).is_(False)).order_by(col(Edit.id).desc())
    return HistoryReply(undo=db.exec(done).first(), redo=db.exec(undone).first())


def object_reply(row: Object) -> ObjectReply:
    """A row, as it is sent."""
    return ObjectReply(**row.model_dump())


def reply_of(ws: Workspace, user: str, media_id: str, result: Result, format: str, tolerance: float) -> MaskReply:
    """The mask that was just made."""
    with ws.database.reading() as db:
        media = media_of(db, user, media_id)
    return mask_reply(result, media, format, tolerance)  # type: ignore[arg-type]
