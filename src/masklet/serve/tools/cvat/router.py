"""Nuclio's dashboard: ``/cvat/api/functions`` and ``/cvat/api/function_invocations``.

CVAT is pointed here with CVAT_NUCLIO_HOST and CVAT_NUCLIO_PORT=8000/cvat.
"""

from __future__ import annotations

from io import BytesIO
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Header, HTTPException, Request
from pydantic import BaseModel, ConfigDict, Field

from masklet.errors import PromptError
from masklet.image import EncodedImage
from masklet.images.reading import read_image
from masklet.integrations.cvat.shapes import mask_shape
from masklet.masks import Patch, patches
from masklet.results import Masks
from masklet.serve.auth import User
from masklet.serve.runtime import Runtime
from masklet.serve.tools.cvat.functions import ANNOTATIONS, DETECTOR, INTERACTOR, LABEL, describe
from masklet.serve.tools.cvat.tracks import Tracks
from masklet.serve.tools.encoded_text import image_bytes

router = APIRouter(prefix="/cvat", tags=["CVAT"])

XY = tuple[float, float]
POLYGON_TOLERANCE_PX = 1.0
"""Outlines that a person corrects need few points."""


class Invocation(BaseModel):
    """What CVAT sends to any of the functions."""

    model_config = ConfigDict(extra="ignore")

    image: str = Field(description="The content of an image file, in base64.")
    pos_points: list[XY] = []
    neg_points: list[XY] = []
    obj_bbox: list[Any] | None = Field(default=None, description="Two corners, or four numbers; empty without a box.")
    shapes: list[Any] = Field(default=[], max_length=1000)
    states: list[Any] = Field(default=[], max_length=1000)
    threshold: float | None = None

    def box(self) -> list[float] | None:
        """x0 y0 x1 y1. Raises a PromptError if it is something else."""
        numbers = np.asarray(self.obj_bbox or [], object).ravel().tolist()
        if not numbers:
            return None
        if len(numbers) != 4 or not all(isinstance(number, int | float) for number in numbers):
            raise PromptError(f"obj_bbox is {self.obj_bbox}: expected two corners [[x0, y0], [x1, y1]]")
        return numbers


@router.get("/api/functions")
def list_functions(user: User) -> dict[str, Any]:
    """All functions."""
    return {name: describe(name) for name in ANNOTATIONS}


@router.get("/api/functions/{name}")
def get_function(user: User, name: str) -> dict[str, Any]:
    """One function."""
    return describe(known(name))


@router.post("/api/function_invocations")
async def invoke(
    request: Request, user: User, body: Invocation, x_nuclio_function_name: Annotated[str, Header()]
) -> Any:
    """Runs the function that the header names."""
    runtime: Runtime = request.app.state.runtime
    name, content = known(x_nuclio_function_name), image_bytes(body.image)
    if name == INTERACTOR:
        return await runtime.on_image(user, content, lambda image: interact(image, body), request)
    if name == DETECTOR:
        masks = await runtime.everything(user, content, request)
        return detections(masks, body.threshold or 0.0)
    tracks = Tracks(runtime.sam, runtime.cache, user)
    return await runtime.run(
        user, lambda: tracks.advance(read_image(BytesIO(content)), body.shapes, body.states), request
    )


def known(name: str) -> str:
    """The name of a function. Answers 404 if there is none."""
    if name not in ANNOTATIONS:
        raise HTTPException(404, f"no function {name}: expected one of {', '.join(ANNOTATIONS)}")
    return name


def interact(image: EncodedImage, body: Invocation) -> dict[str, Any]:
    """The mask within its box, whose last column and row belong to it."""
    points = [(*xy, 1) for xy in body.pos_points] + [(*xy, 0) for xy in body.neg_points]
    patch = next(patches(image.predict(points or None, box=body.box()).masks))
    if not patch.inside.size:
        height, width = image.size_hw
        return {"mask": [[0] * width] * height}
    return {"mask": patch.inside.astype(int).tolist(), "bounds": inclusive_box(patch)}


def detections(masks: Masks, threshold: float) -> list[dict[str, Any]]:
    """The masks whose predicted IoU is at least ``threshold``: each as flat pixels and box, and as a polygon."""
    found = []
    for patch, score, mask in zip(patches(masks.masks), masks.iou_scores.tolist(), masks, strict=True):
        if score >= threshold and patch.inside.size:
            outline = mask_shape(np.asarray(mask.masks)[0], "polygon", tolerance=POLYGON_TOLERANCE_PX)
            pixels = [*patch.inside.astype(int).ravel().tolist(), *inclusive_box(patch)]
            found.append(
                {"label": LABEL, "confidence": f"{score:.4f}", "type": "mask", "points": outline, "mask": pixels}
            )
    return found


def inclusive_box(patch: Patch) -> list[int]:
    """x0 y0 x1 y1, of which the last column and row belong to the mask."""
    (x0, y0), (rows, columns) = patch.corner_xy, patch.inside.shape
    return [x0, y0, x0 + columns - 1, y0 + rows - 1]
