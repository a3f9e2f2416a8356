"""The interface of osam, with which labelme runs models: ``POST /osam/api/generate``."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, HTTPException, Request
from pydantic import BaseModel, Field

from masklet.errors import ImageError, PromptError
from masklet.masks import patches
from masklet.results import Masks
from masklet.serve.auth import User
from masklet.serve.runtime import Runtime
from masklet.serve.tools.encoded_text import image_bytes, png_text
from masklet.serve.tools.objects import Box, ObjectPrompt, objects_of, predict

BACKGROUND, FOREGROUND, TOP_LEFT, BOTTOM_RIGHT = range(4)
IGNORED = -1

router = APIRouter(prefix="/osam", tags=["osam"])


class Prompt(BaseModel):
    """Points with labels: -1 ignored, 0 background, 1 foreground, 2 and 3 the corners of a box."""

    points: Annotated[list[tuple[float, float]], Field(max_length=1000)] | None = None
    point_labels: Annotated[list[int], Field(max_length=1000)] | None = None
    texts: list[str] | None = None

    def objects(self) -> list[ObjectPrompt]:
        """The objects that are prompted. Several boxes are several objects.

        Raises:
            PromptError: Points and labels do not fit together; the prompt is text.
        """
        points, labels = self.points or [], self.point_labels or []
        if not points:
            raise PromptError("the prompt has no points: texts are not understood, expected points with point_labels")
        if len(points) != len(labels) or not set(labels) <= {IGNORED, *range(4)}:
            raise PromptError(
                f"{len(points)} points and the labels {labels[:10]}: expected for each point one of 0 background, "
                "1 foreground, 2 top left and 3 bottom right of a box"
            )
        clicks = [(x, y, label) for (x, y), label in zip(points, labels, strict=True) if label in (0, 1)]
        corners = [
            [xy for xy, label in zip(points, labels, strict=True) if label == corner]
            for corner in (TOP_LEFT, BOTTOM_RIGHT)
        ]
        if len(corners[0]) != len(corners[1]):
            raise PromptError(f"{len(corners[0])} top left and {len(corners[1])} bottom right corners: expected pairs")
        boxes: list[Box] = [(*first, *last) for first, last in zip(*corners, strict=True)]
        return objects_of(clicks, boxes)


class Generate(BaseModel):
    """A request."""

    model: str = Field(description="Any name: the server has one model, and answers with the name that came.")
    image: str = Field(description="The content of an image file, in base64.")
    prompt: Prompt | None = Field(default=None, description="Without it, all objects of the image are returned.")


@router.get("/")
def index() -> str:
    """Whether the server is there."""
    return "masklet is running"


@router.post("/api/generate")
async def generate(request: Request, user: User, body: Generate) -> dict[str, Any]:
    """Segments an image. Masks are PNGs in base64, cropped to their boxes."""
    runtime: Runtime = request.app.state.runtime

    try:
        content = image_bytes(body.image)
        if (prompt := body.prompt) is None:
            masks = await runtime.everything(user, content, request)
        else:
            masks = await runtime.on_image(user, content, lambda image: predict(image, prompt.objects()), request)
    except (ImageError, PromptError) as error:
        raise HTTPException(400, str(error)) from error
    return {"model": body.model, "image_embedding": None, "annotations": annotations_of(masks)}


def annotations_of(masks: Masks) -> list[dict[str, Any]]:
    """The masks that are not empty. Boxes include their last column and row."""
    found = []
    for patch, score in zip(patches(masks.masks), masks.iou_scores.tolist(), strict=True):
        if patch.inside.size:
            (x0, y0), (rows, columns) = patch.corner_xy, patch.inside.shape
            box = {"xmin": x0, "ymin": y0, "xmax": x0 + columns - 1, "ymax": y0 + rows - 1}
            mask = png_text(patch.inside.astype(np.uint8) * 255)
            found.append({"bounding_box": box, "text": None, "score": score, "mask": mask})
    return found
