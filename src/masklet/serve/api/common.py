"""What the endpoints share."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import numpy as np
from fastapi import Depends, Query, Request

from masklet.results import Masks
from masklet.serve.api.schemas import MaskFormat, MaskReply, Rle
from masklet.serve.state.tables import Media, Result
from masklet.serve.workspace import Workspace

Answer = TypeVar("Answer")


def workspace_of(request: Request) -> Workspace:
    """The workspace of the server."""
    return request.app.state.workspace


Work = Annotated[Workspace, Depends(workspace_of)]
AskedFormat = Annotated[MaskFormat, Query(alias="format", description="rle: COCO's run lengths; polygons: outlines")]
Tolerance = Annotated[float, Query(ge=0, le=1000, description="Leaves out points of polygons; 0: exact outlines")]


async def on_device(request: Request, user: str, work: Callable[..., Answer], *arguments: Any) -> Answer:
    """Runs a function of the workspace in the device's thread; it is withdrawn if the client goes."""
    ws = workspace_of(request)
    return await ws.runtime.run(user, lambda: work(ws, user, *arguments), request)


def packed(result: Result, media: Media) -> Masks:
    """The mask of a row."""
    rle: Any = {"size": [media.height, media.width], "counts": result.counts}
    return Masks.from_rle(
        [rle], (media.height, media.width), np.array([result.iou_score], np.float32), np.array([result.object_number])
    )


def mask_reply(result: Result, media: Media, format: MaskFormat = "rle", tolerance: float = 0.0) -> MaskReply:
    """The mask of a row, as it is sent."""
    values = mask_values(packed(result, media), format, tolerance)
    return MaskReply(
        object=result.object_number,
        frame=result.frame,
        object_score=result.object_score,
        prompts=json.loads(result.prompts) if result.prompts else None,
        **values,
    )


def mask_values(mask: Masks, format: MaskFormat, tolerance: float) -> dict[str, Any]:
    """Segmentation, box, area and score of one mask."""
    x0, y0, x1, y1 = map(float, mask.boxes[0])
    values: dict[str, Any] = {
        "iou_score": float(mask.iou_scores[0]),
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "area": int(mask.areas[0]),
    }
    if format == "rle":
        (rle,) = mask.to_rle()
        return {**values, "segmentation": Rle(size=list(rle["size"]), counts=rle["counts"])}
    (polygons,) = mask.to_polygons(tolerance=tolerance)
    return {**values, "polygons": [[ring.tolist() for ring in (one.exterior, *one.holes)] for one in polygons]}
