"""One object on arrays: its prompts, its results and its memory maps, as in ``masklet.video.track``."""

from __future__ import annotations

from collections.abc import Container, MutableMapping
from dataclasses import dataclass, field

import numpy as np

from masklet.config import SizeHW
from masklet.video.frame_prompts import joined_clicks
from masklet.video.logit_bytes import FLOAT_BYTES, pack_logits, unpack_logits
from masklet.video.spool import FrameSpool


@dataclass(frozen=True)
class ObjectResult:
    """One object in one frame."""

    logits: np.ndarray  # (4h, 4w) float32
    iou_score: float
    object_score: float
    pointer: np.ndarray  # (dim,) float32


@dataclass(frozen=True)
class ResultBytes:
    """``ObjectResult`` as bytes, without loss; scores and pointer at the end, so that they can be read alone."""

    logits_hw: SizeHW
    dim: int

    @property
    def vector_bytes(self) -> int:
        """The length of the end."""
        return FLOAT_BYTES * (2 + self.dim)

    def pack(self, value: ObjectResult) -> bytes:  # noqa: D102
        vector = np.concatenate([[value.iou_score, value.object_score], value.pointer]).astype(np.float32).tobytes()
        return pack_logits(value.logits) + vector

    def unpack(self, data: bytes) -> ObjectResult:  # noqa: D102
        vector = np.frombuffer(data[-self.vector_bytes :], np.float32)
        logits = unpack_logits(data[: -self.vector_bytes], self.logits_hw)
        return ObjectResult(logits, float(vector[0]), float(vector[1]), vector[2:])


@dataclass(frozen=True)
class FramePrompt:
    """A prompt for one object in one frame, in pixels of the network's input."""

    points: np.ndarray | None = None  # (points, 2), box corners first
    labels: np.ndarray | None = None  # (points,)
    mask: np.ndarray | None = None  # (height, width) bool, of the network's input

    def after(self, earlier: FramePrompt) -> FramePrompt:
        """Both prompts: points add up, a new box replaces an earlier one, a new mask replaces everything."""
        if self.mask is not None or earlier.points is None or self.points is None:
            return self
        assert earlier.labels is not None
        assert self.labels is not None
        kept = joined_clicks(earlier.labels, self.labels)
        return FramePrompt(
            np.concatenate([earlier.points, self.points])[kept], np.concatenate([earlier.labels, self.labels])[kept]
        )


@dataclass
class Track:
    """One object: its prompts, its results, and the memory maps that nearby frames read."""

    number: int
    dim: int
    """Width of pointers."""
    results: MutableMapping[int, ObjectResult]
    prompted: set[int] = field(default_factory=set)
    maps: dict[int, np.ndarray] = field(default_factory=dict)  # (tokens, memory_dim)
    clicks: dict[int, FramePrompt] = field(default_factory=dict)
    tracked_steps: dict[int, int] = field(default_factory=dict)
    """Frames that tracking has reached, with its step."""
    conditioned: dict[int, np.ndarray] = field(default_factory=dict)
    """Frames that were corrected since tracking last advanced, conditioned on the memory from before."""

    def __contains__(self, frame: object) -> bool:
        """Whether a frame has a result, as policies ask."""
        return frame in self.results

    def pointer(self, frame: int) -> np.ndarray:
        """The object pointer of one frame, (dim,), without its mask."""
        if not isinstance(self.results, FrameSpool):
            return self.results[frame].pointer
        return np.frombuffer(self.results.read(frame, last=FLOAT_BYTES * self.dim), np.float32)

    def copy(self) -> Track:
        """An independent copy of a track whose results are in memory."""
        return Track(
            self.number,
            self.dim,
            dict(self.results),
            set(self.prompted),
            dict(self.maps),
            dict(self.clicks),
            dict(self.tracked_steps),
            dict(self.conditioned),
        )

    def put(self, frame: int, result: ObjectResult, memory: np.ndarray, *, is_prompted: bool) -> None:
        """Keep a result and its memory map, in the place of an earlier one."""
        self.results[frame], self.maps[frame] = result, memory
        (self.prompted.add if is_prompted else self.prompted.discard)(frame)

    def keep_maps(self, frames: Container[int]) -> None:
        """Drop the maps of all other frames."""
        self.maps = {frame: memory for frame, memory in self.maps.items() if frame in frames}
