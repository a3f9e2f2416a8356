"""CandidateMasks: all masks that the model proposes for each object."""

import operator
from collections.abc import Iterator
from dataclasses import dataclass, fields

import numpy as np

from masklet.results.masks import Masks, check_image, read_only


@dataclass(frozen=True, eq=False, repr=False)
class CandidateMasks:
    """Several candidate masks for each prompted object, such as the whole, a part and a subpart.

    ``candidates[object]`` gives the ``Masks`` of one object's candidates, ``candidates[object, k]`` one of them, and
    iterating gives the ``Masks`` of each object. Objects count from 0, in the order of the prompts.
    """

    masks: np.ndarray
    """(objects, candidates, height, width) bool, in pixels of the image."""
    logits: np.ndarray
    """(objects, candidates, h, w) float32, low resolution, before the sigmoid."""
    iou_scores: np.ndarray
    """(objects, candidates) float32: the IoU with the true object, as predicted by the model."""
    image: np.ndarray | None = None
    """(height, width, 3) uint8 RGB, the background of overlays."""

    def __post_init__(self) -> None:
        for name, ndim, kind in (("masks", 4, "b"), ("logits", 4, "f"), ("iou_scores", 2, "f")):
            values = getattr(self, name)
            if values.ndim != ndim or values.dtype.kind != kind or values.shape[:2] != self.masks.shape[:2]:
                raise ValueError(
                    f"{name} of shape {values.shape}, {values.dtype}, do not fit masks of shape {self.masks.shape}"
                )
        if self.image is not None:
            check_image(self.image, (self.masks.shape[2], self.masks.shape[3]))
        for field in fields(self):
            if (values := getattr(self, field.name)) is not None:
                object.__setattr__(self, field.name, read_only(values))

    def __len__(self) -> int:
        """Objects."""
        return len(self.masks)

    def __iter__(self) -> Iterator[Masks]:
        return (self[number] for number in range(len(self)))

    def __getitem__(self, index: int | tuple[int, int]) -> Masks:
        number, *candidate = index if isinstance(index, tuple) else (index,)
        number = range(len(self))[operator.index(number)]
        object_ids = np.full(self.masks.shape[1], number)
        masks = Masks(self.masks[number], self.logits[number], self.iou_scores[number], object_ids, self.image)
        return masks[operator.index(*candidate)] if candidate else masks

    def __repr__(self) -> str:
        objects, candidates, height, width = self.masks.shape
        return f"CandidateMasks({objects} object{'s' * (objects != 1)}, {candidates} candidates each, {width}×{height})"

    @property
    def best(self) -> Masks:
        """One mask for each object: the candidate of the highest predicted IoU, of equal ones the first."""
        numbers = np.arange(len(self))
        chosen = numbers, self.iou_scores.argmax(1)
        return Masks(self.masks[chosen], self.logits[chosen], self.iou_scores[chosen], numbers, self.image)

    def flatten(self) -> Masks:
        """All candidates as one ``Masks``, for export: object by object, each with its object's id."""
        object_ids = np.arange(len(self)).repeat(self.masks.shape[1])
        masks, logits, scores = (v.reshape(-1, *v.shape[2:]) for v in (self.masks, self.logits, self.iou_scores))
        return Masks(masks, logits, scores, object_ids, self.image)
