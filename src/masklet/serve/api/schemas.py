"""What the API takes and returns. Coordinates are pixels of the original image or video, x right and y down."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

MaskFormat = Literal["rle", "polygons"]
Name = Annotated[
    str,
    Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]*\S[^\x00-\x1f\x7f]*$"),
]
Colour = Annotated[str, Field(pattern=r"^#[0-9a-f]{6}$", examples=["#e6194b"])]
FrameNumber = Annotated[int, Field(ge=0, le=2**31 - 1)]
ObjectNumber = Annotated[int, Field(ge=1, le=2**31 - 1)]


class Strict(BaseModel):
    """A body, in which unknown fields are errors."""

    model_config = ConfigDict(extra="forbid")


class Rle(Strict):
    """A mask as COCO's compressed run lengths."""

    size: Annotated[list[int], Field(min_length=2, max_length=2, description="height, width", examples=[[4, 6]])]
    counts: Annotated[str, Field(max_length=50_000_000, examples=["52203"])]


class Prompt(Strict):
    """A prompt for an object: points, a box, a rough mask, or several of them."""

    points: Annotated[
        list[Annotated[list[FiniteFloat], Field(min_length=2, max_length=3)]],
        Field(
            max_length=1000, description="[x, y], or [x, y, 0] for a point beside the object", examples=[[[410, 315]]]
        ),
    ] = []
    box: Annotated[
        list[FiniteFloat] | None, Field(min_length=4, max_length=4, description="x0, y0, x1, y1", examples=[None])
    ] = None
    mask: Annotated[Rle | None, Field(examples=[None])] = None


class FramePromptBody(Prompt):
    """A prompt in an image (frame 0) or in a frame of a video. It adds to the earlier prompts there."""

    frame: FrameNumber = 0


class ObjectPromptBody(FramePromptBody):
    """A prompt for an object of the API."""

    refine: Annotated[
        bool,
        Field(description="false: keep the mask as it is. In a video, a mask without points and box is always kept"),
    ] = True


class PreviewBody(FramePromptBody):
    """A prompt that changes nothing."""

    object: Annotated[ObjectNumber | None, Field(description="Its prompts in the frame are added", examples=[None])] = (
        None
    )


class MaskReply(BaseModel):
    """The mask of an object in an image or a frame."""

    object: int
    frame: int
    segmentation: Rle | None = None
    polygons: list[list[list[list[float]]]] | None = None
    """Rings of each component: the outer one, then holes."""
    iou_score: float
    object_score: float | None = None
    prompts: dict[str, Any] | None = None
    """Points and box of a prompted frame."""
    bbox: list[float]
    """x, y, width, height."""
    area: int


class ProjectBody(Strict):
    """A new project, or its new name."""

    name: Annotated[Name, Field(examples=["cells"])]


class ProjectReply(BaseModel):
    """A project."""

    id: str
    name: str
    created: float
    media: int


class MediaReply(BaseModel):
    """An image or a video."""

    id: str
    project: str
    kind: Literal["image", "video"]
    name: str
    width: int
    height: int
    frames: int
    fps: float
    job: str | None = None
    """The tracking job that is running, or was interrupted."""
    created: float


class FolderBody(Strict):
    """A file of the folder that is annotated in place."""

    path: Annotated[str, Field(min_length=1, max_length=4096, examples=["truck.jpg"])]


class ObjectBody(Strict):
    """A new object."""

    name: Name | None = None
    colour: Colour | None = None


class ObjectChange(ObjectBody):
    """New values of an object."""

    visible: bool | None = None


class ObjectReply(BaseModel):
    """An object."""

    number: int
    name: str
    colour: str
    visible: bool


class LaneReply(BaseModel):
    """Where an object of a video has masks."""

    number: int
    prompted: list[int]
    tracked: list[list[int]]
    """Ranges of frames: first and last."""
    absent: list[list[int]]
    """Ranges of tracked frames in which the object was not found."""


class HistoryReply(BaseModel):
    """What can be undone and done again."""

    undo: str | None
    redo: str | None
    frame: int | None = None
    """Frame of the change that was just undone or redone."""


class TrackingBody(Strict):
    """Which frames to track. By default from the first prompted frame to the end."""

    direction: Literal["forward", "backward", "both"] = "forward"
    start: FrameNumber | None = None
    end: FrameNumber | None = None
    resume: Annotated[bool, Field(description="Go on where the last tracking was cancelled or interrupted")] = False


class JobReply(BaseModel):
    """Tracking of a video."""

    id: str
    media: str
    status: Literal["running", "done", "cancelled", "failed", "interrupted"]
    done: int
    total: int
    error: str | None = None


class EverythingBody(Strict):
    """Options of automatic masks, see ``Segmenter.everything``."""

    frame: FrameNumber = 0
    points_per_side: Annotated[int, Field(ge=1, le=64)] = 16
    iou_threshold: Annotated[float | None, Field(ge=0, le=1)] = None
    stability_threshold: Annotated[float | None, Field(ge=0, le=1)] = None
    min_area: Annotated[int, Field(ge=0, le=10**9)] = 0


class FoundMask(Strict):
    """A mask of an image."""

    segmentation: Rle
    iou_score: Annotated[float, Field(ge=-1, le=2)] = 1.0


class KeepBody(Strict):
    """Masks that become objects, for example those that were found automatically."""

    frame: FrameNumber = 0
    masks: Annotated[list[FoundMask], Field(min_length=1, max_length=500)]


class OneShotObject(Prompt):
    """An object of a stateless request."""

    name: Name | None = None


class OneShotPrompts(Strict):
    """The prompts of a stateless request."""

    objects: Annotated[list[OneShotObject], Field(min_length=1, max_length=100)]


class OneShotMask(BaseModel):
    """A mask of a stateless request."""

    name: str | None = None
    segmentation: Rle | None = None
    polygons: list[list[list[list[float]]]] | None = None
    iou_score: float
    bbox: list[float]
    area: int


class OneShotReply(BaseModel):
    """The masks of a stateless request."""

    width: int
    height: int
    masks: list[OneShotMask]
