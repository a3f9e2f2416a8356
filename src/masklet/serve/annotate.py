"""Prompts in images and videos. All of it runs in the device's thread."""

from __future__ import annotations

import io
import json
import zlib
from typing import Any

import numpy as np
from sqlmodel import Session

from masklet.masks import encode_rle
from masklet.results import Masks
from masklet.serve.api.schemas import KeepBody, ObjectPromptBody, PreviewBody, Prompt, Rle
from masklet.serve.edits import Place, add_object, record, set_current, snapshot
from masklet.serve.problems import Problem
from masklet.serve.scheduler import Busy
from masklet.serve.state.leases import take_lease
from masklet.serve.state.rows import current_result, media_of, object_of
from masklet.serve.state.tables import Media, Result
from masklet.serve.workspace import OpenSession, Workspace, check_frame, mask_of
from masklet.video.journal import StoredFrame, stored_frame


def prompt_object(ws: Workspace, user: str, media_id: str, number: int, prompt: ObjectPromptBody) -> Result:
    """Adds a prompt to an object, and stores its mask.

    In an image this is ``EncodedImage.predict`` with all points so far, the last box, and as ``mask`` the logits of the
    result before, or the new rough mask; a mask that is not to be refined is stored as it is. In a video it is
    ``VideoSession.prompt``.
    """
    with ws.editing(user, media_id) as media:
        with ws.database.reading() as db:
            object_of(db, media, number)
        check_frame(media, prompt.frame)
        check_not_empty(prompt)
        if not prompt.refine and (prompt.mask is None or prompt.points or prompt.box is not None):
            raise Problem(422, "refine: false needs a mask, without points and box")
        predict = prompt_image if media.kind == "image" else prompt_video
        return predict(ws, media, number, prompt)


def check_not_empty(prompt: Prompt) -> None:
    """Raises a Problem for a prompt without anything."""
    if not prompt.points and prompt.box is None and prompt.mask is None:
        raise Problem(422, "the prompt is empty: expected points, a box or a mask")


def prompt_image(ws: Workspace, media: Media, number: int, prompt: ObjectPromptBody) -> Result:
    """A prompt in an image."""
    if prompt.mask is not None and not prompt.refine:
        drawn = mask_of(prompt.mask, (media.height, media.width))
        if not drawn.any():
            raise Problem(422, "the mask is empty: expected at least one pixel")
        return keep(ws, media, found_row(media, number, drawn, 1.0), "draw mask")
    with ws.database.reading() as db:
        before = current_result(db, media.id, number, 0)
    prompts, mask = joined(before, prompt), mask_to_refine(media, before, prompt)
    with ws.encoded(media, 0) as image:
        found = image.predict(points=prompts["points"] or None, box=prompts["box"], mask=mask)
    result = Result(
        media_id=media.id,
        object_number=number,
        prompts=json.dumps(prompts),
        counts=found.to_rle()[0]["counts"],
        iou_score=float(found.iou_scores[0]),
        state=pack_logits(found.logits),
    )
    return keep(ws, media, result, "prompt")


def joined(before: Result | None, prompt: Prompt) -> dict[str, Any]:
    """All prompts of an object in an image or a frame, with a new one. A rough mask replaces what came before."""
    earlier: dict[str, Any] = {"points": [], "box": None, "mask": False}
    if before is not None and before.prompts and prompt.mask is None:
        earlier = json.loads(before.prompts)
    return {
        "points": [*earlier["points"], *prompt.points],
        "box": prompt.box if prompt.box is not None else earlier["box"],
        "mask": earlier["mask"] or prompt.mask is not None,
    }


def mask_to_refine(media: Media, before: Result | None, prompt: Prompt) -> np.ndarray | None:
    """What a prompt in an image refines: its own rough mask, or what was there before: logits, or a mask without."""
    if prompt.mask is not None:
        return mask_of(prompt.mask, (media.height, media.width))
    if before is None:
        return None
    if not before.state:  # no network predicted it
        return mask_of(Rle(size=[media.height, media.width], counts=before.counts), (media.height, media.width))
    return unpack_logits(before.state)


def prompt_video(ws: Workspace, media: Media, number: int, prompt: ObjectPromptBody) -> Result:
    """A prompt in a frame of a video."""
    mask = None if prompt.mask is None else mask_of(prompt.mask, (media.height, media.width))
    with ws.session(media) as opened:
        found = opened.session.prompt(prompt.frame, number, points=prompt.points or None, box=prompt.box, mask=mask)
        with ws.database.reading() as db:
            before = current_result(db, media.id, number, prompt.frame)
        prompts = json.dumps(joined(before, prompt))
        result = video_row(media, stored_frame(opened.session, number, prompt.frame), found, prompts)
        opened.corrected |= result.conditioned is not None
        return keep(ws, media, result, "prompt", opened)


def video_row(media: Media, stored: StoredFrame, masks: Masks, prompts: str | None) -> Result:
    """The row of an object in a frame. ``masks`` is its one mask."""
    return Result(
        media_id=media.id,
        object_number=int(str(stored.object_id)),
        frame=stored.frame,
        prompts=prompts,
        counts=encode_rle(masks.masks)[0]["counts"],
        iou_score=float(masks.iou_scores[0]),
        object_score=stored.object_score,
        state=stored.packed,
        track_number=stored.number,
        is_prompted=stored.is_prompted,
        step=stored.step,
        time=stored.time,
        clicks=stored.clicks,
        conditioned=stored.conditioned,
    )


def keep(ws: Workspace, media: Media, result: Result, title: str, opened: OpenSession | None = None) -> Result:
    """Stores a result of a prompt in one transaction, as a change that can be undone.

    Raises:
        Busy: It took so long that another process has changed the image or video in the meantime.
    """
    with ws.database.writing() as db:
        take_lease(db, media.id, ws.owner)
        store(db, media, result, title)
        version = bump(db, media)
    media.version = version
    if opened is not None:
        opened.version = version
    return result


def store(db: Session, media: Media, result: Result, title: str) -> None:
    """Makes a new result the one that is shown."""
    place = Place(result.object_number, result.frame)
    before = snapshot(db, media, place)
    set_current(db, media.id, place, None)
    db.add(result)
    db.flush()
    record(db, media, title, place, before)
    db.refresh(result)


def bump(db: Session, media: Media) -> int:
    """Counts a change of a session, so that other processes read it again.

    Raises:
        Busy: There was another change since ``media`` was read.
    """
    row = db.get(Media, media.id)
    if row is None or row.version != media.version:
        raise Busy("this was changed by another process of the server. Try again")
    row.version += 1
    db.add(row)
    return row.version


def clear_prompts(ws: Workspace, user: str, media_id: str, number: int, frame: int) -> None:
    """Removes all prompts of an object in an image or a frame."""
    with ws.editing(user, media_id) as media:
        ws.refuse_while_tracking(media)
        check_frame(media, frame)
        place = Place(number, frame)
        with ws.database.writing() as db:
            object_of(db, media, number)
            result = current_result(db, media.id, number, frame)
            if result is None or not result.is_prompted:
                raise Problem(409, f"object {number} has no prompts in frame {frame}")
            before = snapshot(db, media, place)
            set_current(db, media.id, place, None)
            record(db, media, "remove prompts", place, before)
            bump(db, media)


def preview(ws: Workspace, user: str, media_id: str, prompt: PreviewBody) -> Masks:
    """The mask that a prompt would give in an image or in a frame alone. Nothing changes."""
    with ws.database.reading() as db:
        media = media_of(db, user, media_id)
        before = None
        if prompt.object is not None:
            object_of(db, media, prompt.object)
            before = current_result(db, media_id, prompt.object, prompt.frame)
    check_frame(media, prompt.frame)
    check_not_empty(prompt)
    before = before if media.kind == "image" else None  # the tracker's logits are its own
    prompts, mask = joined(before, prompt), mask_to_refine(media, before, prompt)
    with ws.encoded(media, prompt.frame) as image:
        return image.predict(points=prompts["points"] or None, box=prompts["box"], mask=mask)


def keep_masks(ws: Workspace, user: str, media_id: str, body: KeepBody) -> list[int]:
    """Makes an object of each mask; returns their numbers."""
    with ws.editing(user, media_id) as media:
        check_frame(media, body.frame)
        size_hw = media.height, media.width
        masks = [mask_of(one.segmentation, size_hw) for one in body.masks]
        if not all(mask.any() for mask in masks):
            raise Problem(422, "a mask is empty: expected at least one pixel in each")
        numbers = []
        for mask, one in zip(masks, body.masks, strict=True):
            with ws.database.writing() as db:
                row = add_object(db, media, None, None, ws.settings.limits.objects)
                number = row.number
            numbers.append(number)
            if media.kind == "image":
                keep(ws, media, found_row(media, number, mask, one.iou_score), "keep mask")
                continue
            with ws.session(media) as opened:
                found = opened.session.prompt(body.frame, number, mask=mask)
                prompts = json.dumps({"points": [], "box": None, "mask": True})
                stored = stored_frame(opened.session, number, body.frame)
                keep(ws, media, video_row(media, stored, found, prompts), "keep mask", opened)
        return numbers


def found_row(media: Media, number: int, mask: np.ndarray, score: float) -> Result:
    """The row of a mask in an image that was found automatically or drawn, which has no logits."""
    return Result(
        media_id=media.id,
        object_number=number,
        prompts=json.dumps({"points": [], "box": None, "mask": True}),
        counts=encode_rle(mask[None])[0]["counts"],
        iou_score=score,
        state=b"",
    )


def pack_logits(logits: np.ndarray) -> bytes:
    """(1, h, w) float32 as bytes, without loss."""
    file = io.BytesIO()
    np.save(file, logits, allow_pickle=False)
    return zlib.compress(file.getvalue(), level=1)


def unpack_logits(data: bytes) -> np.ndarray:
    """What ``pack_logits`` was given; (1, 0, 0) for a mask without logits."""
    if not data:
        return np.zeros((1, 0, 0), np.float32)
    return np.load(io.BytesIO(zlib.decompress(data)), allow_pickle=False)
