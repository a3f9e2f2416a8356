"""Shapes that CVAT tracks, a frame at a time.

A track is a stream with one object. CVAT hands its state back with the next frame: JSON that names the stream, which
stays in the cache of the server. If it had to leave the cache, or the server was restarted, the object's last box
prompts a new stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import uuid4

from pydantic import BaseModel, Field, ValidationError

from masklet.config import SizeHW
from masklet.errors import ImageError, PromptError
from masklet.image import EncodedImage
from masklet.integrations.cvat.shapes import ShapeType, check_shape_type, mask_shape, shape_prompt
from masklet.masks import mask_boxes
from masklet.segmenter import Segmenter
from masklet.serve.cache import Cache
from masklet.video.stream import VideoStream

OBJECT = 1
"""The id of the only object of a stream."""
MARGIN = 0.1
"""Margin of the box in which an object is searched in the next frame, as a share of its width and height."""


class State(BaseModel):
    """The state of a track, as CVAT keeps it."""

    id: str = Field(max_length=64)
    step: int
    """Frames tracked before this one."""
    kind: ShapeType
    is_flat: bool
    """Whether CVAT gave the shape as a list of numbers, without its type."""
    shape: list[float]
    """The last one."""
    box: tuple[float, float, float, float]
    """The last one, x0 y0 x1 y1."""
    size_hw: tuple[int, int]


class Lost(Exception):
    """The stream is no longer in the cache."""


class Tracks:
    """The tracks of one user.

    Args:
        sam: The model.
        cache: Keeps the streams: for each track that of its last frame, and the one before, in case a reply gets lost.
        user: Owner of the tracks.
    """

    def __init__(self, sam: Segmenter, cache: Cache, user: str) -> None:
        self.sam = sam
        self.cache = cache
        self.user = user

    def advance(self, image: Any, shapes: Sequence[Any], states: Sequence[Any]) -> dict[str, Any]:
        """Begins tracks whose state is None, and tracks the others into the next frame.

        Args:
            image: The frame.
            shapes: Shape of each track: numbers, or {"type", "points"}. Only those that begin are read.
            states: State of each track from the frame before, or None.

        Returns:
            ``shapes`` and ``states`` for the next call.

        Raises:
            PromptError: There are not as many shapes as states; a shape or a state is invalid.
        """
        states = [*states, *[None] * (len(shapes) - len(states))]
        shapes = [*shapes, *[None] * (len(states) - len(shapes))]
        frame = self.sam.stream().encode(image)
        tracked = [
            self.begin(frame, shape) if state is None else self.step(frame, read_state(state))
            for shape, state in zip(shapes, states, strict=True)
        ]
        return {
            "shapes": [shape_of(state) for state in tracked],
            "states": [state.model_dump(mode="json") for state in tracked],
        }

    def begin(self, frame: EncodedImage, shape: Any) -> State:
        """A new track. CVAT's shape stays as the user drew it."""
        kind, points, is_flat = read_shape(shape)
        prompt = shape_prompt(kind, points, frame.size_hw)
        box = prompt["box"] if "box" in prompt else mask_boxes(prompt["mask"][None])[0].tolist()
        stream = self.sam.stream()
        stream.push(frame, {OBJECT: prompt})
        state = State(
            id=uuid4().hex, step=0, kind=kind, is_flat=is_flat, shape=points, box=tuple(box), size_hw=frame.size_hw
        )
        self.keep(state, stream)
        return state

    def step(self, frame: EncodedImage, state: State) -> State:
        """The track in the next frame. Where the object is out of sight, its last shape stays."""
        if frame.size_hw != tuple(state.size_hw):
            raise ImageError(
                f"the frame is {frame.size_hw} pixels, those before were {state.size_hw}: expected one size"
            )
        try:
            with self.cache.use(self.key(state), lost, stream_bytes) as stream:
                stream = stream.copy()
            result = stream.push(frame)
        except Lost:
            stream = self.sam.stream()
            result = stream.push(frame, {OBJECT: {"box": widened(state.box, frame.size_hw)}})
        changes: dict[str, Any] = {"step": state.step + 1}
        mask = result[OBJECT].masks[0]
        if result.visible[0] and (points := mask_shape(mask, state.kind)) is not None:
            changes |= {"shape": points, "box": tuple(mask_boxes(mask[None])[0].tolist())}
        following = state.model_copy(update=changes)
        self.keep(following, stream)
        self.cache.drop(self.key(state, -1))
        return following

    def keep(self, state: State, stream: VideoStream) -> None:
        """Put a stream into the cache."""
        with self.cache.use(self.key(state), lambda: stream, stream_bytes):
            pass

    def key(self, state: State, offset: int = 0) -> tuple[str, str, str, int]:
        """Key of the stream in the cache."""
        return "cvat-track", self.user, state.id, state.step + offset


def lost() -> VideoStream:
    """Instead of a stream that is not in the cache."""
    raise Lost


def stream_bytes(stream: VideoStream) -> int:
    """What a stream takes in memory."""
    return stream.memory_bytes()


def read_state(state: Any) -> State:
    """A state that came back. Raises a PromptError if it is not one."""
    try:
        return State.model_validate(state)
    except ValidationError as error:
        raise PromptError("a tracker state is not one of this server: begin the track again") from error


def read_shape(shape: Any) -> tuple[ShapeType, list[float], bool]:
    """The kind of a shape, its numbers, and whether it came without its kind.

    Raises:
        PromptError: It is neither numbers nor {"type", "points"}.
    """
    if isinstance(shape, dict) and isinstance(shape.get("points"), list):
        return check_shape_type(str(shape.get("type"))), shape["points"], False
    if isinstance(shape, list):
        return ("rectangle" if len(shape) == 4 else "polygon"), shape, True
    raise PromptError("a track begins without a shape: expected [x0, y0, x1, y1], or {type, points}")


def shape_of(state: State) -> Any:
    """A shape as CVAT gave it."""
    return state.shape if state.is_flat else {"type": state.kind, "points": state.shape}


def widened(box: Sequence[float], size_hw: SizeHW) -> list[float]:
    """A box with a margin, within the frame."""
    x0, y0, x1, y1 = box
    dx, dy = MARGIN * (x1 - x0), MARGIN * (y1 - y0)
    return [max(x0 - dx, 0), max(y0 - dy, 0), min(x1 + dx, size_hw[1]), min(y1 + dy, size_hw[0])]
