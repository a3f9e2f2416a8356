"""What callers get of a frame: the masks of all objects at the video's size."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from masklet.config import STRIDES, SizeHW
from masklet.errors import PromptError
from masklet.masks import encode_rle, upscale_logits
from masklet.results import Masks
from masklet.video.object_frame import ObjectFrame

CHUNK_PIXELS = 2**24
"""Logits that are upscaled together, in pixels: 64 MB. One mask of any size is upscaled whole."""


@dataclass(frozen=True, eq=False)
class FrameResult:
    """All objects in one frame."""

    index: int
    """The frame's number, from 0."""
    time: float
    """Seconds from the beginning of the video."""
    object_ids: tuple[Hashable, ...]
    """The ids that the objects were prompted with, in the order of ``masks``."""
    masks: Masks
    """One mask for each object, at the video's size, with predicted IoU, box and area."""
    object_scores: np.ndarray
    """(objects,) logits: above 0 the object is in the frame."""

    @property
    def iou_scores(self) -> np.ndarray:
        """(objects,) predicted IoU, 0 to 1."""
        return self.masks.iou_scores

    @property
    def visible(self) -> np.ndarray:
        """(objects,) whether the object is in the frame."""
        return self.object_scores > 0

    def __getitem__(self, object_id: Hashable) -> Masks:
        """The mask of one object.

        Raises:
            PromptError: There is no such object.
        """
        if object_id not in self.object_ids:
            raise no_such_object(object_id, self.object_ids)
        return self.masks[self.object_ids.index(object_id)]

    def _repr_png_(self) -> bytes:
        """Notebooks show the frame with its masks."""
        return self.masks._repr_png_()

    def _repr_html_(self) -> str:
        return self.masks._repr_html_()


def no_such_object(object_id: Hashable, known: Iterable[Hashable]) -> PromptError:
    """The error for an object that does not exist."""
    return PromptError(f"no object {object_id!r}: the video's objects are {', '.join(map(repr, known)) or 'none yet'}")


def make_frame_result(
    index: int,
    time: float,
    results: Mapping[Hashable, ObjectFrame],
    numbers: Sequence[int],
    *,
    input_hw: SizeHW,
    size_hw: SizeHW,
    image: np.ndarray | None,
    packed: bool = False,
) -> FrameResult:
    """The masks of a frame, from the tracker's results.

    Args:
        index: The frame's number.
        time: Seconds from the beginning of the video.
        results: Of each object.
        numbers: Of each object, from 0.
        input_hw: Of the network's input.
        size_hw: Of the video.
        image: The frame, for overlays.
        packed: Return run lengths without logits, with one chunk of masks in memory at a time.
    """
    objects = list(results.values())
    logits_hw = (input_hw[0] // STRIDES[0], input_hw[1] // STRIDES[0])
    logits = _stack([one.logits for one in objects], logits_hw)
    iou_scores = _stack([one.iou_score for one in objects]).cpu().numpy()
    object_scores = _stack([one.object_score for one in objects]).cpu().numpy()
    object_numbers = np.array(numbers, int)
    if packed:
        runs = [run for chunk in upscaled_masks(logits, size_hw) for run in encode_rle(chunk)]
        masks = replace(Masks.from_rle(runs, size_hw, iou_scores, object_numbers), image=image)
    else:
        inside = stack_chunks(upscaled_masks(logits, size_hw), len(objects), size_hw)
        masks = Masks(inside, logits.cpu().numpy(), iou_scores, object_numbers, image)
    return FrameResult(index, time, tuple(results), masks, object_scores)


def upscaled_masks(logits: Tensor, size_hw: SizeHW) -> Iterator[np.ndarray]:
    """(objects, h, w) logits to (objects, height, width) bool, in chunks of at most ``CHUNK_PIXELS``."""
    length = max(1, CHUNK_PIXELS // (size_hw[0] * size_hw[1]))
    for start in range(0, len(logits), length):
        yield (upscale_logits(logits[start : start + length], size_hw) > 0).cpu().numpy()


def stack_chunks(chunks: Iterable[np.ndarray], count: int, size_hw: SizeHW) -> np.ndarray:
    """(count, height, width) bool, in the memory of the result and one chunk."""
    masks, start = np.empty((count, *size_hw), bool), 0
    for chunk in chunks:
        masks[start : start + len(chunk)] = chunk
        start += len(chunk)
    return masks


def _stack(values: Sequence[Tensor], shape: tuple[int, ...] = ()) -> Tensor:
    return torch.stack(list(values)).float() if values else torch.zeros(0, *shape)
