"""What callers get of a frame: the masks of all objects at the video's size."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from masklet.config import STRIDES, SizeHW
from masklet.errors import PromptError
from masklet.masks import join_chunks, upscaled_masks
from masklet.numbers import shown
from masklet.results import Masks
from masklet.results.exporters.classes import DEFAULT_NAME

if TYPE_CHECKING:
    from torch import Tensor

    from masklet.video.object_frame import ObjectFrame
    from masklet.video.result_fetch import Fetch


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


def check_object_id(object_id: Any) -> None:
    """Raise a PromptError unless an object can be found again by its id."""
    try:
        hash(object_id)
        is_itself = bool(object_id == object_id)  # NaN is not
    except (TypeError, ValueError, RuntimeError):
        is_itself = False
    if not is_itself:
        raise PromptError(
            f"object is {shown(object_id)}: expected an id such as 1 or 'cup'. Points go into points=, a box into box="
        )


def check_known(object_id: Any, known: Collection[Hashable]) -> None:
    """Raise a PromptError unless there is such an object."""
    check_object_id(object_id)
    if object_id not in known:
        raise no_such_object(object_id, known)


def check_can_unprompt(object_id: Hashable, frame: int, prompted: Collection[int]) -> None:
    """Raise a PromptError unless an object was prompted in a frame, and in another one of ``prompted``."""
    if frame not in prompted:
        where = ", ".join(map(str, sorted(prompted))) or "nowhere"
        raise PromptError(f"object {object_id!r} was not prompted in frame {frame}: it was in {where}")
    if len(prompted) == 1:
        raise PromptError(f"frame {frame} holds the only prompt of object {object_id!r}: remove the object instead")


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
    labels: Sequence[str | None] = (),
    fetch: Fetch | None = None,
) -> FrameResult:
    """The masks of a frame, from the tracker's results.

    Args:
        index: The frame's number.
        time: Seconds from the beginning of the video.
        results: Result of each object.
        numbers: Number of each object, from 0.
        input_hw: Size of the network's input.
        size_hw: Size of the video.
        image: The frame, for overlays.
        labels: Label of each object, if any has one. Those without become "object".
        packed: Return run lengths without logits, with one chunk of masks in memory at a time.
        fetch: The results on their way to the host, with masks unless they are ``packed``.
    """
    inside: Any = None
    kept = np.zeros((len(results), 0, 0), np.float32)
    if fetch is not None:
        host = fetch.result()
        inside, iou_scores, object_scores = host.masks, host.vectors[:, 0].copy(), host.vectors[:, 1].copy()
        kept = kept if packed else host.logits
    else:
        iou_scores = _stack([one.iou_score for one in results.values()]).cpu().numpy()
        object_scores = _stack([one.object_score for one in results.values()]).cpu().numpy()
    if inside is None:
        logits_hw = (input_hw[0] // STRIDES[0], input_hw[1] // STRIDES[0])
        logits = _stack([one.logits for one in results.values()], logits_hw)
        inside = join_chunks(upscaled_masks(logits, size_hw), len(results), size_hw, packed=packed)
        kept = kept if packed else logits.cpu().numpy()
    names = np.array([label or DEFAULT_NAME for label in labels], np.str_) if any(labels) else None
    masks = Masks(inside, kept, iou_scores, np.array(numbers, int), image, names)
    return FrameResult(index, time, tuple(results), masks, object_scores)


def _stack(values: Sequence[Tensor], shape: tuple[int, ...] = ()) -> Tensor:
    import torch

    return torch.stack(list(values)).float() if values else torch.zeros(0, *shape, dtype=torch.float32, device="cpu")
