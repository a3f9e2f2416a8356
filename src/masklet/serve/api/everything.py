"""Automatic masks, and stateless requests."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, File, Form, Request, UploadFile
from fastapi.concurrency import run_in_threadpool
from PIL import Image
from pydantic import ValidationError

from masklet.image import EncodedImage
from masklet.images.reading import read_image
from masklet.results import Masks
from masklet.serve.annotate import check_not_empty
from masklet.serve.api.common import AskedFormat, Tolerance, Work, mask_values
from masklet.serve.api.schemas import EverythingBody, FoundMask, OneShotMask, OneShotPrompts, OneShotReply, Rle
from masklet.serve.auth import User
from masklet.serve.library import check_pixels, file_of
from masklet.serve.problems import RESPONSES, Problem
from masklet.serve.runtime import interruptible
from masklet.serve.state.rows import media_of
from masklet.serve.workspace import Workspace, check_frame, mask_of

router = APIRouter(prefix="/v1", tags=["automatic masks and stateless requests"], responses=RESPONSES)
Upload = Annotated[UploadFile, File(description="An image file")]


@router.post("/media/{media_id}/everything")
async def everything(request: Request, user: User, ws: Work, media_id: str, body: EverythingBody) -> list[FoundMask]:
    """Finds all masks of an image or of a frame, from high to low predicted IoU. ``objects-from-masks`` keeps some."""
    with ws.database.reading() as db:
        media = media_of(db, user, media_id)
    check_frame(media, body.frame)
    options = body.model_dump(exclude={"frame"}, exclude_none=True)

    def work(pause: Callable[[], None]) -> Masks:
        pixels = file_of(ws.settings, media) if media.kind == "image" else ws.frame_pixels(media, body.frame)
        return interruptible(ws.runtime.sam, pause).everything(pixels, packed=True, **options)

    found = await ws.runtime.run_long(user, work, request)
    pairs = zip(found.to_rle(), found.iou_scores.tolist(), strict=True)
    return [FoundMask(segmentation=Rle.model_validate(rle), iou_score=score) for rle, score in pairs]


@router.post("/predict")
async def predict(
    request: Request,
    user: User,
    ws: Work,
    image: Upload,
    prompts: Annotated[
        str, Form(description="JSON, see OneShotPrompts", examples=['{"objects": [{"points": [[410, 315]]}]}'])
    ],
    format: AskedFormat = "rle",
    tolerance: Tolerance = 0.0,
) -> OneShotReply:
    """Masks of an image, one for each object of ``prompts``. Nothing is saved."""
    asked, content = parse(prompts), await image.read()
    size_hw = await run_in_threadpool(checked_size, ws, content)

    def work(encoded: EncodedImage) -> list[Masks]:
        return [predicted(encoded, one) for one in asked.objects]

    masks = await ws.runtime.on_image(user, content, work, request)
    replies = [
        OneShotMask(name=one.name, **mask_values(mask, format, tolerance))
        for one, mask in zip(asked.objects, masks, strict=True)
    ]
    return OneShotReply(width=size_hw[1], height=size_hw[0], masks=replies)


@router.post("/everything")
async def everything_once(
    request: Request,
    user: User,
    ws: Work,
    image: Upload,
    points_per_side: Annotated[int, Form(ge=1, le=64)] = 16,
    format: AskedFormat = "rle",
    tolerance: Tolerance = 0.0,
) -> OneShotReply:
    """All masks of an image. Nothing is saved."""
    content = await image.read()
    size_hw = await run_in_threadpool(checked_size, ws, content)

    found = await ws.runtime.everything(user, content, request, points_per_side=points_per_side)
    masks = [OneShotMask(**mask_values(mask, format, tolerance)) for mask in found]
    return OneShotReply(width=size_hw[1], height=size_hw[0], masks=masks)


def parse(prompts: str) -> OneShotPrompts:
    """The prompts of a form.

    Raises:
        Problem: They are not JSON, or invalid.
    """
    try:
        return OneShotPrompts.model_validate_json(prompts)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, ("prompts", *first["loc"])))
        raise Problem(422, f"{place}: {first['msg']}") from error


def predicted(encoded: EncodedImage, one: Any) -> Masks:
    """The mask of one object."""
    check_not_empty(one)
    mask = None if one.mask is None else mask_of(one.mask, encoded.size_hw)
    return encoded.predict(points=one.points or None, box=one.box, mask=mask)


def checked_size(ws: Workspace, content: bytes) -> tuple[int, int]:
    """(height, width) of an image that is within the limits, upright.

    Raises:
        ImageError: It is not an image.
        Problem: It has too many pixels.
    """
    try:
        with Image.open(io.BytesIO(content)) as image:
            check_pixels(image.size[::-1], ws.settings.limits)
    except Image.DecompressionBombError as error:
        raise Problem(413, f"the image has too many pixels: expected at most {ws.settings.limits.pixels:,}") from error
    except (OSError, ValueError, SyntaxError) as error:
        raise Problem(422, "the file is not an image that can be read, or it is damaged") from error
    height, width = read_image(io.BytesIO(content)).shape[:2]
    return height, width
